"""From logits to effects: which two letters a question is about, and how much of the way a patch goes."""

import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from utils.intervals import FEWEST, interval, resample_weights
from utils.responses.wording import LETTERS

logger = logging.getLogger(__name__)

CELL = ["component", "layer", "segment", "head"]
# Below this mean shift (in logits) what divides it is rounding.
_SMALLEST_SHIFT = 1e-3


def choose_letters(
    base: Float[np.ndarray, "question letter"], source: Float[np.ndarray, "question letter"]
) -> pd.DataFrame:
    """The two letters that each question is about.

    Parameters
    ----------
    base, source
        Logits of the option letters under the two identities.

    Returns
    -------
    DataFrame
        One row a question: ``base_letter, source_letter``: the two answers, or, where they are the same, the letters
        whose logits fall and rise most from base to source (``fallback``). ``shift`` is how much the difference
        logit(source letter) − logit(base letter) grows from base to source, never negative.
    """
    change, rows = source - base, np.arange(len(base))
    fallback = base.argmax(axis=1) == source.argmax(axis=1)
    fell = np.where(fallback, change.argmin(axis=1), base.argmax(axis=1))
    rose = np.where(fallback, change.argmax(axis=1), source.argmax(axis=1))
    letters = np.array(list(LETTERS))
    return pd.DataFrame(
        {
            "base_letter": letters[fell],
            "source_letter": letters[rose],
            "fallback": fallback,
            "shift": change[rows, rose] - change[rows, fell],
        }
    )


def choose_questions(
    questions: pd.DataFrame, base_answers: pd.DataFrame, source_answers: pd.DataFrame, *, n: int = 20
) -> pd.DataFrame:
    """The questions whose answers differ between two identities, those with the largest shift first.

    Where fewer than ``n`` differ, the others with the largest shift fill up, and the log says so; they are then the
    ``fallback`` rows of :func:`utils.patching.patch`. Effects of chosen questions are effects on chosen questions: the
    choice sees the two clean runs, never a patch.

    Parameters
    ----------
    base_answers, source_answers
        Of the same questions, as :func:`utils.responses.answers.answer_questions` returns them.

    Returns
    -------
    DataFrame
        At most ``n`` rows of ``questions``, with the columns of :func:`choose_letters`.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}.")
    if not base_answers["id"].tolist() == source_answers["id"].tolist() == questions["id"].tolist():
        raise ValueError("the answers are not of these questions in this order; ask the same questions both times.")
    logits = [
        answers[[f"logit_{letter}" for letter in LETTERS]].to_numpy() for answers in (base_answers, source_answers)
    ]
    table = questions.reset_index(drop=True).join(choose_letters(*logits))
    chosen = table.sort_values(["fallback", "shift"], ascending=[True, False], kind="stable").head(n)
    flips = int((~table["fallback"]).sum())
    if flips < n:
        logger.warning(
            "%s of %d questions change the answer; %d with the largest shift of two letters are added as fallback",
            flips or "none",
            len(table),
            int(chosen["fallback"].sum()),
        )
    return chosen.reset_index(drop=True)


def summarise_cells(
    cells: pd.DataFrame, *, n_bootstrap: int = 1000, rng: int | np.random.Generator = 0
) -> pd.DataFrame:
    """Effects over questions, as ratios of sums, with 95 % bootstrap intervals over questions.

    Parameters
    ----------
    cells
        One row a cell and question: ``component, layer, segment, head, question, fallback, m_base, m_source,
        m_patched, m_direct, kl_base, kl_source``, the same questions in every cell.

    Returns
    -------
    DataFrame
        One row a cell, flipped and fallback questions apart: ``effect`` = Σ(m_patched − m_base) / Σ(m_source − m_base),
        ``direct`` and ``indirect`` (which is effect − direct), each with ``_low`` and ``_high``; the means
        ``logit_difference`` (m_patched) and ``logit_difference_change`` (m_patched − m_base), ``kl_base``, ``kl_source``.
        Effects are NaN where the denominator is not above rounding, which is logged, and intervals where there are fewer
        than five questions.

    Raises
    ------
    ValueError
        A question without one of the cells.
    """
    tables = []
    for fallback, own in cells.groupby("fallback", sort=False):
        names = own.drop_duplicates(CELL)[CELL].reset_index(drop=True)
        cell, question = (own.groupby(by, sort=False).ngroup().to_numpy() for by in (CELL, "question"))
        order, n = np.lexsort((question, cell)), int(question.max()) + 1
        if len(own) != len(names) * n:
            raise ValueError(
                f"{len(names)} cells x {n} questions have {len(own)} rows; expected each cell of each once."
            )
        m_base, m_source, m_patched, m_direct, kl_base, kl_source = (
            own[name].to_numpy(dtype=float)[order].reshape(len(names), n)
            for name in ("m_base", "m_source", "m_patched", "m_direct", "kl_base", "kl_source")
        )
        shift = (m_source - m_base)[0]
        weights = resample_weights(n, n_bootstrap, rng)
        summary = names.assign(fallback=fallback, n_questions=n)
        change, direct = m_patched - m_base, m_direct - m_base
        for name, values in (("effect", change), ("direct", direct), ("indirect", change - direct)):
            summary[name], low, high = _ratio_of_sums(values, shift, weights)
            summary[f"{name}_low"], summary[f"{name}_high"] = low, high
        summary["logit_difference"], summary["logit_difference_change"] = m_patched.mean(axis=1), change.mean(axis=1)
        tables.append(summary.assign(kl_base=kl_base.mean(axis=1), kl_source=kl_source.mean(axis=1)))
    return pd.concat(tables, ignore_index=True)


def _ratio_of_sums(values: np.ndarray, shift: np.ndarray, weights: np.ndarray) -> Sequence[np.ndarray]:
    """Σ values / Σ shift of each cell, and the interval over resampled questions."""
    nothing = np.full(len(values), np.nan)
    if shift.mean() < _SMALLEST_SHIFT:
        logger.warning(
            "the two identities shift the logits by %.2g on average, which rounding may explain: effects are NaN",
            shift.mean(),
        )
        return nothing, nothing, nothing
    point = values.sum(axis=1) / shift.sum()
    if len(shift) < FEWEST:
        return point, nothing, nothing
    low, high = interval((weights @ values.T) / (weights @ shift)[:, None])
    return point, low, high
