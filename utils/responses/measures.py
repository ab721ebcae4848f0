"""What is read from a model: a number from its logits at certain tokens of each of many prompts.

A readout says what to run and what to read there; running it, as the model is or under interventions, is up to
:func:`utils.prompt_scores.score_prompts` and :func:`utils.causal.scoring.score_interventions`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedTokenizerBase

from utils.models.prompts import Prompt, encode_texts, render_chat
from utils.responses.wording import LETTERS, encode_questions, letter_tokens, question_text, render_questions

System = str | Sequence[str | None] | None

OPENING = "Tell me something about yourself."
AGREEMENT = 'Do you agree with the following statement? Answer with "Agree" or "Disagree".\n\n{statement}'


@dataclass(frozen=True)
class Readout:
    """Prompts, and how a number comes from the logits of each.

    Attributes
    ----------
    prompts
        The logits that are read are those for the tokens ``start`` to ``stop`` of each prompt, and so of the places one
        before. ``stop`` may lie one behind the last token: what the model would say next.
    score
        ``score(logits, place)`` of prompt number ``place``, the logits (read token, vocabulary).
    statements
        First token of each prompt's statement, or what stands for it, and the one after its last.
    """

    prompts: tuple[Prompt, ...]
    score: Callable[[torch.Tensor, int], float]
    statements: tuple[tuple[int, int], ...]

    @property
    def n_read(self) -> np.ndarray:
        """(n_prompts,) how many tokens of each are read."""
        return np.array([prompt.stop - prompt.start for prompt in self.prompts])


def likelihood_readout(
    tokenizer: PreTrainedTokenizerBase, statements: Sequence[str], *, system: System = None
) -> Readout:
    """Log-likelihood of each statement as the answer to a neutral request (``OPENING``), summed over its tokens."""
    systems = spread_system(system, len(statements))
    opened = [render_chat(tokenizer, OPENING, system=each) for each in systems]
    return _read_spans(continue_texts(tokenizer, opened, statements))


def text_readout(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Readout:
    """Log-likelihood of plain texts, without a chat template and after their first token, summed over their tokens."""
    prompts = encode_texts(tokenizer, list(texts), [(0, len(text)) for text in texts])
    return _read_spans([Prompt(prompt.ids, max(prompt.start, 1), prompt.stop) for prompt in prompts])


def agreement_readout(
    tokenizer: PreTrainedTokenizerBase, statements: Sequence[str], *, system: System = None
) -> Readout:
    """Log-odds of *Agree* against *Disagree*, asked about each statement."""
    asked = [AGREEMENT.format(statement=text) for text in statements]
    return odds_readout(tokenizer, asked, ("Agree", "Disagree"), statements=statements, system=system)


def odds_readout(
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    answers: tuple[str, str],
    *,
    statements: Sequence[str] | None = None,
    system: System = None,
) -> Readout:
    """Log-odds of the first answer against the second as the next thing that the model says.

    Parameters
    ----------
    statements
        The part of each question that is its statement; all of it by default.

    Raises
    ------
    ValueError
        Both answers begin with the same token.
    """
    systems = spread_system(system, len(questions))
    rendered = [
        render_chat(tokenizer, question, system=each) for question, each in zip(questions, systems, strict=True)
    ]
    both = [continue_texts(tokenizer, rendered, [answer] * len(rendered)) for answer in answers]
    a, b = (torch.tensor([prompt.ids[prompt.start] for prompt in each]) for each in both)
    if (a == b).any():
        raise ValueError(f"{answers[0]!r} and {answers[1]!r} begin with the same token; ask for other answers.")
    asked = [Prompt(prompt.ids[: prompt.start], prompt.start, prompt.start + 1) for prompt in both[0]]

    def compare(logits: torch.Tensor, place: int) -> float:
        return float(logits[0, a[place]] - logits[0, b[place]])

    answered = [text + answers[0] for text in rendered]
    return Readout(tuple(asked), compare, _find_spans(tokenizer, answered, rendered, statements or questions))


def question_readout(tokenizer: PreTrainedTokenizerBase, questions: pd.DataFrame) -> Readout:
    """1 where the letter of the right option has the largest logit of all letters, else 0.

    Parameters
    ----------
    questions
        As :func:`utils.statements.load_questions` returns them.
    """
    rendered = render_questions(tokenizer, questions)
    encoded = encode_questions(tokenizer, questions)
    letters, right = letter_tokens(tokenizer, rendered[0]), [LETTERS.index(letter) for letter in questions["answer"]]

    def check(logits: torch.Tensor, place: int) -> float:
        return float(int(logits[0, letters].argmax()) == right[place])

    prompts = tuple(Prompt(prompt.ids, len(prompt.ids), len(prompt.ids) + 1) for prompt in encoded)
    texts = [question_text(row) for _, row in questions.iterrows()]
    return Readout(prompts, check, _find_spans(tokenizer, rendered, rendered, texts))


def spread_system(system: System, n: int) -> list[str | None]:
    """One system prompt for each of n prompts."""
    if system is None or isinstance(system, str):
        return [system] * n
    if len(system) != n:
        raise ValueError(f"{len(system)} system prompts for {n} prompts; give one for all, or one for each.")
    return list(system)


def continue_texts(tokenizer: PreTrainedTokenizerBase, opened: Sequence[str], texts: Sequence[str]) -> list[Prompt]:
    """Tokenise texts behind their openings; ``start`` and ``stop`` bound the text."""
    whole = [before + text for before, text in zip(opened, texts, strict=True)]
    spans = [(len(before), len(text)) for before, text in zip(opened, whole, strict=True)]
    return encode_texts(tokenizer, whole, spans)


def _read_spans(prompts: Sequence[Prompt]) -> Readout:
    def score(logits: torch.Tensor, place: int) -> float:
        prompt = prompts[place]
        chosen = torch.tensor(prompt.ids[prompt.start : prompt.stop], device=logits.device)
        found = logits.gather(1, chosen[:, None])[:, 0] - logits.logsumexp(1)
        return float(found.cpu().double().sum())  # not every device has float64

    return Readout(tuple(prompts), score, tuple((prompt.start, prompt.stop) for prompt in prompts))


def _find_spans(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], rendered: Sequence[str], parts: Sequence[str]
) -> tuple[tuple[int, int], ...]:
    """The tokens of a part of each rendered text, which is the beginning of ``texts``."""
    begins = [text.rfind(part.strip()) for text, part in zip(rendered, parts, strict=True)]
    if min(begins, default=0) < 0:
        raise ValueError(f"the chat template changes {parts[begins.index(-1)]!r}; its tokens cannot be found.")
    spans = [(begin, begin + len(part.strip())) for begin, part in zip(begins, parts, strict=True)]
    return tuple((prompt.start, prompt.stop) for prompt in encode_texts(tokenizer, list(texts), spans))
