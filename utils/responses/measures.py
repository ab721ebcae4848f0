"""What is read from a model: a number from its logits at certain tokens of each of many prompts.

A readout says what to run and what to read there; running it, as the model is or under interventions, is up to
:func:`score_prompts` and :func:`utils.causal.scoring.score_interventions`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from utils.models.forward import batch_rows, check_head, pad_right, repeat_prefix, share_prefix
from utils.models.hooks import hook_inputs
from utils.models.language_model import LanguageModel
from utils.models.prompts import Prompt, check_plain, encode_texts, render_chat
from utils.responses.wording import LETTERS, encode_questions, letter_tokens, question_text, render_questions

System = str | Sequence[str | None] | None

OPENING = "Tell me something about yourself."
AGREEMENT = 'Do you agree with the following statement? Answer with "Agree" or "Disagree".\n\n{statement}'

# Logits that are held at a time on a GPU: 1 GB in float32.
_LOGITS = 1 << 28


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
    check_plain(tokenizer, statements)
    systems = spread_system(system, len(statements))
    opened = [render_chat(tokenizer, OPENING, system=each) for each in systems]
    return _read_spans(continue_texts(tokenizer, opened, statements))


def text_readout(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Readout:
    """Log-likelihood of plain texts, without a chat template and after their first token, summed over their tokens."""
    check_plain(tokenizer, texts)
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
    """Tokenise texts behind their openings; ``start`` and ``stop`` bound the text.

    The texts may be a model's own, so that control tokens in them are taken as such.
    """
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


def score_prompts(
    lm: LanguageModel,
    readout: Readout,
    *,
    batch_size: int | Literal["auto"] = "auto",
    progress: bool = True,
    name: str = "prompts",
) -> Float[np.ndarray, " prompts"]:
    """The readout's number of every prompt.

    A beginning that all prompts share is run once, and the head runs at the tokens that are read only.

    Raises
    ------
    ValueError
        A prompt longer than the context window, or logits that are not finite.
    """
    check_prompts(lm, readout)
    prompts = readout.prompts
    prefix = share_prefix(lm, [Prompt(prompt.ids, prompt.start - 1, prompt.stop) for prompt in prompts])
    lengths = [len(prompt.ids) - len(prefix.ids) for prompt in prompts]
    found = np.empty(len(prompts))
    with torch.inference_mode(), tqdm(total=len(prompts), desc=name, disable=not progress) as bar:
        for places in batch_rows(lm, lengths, batch_size, skipped=len(prefix.ids), max_tokens=logits_budget(lm)):
            ids, mask = pad_right([prompts[place].ids[len(prefix.ids) :] for place in places], lm.device)
            options = repeat_prefix(prefix, mask)
            found[places] = read_batch(lm, readout, places, ids, skipped=len(prefix.ids), **options)
            bar.update(len(places))
    check_finite(found)
    return found


def read_batch(
    lm: LanguageModel, readout: Readout, places: Sequence[int], ids: torch.Tensor, *, skipped: int, **options: Any
) -> list[float]:
    """The readout's numbers of a batch, one a row of ``ids``.

    Parameters
    ----------
    places
        Which prompt each row is.
    ids
        (row, token) without the ``skipped`` first tokens of the prompts.
    options
        What else the forward pass is given: an attention mask, keys and values of the skipped tokens.
    """
    prompts = [readout.prompts[place] for place in places]
    # The logits of a token are those of the place before it.
    spans = [range(prompt.start - 1 - skipped, prompt.stop - 1 - skipped) for prompt in prompts]
    rows = torch.tensor([row for row, span in enumerate(spans) for _ in span])
    at = torch.tensor([token for span in spans for token in span])

    def pick(_key: int, hidden: torch.Tensor) -> torch.Tensor:
        check_head(lm, hidden, ids)
        return hidden[rows.to(hidden.device), at.to(hidden.device)][None]

    with hook_inputs({0: lm.head}, pick):
        logits = lm.model(input_ids=ids, **options).logits[0]
    parts = logits.split([len(span) for span in spans])
    return [readout.score(part.float(), place) for part, place in zip(parts, places, strict=True)]


def logits_budget(lm: LanguageModel) -> int | None:
    """Tokens a forward pass, where the memory for their logits bounds it."""
    return None if lm.device.type == "cpu" else max(256, _LOGITS // lm.embedding.num_embeddings)


def check_prompts(lm: LanguageModel, readout: Readout) -> None:
    """Refuse prompts that do not fit into the model's context window."""
    longest = max((len(prompt.ids) for prompt in readout.prompts), default=0)
    if lm.max_tokens is not None and longest > lm.max_tokens:
        raise ValueError(
            f"a prompt takes {longest} tokens, the model's context window has {lm.max_tokens}; shorten it."
        )


def check_finite(found: np.ndarray) -> None:
    """Refuse what came from logits that are not finite."""
    if not np.isfinite(found).all():
        raise ValueError("the model's logits are not finite; try dtype float32 or bfloat16.")
