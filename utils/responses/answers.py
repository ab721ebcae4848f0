"""What a model answers: to multiple-choice questions, how an identity changes that, and in its own words."""

from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy.special import log_softmax
from scipy.stats import binomtest, false_discovery_control
from tqdm.auto import tqdm

from utils.intervals import interval, resample_weights
from utils.models.forward import batch_rows, logits_at, pad_right
from utils.models.language_model import LanguageModel
from utils.responses.wording import (
    LETTERS,
    check_identities,
    encode_questions,
    identity_prompt,
    letter_tokens,
    render_questions,
)

LOGITS = [f"logit_{letter}" for letter in LETTERS]


def answer_questions(
    lm: LanguageModel,
    questions: pd.DataFrame,
    *,
    system: str | None = None,
    batch_size: int | Literal["auto"] = "auto",
    progress: bool = True,
) -> pd.DataFrame:
    """Ask multiple-choice questions and read the answers from the logits of the option letters.

    Parameters
    ----------
    questions
        As :func:`utils.statements.load_questions` returns them.
    system
        The system turn, such as :func:`utils.responses.identity_prompt` returns it; without it, the chat
        template's own default stays.
    batch_size
        Questions a forward pass; ``auto`` goes by length and device.
    progress
        Show a bar.

    Returns
    -------
    DataFrame
        One row a question, in their order: ``id``, ``answer`` (the letter with the largest logit), ``correct``,
        ``logit_A`` to ``logit_D`` (the model's own, raw) and ``letter_mass`` (the probability of all four letters
        together; where it is small, the model was about to say something else).

    Raises
    ------
    ValueError
        No questions, option letters that are not single tokens, a prompt longer than the context window, or logits
        that are not finite.
    """
    prompts = encode_questions(lm.tokenizer, questions, system=system)
    tokens = letter_tokens(lm.tokenizer, render_questions(lm.tokenizer, questions.iloc[:1], system=system)[0])
    check_lengths(lm, questions, [len(prompt.ids) for prompt in prompts])
    values = np.empty((len(prompts), len(LETTERS) + 1))
    batches = batch_rows(lm, [len(prompt.ids) for prompt in prompts], batch_size)
    with tqdm(total=len(prompts), desc="questions", unit="question", disable=not progress) as bar:
        for rows in batches:
            ids, mask = pad_right([prompts[row].ids for row in rows], lm.device)
            with torch.inference_mode():
                logits = logits_at(lm, ids, mask.sum(dim=1) - 1, attention_mask=mask).double().cpu()
            values[rows, :-1] = logits[:, tokens]
            values[rows, -1] = logits.softmax(dim=-1)[:, tokens].sum(dim=-1)
            bar.update(len(rows))
    if not np.isfinite(values).all():
        name = questions["id"].iloc[int(np.argwhere(~np.isfinite(values))[0, 0])]
        raise ValueError(f"the logits of question {name!r} are not finite; try dtype float32 or bfloat16.")
    answer = np.array(list(LETTERS))[values[:, :-1].argmax(axis=1)]
    right = questions["answer"].to_numpy() if "answer" in questions else np.full(len(questions), "")
    table = pd.DataFrame({"id": questions["id"].to_numpy(), "answer": answer, "correct": answer == right})
    return table.assign(**dict(zip([*LOGITS, "letter_mass"], values.T, strict=True)))


def check_lengths(lm: LanguageModel, questions: pd.DataFrame, lengths: list[int]) -> None:
    """Refuse prompts that the context window does not hold."""
    for name, length in zip(questions["id"], lengths, strict=True):
        if lm.max_tokens is not None and length > lm.max_tokens:
            raise ValueError(
                f"question {name!r} takes {length} tokens, the model's context window has {lm.max_tokens}; leave it out."
            )


