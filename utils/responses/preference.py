"""What a model prefers to say: likelihood of statements, agreement with them, choice between two, and what it costs.

Plain functions of a model and statements. What is done to the model meanwhile (masks, interventions, prompts) is the
caller's: each function is to be called inside the context that changes the model.

A ``system`` prompt is one text for all, one a statement, or None (the chat template's own default).
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd

from utils.models.language_model import LanguageModel
from utils.responses.measures import (
    System,
    agreement_readout,
    likelihood_readout,
    odds_readout,
    score_prompts,
    spread_system,
    text_readout,
)
from utils.statements.questions import load_questions
from utils.statements.splits import pair_sides

CHOICE = "Which of these would you rather say? Answer with A or B.\n\nA. {first}\nB. {second}"


def statement_likelihood(
    lm: LanguageModel,
    statements: pd.DataFrame,
    *,
    system: System = None,
    batch_size: int | Literal["auto"] = "auto",
    progress: bool = True,
) -> pd.DataFrame:
    """How likely the model is to give each statement as its answer to a neutral request (``OPENING``).

    Returns
    -------
    DataFrame
        One row a statement, in their order: ``id, direction, pair, tokens, log_likelihood`` (natural logarithm, summed
        over the statement's tokens) and ``value``, the log-likelihood a token.
    """
    readout = likelihood_readout(lm.tokenizer, statements["statement"].tolist(), system=system)
    total = score_prompts(lm, readout, batch_size=batch_size, progress=progress, name="likelihood")
    return _labels(statements).assign(tokens=readout.n_read, log_likelihood=total, value=total / readout.n_read)


def self_report(
    lm: LanguageModel,
    statements: pd.DataFrame,
    *,
    system: System = None,
    batch_size: int | Literal["auto"] = "auto",
    progress: bool = True,
) -> pd.DataFrame:
    """How far the model says that it agrees with each statement.

    Returns
    -------
    DataFrame
        One row a statement, in their order: ``id, direction, pair`` and ``value``, the log-odds of *Agree* against
        *Disagree* at the first token that tells them apart. A leaning to agree with anything is in all of them: compare
        a persona's positive with its negative statements.
    """
    readout = agreement_readout(lm.tokenizer, statements["statement"].tolist(), system=system)
    odds = score_prompts(lm, readout, batch_size=batch_size, progress=progress, name="self-report")
    return _labels(statements).assign(value=odds)


def choose_statements(
    lm: LanguageModel,
    statements: pd.DataFrame,
    *,
    system: System = None,
    batch_size: int | Literal["auto"] = "auto",
    progress: bool = True,
) -> pd.DataFrame:
    """Which statement of each pair the model would rather say; each is offered once as A and once as B.

    Parameters
    ----------
    system
        One a pair, in the order of the pairs, where there are several.

    Returns
    -------
    DataFrame
        One row a pair, in order of appearance: ``pair`` and ``value``, the log-odds of the positive statement against the
        negative one, the mean over both orders, so that a leaning to a letter cancels.

    Raises
    ------
    ValueError
        Statements without pairs.
    """
    first, second = pair_sides(statements)
    pairs = list(zip(first["statement"], second["statement"], strict=True))
    asked = [CHOICE.format(first=a, second=b) for a, b in [*pairs, *((b, a) for a, b in pairs)]]
    systems = [*spread_system(system, len(pairs))] * 2
    odds = answer_odds(
        lm, asked, ("A", "B"), system=systems, batch_size=batch_size, progress=progress, name="two options"
    )
    as_a, as_b = odds[: len(pairs)], odds[len(pairs) :]
    return pd.DataFrame({"pair": first["pair"].to_numpy(), "value": (as_a - as_b) / 2})


def answer_odds(
    lm: LanguageModel,
    questions: Sequence[str],
    answers: tuple[str, str],
    *,
    system: System = None,
    batch_size: int | Literal["auto"] = "auto",
    progress: bool = True,
    name: str = "answers",
) -> np.ndarray:
    """Log-odds of the first answer against the second as the next thing that the model says, one a question.

    Raises
    ------
    ValueError
        Both answers begin with the same token.
    """
    if not len(questions):
        return np.empty(0)
    readout = odds_readout(lm.tokenizer, questions, answers, system=system)
    return score_prompts(lm, readout, batch_size=batch_size, progress=progress, name=name)


def text_likelihood(
    lm: LanguageModel, texts: Sequence[str], *, batch_size: int | Literal["auto"] = "auto", progress: bool = True
) -> pd.DataFrame:
    """``tokens`` and ``log_likelihood`` of plain texts, without a chat template and after their first token."""
    readout = text_readout(lm.tokenizer, texts)
    total = score_prompts(lm, readout, batch_size=batch_size, progress=progress, name="perplexity")
    return pd.DataFrame({"tokens": readout.n_read, "log_likelihood": total})


def perplexity(likelihood: pd.DataFrame) -> float:
    """The perplexity a token of :func:`text_likelihood`'s texts together."""
    return math.exp(-likelihood["log_likelihood"].sum() / likelihood["tokens"].sum())


def _labels(statements: pd.DataFrame) -> pd.DataFrame:
    return statements[["id", "direction", "pair"]].reset_index(drop=True)


def neutral_texts(questions: pd.DataFrame | None = None) -> list[str]:
    """Plain sentences with nothing of a persona in them: questions with their right answers, the shipped ones by default."""
    questions = load_questions() if questions is None else questions
    return [f"{row['question']} {row[row['answer']]}." for _, row in questions.iterrows()]
