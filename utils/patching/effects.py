"""From logits to effects: which two letters a question is about, how much of the way a patch goes, and three claims.

The claims are those of Poonia & Jain 2025 (arXiv 2507.20936) on persona prompts, fixed in advance, and as in
:mod:`utils.layers.thirds` by the thirds of the blocks' relative depth k/L:

1. *Early MLPs on the persona's tokens*: of the MLPs patched at the persona's tokens, those of the first third have the
   largest mean effect.
2. *Middle attention passes it on*: of the attentions patched at the last token, those of the middle third have the largest
   mean effect.
3. *Heads attend to particular groups*: some head's attention to race and colour differs from that to other groups.

d is the third's mean effect minus the larger of the other two. Claims 1 and 2 are *supported* where both d and the effect
have 95 % intervals (bootstrap over questions, all layers of a question together) above 0, *not supported* where one of
them lies below 0 or the effect's includes 0, else *mixed*. With fewer than five questions there is no interval, and the
answer is *mixed*. Claim 3 is *supported* where p_adjusted ≤ 0.05 for at least one
head, else *not supported*. With few questions much is mixed, and absence of evidence is no more than that.
"""

import logging

import numpy as np
import pandas as pd
from jaxtyping import Float

from utils.intervals import FEWEST, interval, ratio_of_sums, resample_weights
from utils.layers.thirds import THIRDS, find_third
from utils.options import Component, Segment, Verdict
from utils.responses.wording import LETTERS

logger = logging.getLogger(__name__)

CELL = ["component", "layer", "segment", "head"]

CLAIMS: tuple[tuple[str, Component, Segment, str], ...] = (
    ("early MLPs on the persona's tokens", "mlp", "persona", "first"),
    ("middle attention at the answer", "attn", "last", "middle"),
)


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
            summary[name], low, high = ratio_of_sums(values, shift, weights)
            summary[f"{name}_low"], summary[f"{name}_high"] = low, high
        summary["logit_difference"], summary["logit_difference_change"] = m_patched.mean(axis=1), change.mean(axis=1)
        tables.append(summary.assign(kl_base=kl_base.mean(axis=1), kl_source=kl_source.mean(axis=1)))
    return pd.concat(tables, ignore_index=True)


def check_thirds(
    cells: pd.DataFrame, n_layers: int, *, n_bootstrap: int = 2000, rng: int | np.random.Generator = 0
) -> pd.DataFrame:
    """Claims 1 and 2.

    Parameters
    ----------
    cells
        One row a cell and question, as :func:`utils.patching.grid.patch_questions` returns it. Flipped questions are used, or
        the fallback ones where those are more.
    n_layers
        L, the number of blocks of the model.

    Returns
    -------
    DataFrame
        One row a claim: ``claim, n_questions, fallback``, the mean effects of the thirds ``first, middle, last`` and ``d``,
        each with ``_low`` and ``_high``, and ``verdict``.

    Raises
    ------
    ValueError
        Cells that a claim is about are missing, or a third has none.
    """
    fallback = bool(cells.groupby("question")["fallback"].first().mean() > 0.5)
    cells = cells[cells["fallback"] == fallback]
    rows = []
    for claim, component, segment, third in CLAIMS:
        own = cells[(cells["component"] == component) & (cells["segment"] == segment)]
        names = pd.Series([THIRDS[find_third(int(layer), n_layers)] for layer in own["layer"]], index=own.index)
        if missing := [name for name in THIRDS if not (names == name).any()]:
            raise ValueError(
                f"there is no {component} at the {segment} tokens in the {missing[0]} third of the layers; "
                "patch that too to check the claim."
            )
        change = (own["m_patched"] - own["m_base"]).groupby([own["question"], names]).mean().unstack()[list(THIRDS)]
        shift = (own["m_source"] - own["m_base"]).groupby(own["question"]).mean().loc[change.index].to_numpy()
        weights = np.vstack([np.ones((1, len(shift))), resample_weights(len(shift), n_bootstrap, rng)])
        effects = (weights @ change.to_numpy()) / (weights @ shift)[:, None]
        place = THIRDS.index(third)
        d = effects[:, place] - np.delete(effects, place, axis=1).max(axis=1)
        row: dict[str, object] = {"claim": claim, "n_questions": len(shift), "fallback": fallback}
        for name, values in [*zip(THIRDS, effects.T, strict=True), ("d", d)]:
            low, high = interval(values[1:]) if len(shift) >= FEWEST else (np.nan, np.nan)
            row |= {name: values[0], f"{name}_low": low, f"{name}_high": high}
        rows.append({**row, "verdict": _judge(row, third)})
    return pd.DataFrame(rows)


def check_groups(heads: pd.DataFrame, *, group: str = "race-and-colour", level: float = 0.05) -> pd.DataFrame:
    """Claim 3, from :func:`utils.patching.compare_groups`.

    Returns
    -------
    DataFrame
        One row a group: ``group, n_heads`` with p_adjusted ≤ level, of these ``n_more`` attend more to it than to the
        others, ``smallest_p_adjusted``, and ``verdict`` for the group that the claim is about (empty for the others).
    """
    found = heads.assign(hit=heads["p_adjusted"] <= level)
    found["more"] = found["hit"] & (found["difference"] > 0)
    table = found.groupby("group", sort=False).agg(
        n_heads=("hit", "sum"), n_more=("more", "sum"), smallest_p_adjusted=("p_adjusted", "min")
    )
    verdict: Verdict = "supported" if group in table.index and table.loc[group, "n_heads"] else "not supported"
    return table.reset_index().assign(verdict=lambda own: np.where(own["group"] == group, verdict, ""))


def _judge(row: dict, third: str) -> Verdict:
    if np.isnan(row["d_low"]):
        return "mixed"
    if row[f"{third}_low"] > 0 and row["d_low"] > 0:
        return "supported"
    return "not supported" if row[f"{third}_low"] <= 0 or row["d_high"] < 0 else "mixed"
