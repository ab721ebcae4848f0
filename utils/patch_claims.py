"""Whether a model shows what Poonia & Jain 2025 (arXiv 2507.20936) report of persona prompts.

Fixed in advance, and as in :mod:`utils.layers.thirds` by the thirds of the blocks' relative depth k/L:

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

import numpy as np
import pandas as pd

from utils.intervals import FEWEST, interval, resample_weights
from utils.layers.depth import THIRDS, find_third
from utils.options import Component, Segment, Verdict

CLAIMS: tuple[tuple[str, Component, Segment, str], ...] = (
    ("early MLPs on the persona's tokens", "mlp", "persona", "first"),
    ("middle attention at the answer", "attn", "last", "middle"),
)


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