def persona_answers(
    lm: LanguageModel,
    questions: pd.DataFrame,
    identities: pd.DataFrame,
    *,
    base: str = "person",
    n_bootstrap: int = 1000,
    rng: int | np.random.Generator = 0,
    batch_size: int | Literal["auto"] = "auto",
    progress: bool = True,
) -> pd.DataFrame:
    """Ask all questions under each identity and compare with a base identity.

    Parameters
    ----------
    questions, identities
        As :func:`utils.statements.load_questions` and :func:`~utils.statements.load_identities` return them.
    base
        The identity to compare with; it gets a row of its own if it is among ``identities``.
    n_bootstrap, rng
        Resamples of the questions for the 95 % intervals.

    Returns
    -------
    DataFrame
        See :func:`compare_answers`.
    """
    check_identities(identities["identity"].tolist())
    answered = {}
    for identity in tqdm(dict.fromkeys([base, *identities["identity"]]), desc="identities", disable=not progress):
        system = identity_prompt(identity)
        answered[identity] = answer_questions(lm, questions, system=system, batch_size=batch_size, progress=False)
    logits = np.stack([answered[name][LOGITS].to_numpy() for name in identities["identity"]])
    base_logits = answered[base][LOGITS].to_numpy()
    right = questions["answer"].map(LETTERS.index).to_numpy()
    return compare_answers(base_logits, logits, right, identities, n_bootstrap=n_bootstrap, rng=rng)


def compare_answers(
    base: Float[np.ndarray, "question letter"],
    logits: Float[np.ndarray, "identity question letter"],
    right: np.ndarray,
    identities: pd.DataFrame,
    *,
    n_bootstrap: int = 1000,
    rng: int | np.random.Generator = 0,
) -> pd.DataFrame:
    """Accuracy, changed answers and logit shifts of identities and of groups, against a base.

    A group answers as one: with the mean over its identities of their log-probabilities of the letters.

    Parameters
    ----------
    base, logits
        Logits of the option letters.
    right
        (question,) place of the right letter.
    identities
        ``identity`` and ``group`` of each row of ``logits``.

    Returns
    -------
    DataFrame
        One row an identity and one a group (``kind``), with ``n_questions`` and, each with ``_low`` and ``_high`` (95 %,
        bootstrap over questions): ``accuracy``; ``accuracy_change`` from the base; ``changed``, the share of answers
        that are not the base's; ``right_shift``, the mean change in the log-probability of the right letter among the
        letters; ``shift``, the mean distance between the letter that rose most and the one that fell most. ``gained``
        and ``lost`` count questions, ``p_value`` is McNemar's exact test on them (two-sided) and ``p_adjusted`` its
        Benjamini–Hochberg correction, over identities and over groups apart.
    """
    scores = log_softmax(logits, axis=-1)
    reference = log_softmax(base, axis=-1)
    weights = resample_weights(len(right), n_bootstrap, rng)
    answering = [("identity", group, name, scores[row]) for row, (name, group) in enumerate(_names(identities))]
    for group in identities["group"].unique():
        answering.append(("group", group, "", scores[(identities["group"] == group).to_numpy()].mean(axis=0)))
    rows = []
    was_right = reference.argmax(axis=1) == right
    for kind, group, name, own in answering:
        is_right, change = own.argmax(axis=1) == right, own - reference
        measures = {
            "accuracy": is_right.astype(float),
            "accuracy_change": is_right.astype(float) - was_right,
            "changed": (own.argmax(axis=1) != reference.argmax(axis=1)).astype(float),
            "right_shift": change[np.arange(len(right)), right],
            "shift": change.max(axis=1) - change.min(axis=1),
        }
        row: dict[str, object] = {"kind": kind, "group": group, "identity": name, "n_questions": len(right)}
        for measure, values in measures.items():
            low, high = interval(weights @ values / len(values))
            row |= {measure: values.mean(), f"{measure}_low": low, f"{measure}_high": high}
        gained, lost = int((is_right & ~was_right).sum()), int((was_right & ~is_right).sum())
        p_value = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
        rows.append({**row, "gained": gained, "lost": lost, "p_value": p_value})
    table = pd.DataFrame(rows)
    table["p_adjusted"] = table.groupby("kind")["p_value"].transform(false_discovery_control)
    return table


def _names(identities: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(identities["identity"], identities["group"], strict=True))


def generate_answer(lm: LanguageModel, question: str, *, system: str | None = None, max_tokens: int = 60) -> str:
    """The model's greedy answer to a question, without its end-of-turn mark.

    Parameters
    ----------
    max_tokens
        Of the answer, at most.

    Raises
    ------
    ValueError
        ``max_tokens`` below 1, or more than the context window holds.
    """
    return lm.generate(question, system=system, max_tokens=max_tokens)[0]
