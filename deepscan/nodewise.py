"""Test of every node by itself: effect, interval, p-value, and its correction for the number of nodes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Shaped

from deepscan.checks import check_choice
from deepscan.relabellings import (
    TOLERANCE,
    Relabellings,
    differences,
    read_layers,
    relabel,
    standardise,
    sums_by_labelling,
)
from deepscan.splits import Labels
from deepscan.trials import run_parallel

if TYPE_CHECKING:
    import pandas

Correction = Literal["max-t", "bh"]

_Z95 = 1.959963984540054


def node_test(
    h0: Shaped[np.ndarray, "h0 nodes"] | Shaped[np.ndarray, "layers h0 nodes"] | Sequence[np.ndarray],
    h1: Shaped[np.ndarray, "h1 nodes"] | Shaped[np.ndarray, "layers h1 nodes"] | Sequence[np.ndarray],
    *,
    pairs: Shaped[np.ndarray, " records"] | Sequence | None = None,
    correction: Correction = "max-t",
    n_permutations: int = 999,
    rng: int | np.random.Generator = 0,
    n_jobs: int = 1,
) -> "pandas.DataFrame":
    """Test every node for a difference between the sides: paired t, or Welch's without pairs.

    Parameters
    ----------
    h0, h1 : (n, n_nodes), or (layers, n, n_nodes) or a sequence of layers
        As for :func:`deepscan.separation_test`; the correction is over the nodes of all layers together.
    pairs : optional
        As for :func:`deepscan.detect`; the same seed and pairs give the same flips.
    correction : "max-t" | "bh"
        ``"max-t"`` holds the family-wise error: ``p_adjusted`` is the share of labellings, the observed one included, whose
        largest ``|t|`` over nodes is at least this node's, each t computed anew under the labelling (single-step; Westfall
        & Young 1993). ``"bh"`` holds the false discovery rate (Benjamini & Hochberg 1995) of the nodes' ``p_value``.
    n_permutations : int
        Random flips (without pairs: permuted labels) for ``"max-t"``; with 0 all ``p_adjusted`` are 1.
    rng : int or Generator
    n_jobs : int
        Threads over layers; the result does not depend on it.

    Returns
    -------
    DataFrame
        One row a node: ``layer`` (only of activations with an axis of layers); ``node``; ``effect``, the mean difference
        h1 - h0 over the root mean of the two sides' variances, with ``low`` and ``high``, its 95 % interval by itself
        (Bonett 2008, Psychological Methods 13, 99–109; normal); ``t``; ``p_value``, two-sided, by the t distribution;
        ``p_adjusted``; ``sign``, +1 where h1 is higher, -1 where it is lower, 0 where the means are the same. Of a node
        that never varies, effect and t are 0 and the p-values 1; of one that differs by the same amount in every pair, t
        is infinite.

    Raises
    ------
    ValueError
        Different nodes or layers, NaN or inf, incomplete pairs, fewer than two pairs (without pairs: records of a side),
        or an unknown correction.
    """
    import pandas as pd
    from scipy.stats import false_discovery_control

    check_choice(correction, "correction", Correction)
    sides, several = read_layers(h0, h1, smallest=2)
    by_flips = correction == "max-t"
    relabellings = relabel(sides, pairs, n_permutations if by_flips else 0, rng)
    tables = [pd.DataFrame(_describe_nodes(*both, relabellings.labels)) for both in sides]
    if several:
        for k, each in enumerate(tables):
            each.insert(0, "layer", k)
    table = pd.concat(tables, ignore_index=True)
    if by_flips:
        found = run_parallel(_test_layer, [(*both, relabellings) for both in sides], n_jobs=n_jobs, progress=False)
        own = np.concatenate([observed for observed, _ in found])
        largest = np.sort(np.max([top for _, top in found], axis=0))
        below = np.searchsorted(largest, np.where(own > 0.0, own * (1.0 - TOLERANCE), 0.0))
        adjusted = (largest.size - below) / largest.size
    else:
        adjusted = false_discovery_control(table["p_value"])
    table.insert(table.columns.get_loc("sign"), "p_adjusted", adjusted)  # type: ignore[arg-type]
    return table


def _describe_nodes(h0: np.ndarray, h1: np.ndarray, labels: Labels) -> dict[str, np.ndarray]:
    """Effects and parametric tests, one value a node."""
    from scipy.special import stdtr

    x0, x1 = h0[labels.h0].astype(np.float64), h1[labels.h1 - len(h0)].astype(np.float64)
    n0, n1 = len(x0), len(x1)
    v0, v1 = _variance(x0), _variance(x1)
    spread = np.sqrt((v0 + v1) / 2)
    shared = np.zeros_like(v0)
    if labels.paired:
        d = differences(h0, h1, labels)
        difference, variance = d.mean(axis=0), _variance(d)
        error, freedom = np.sqrt(variance / n0), np.full(spread.shape, n0 - 1.0)
        # Bonett's squared covariance of the sides, from the variance of their difference.
        shared = 2 * ((v0 + v1 - variance) / 2) ** 2
        mean_error = variance / (n0 - 1)
    else:
        difference = np.where((v0 == 0) & (v1 == 0), x1[0] - x0[0], x1.mean(axis=0) - x0.mean(axis=0))
        error = np.sqrt(v0 / n0 + v1 / n1)
        parts = (v0 / n0) ** 2 / (n0 - 1) + (v1 / n1) ** 2 / (n1 - 1)
        freedom = np.where(parts > 0.0, _ratio(error**4, parts, 0.0), n0 + n1 - 2.0)
        mean_error = v0 / (n0 - 1) + v1 / (n1 - 1)
    t = _ratio(difference, error, np.copysign(np.inf, difference))
    effect = _ratio(difference, spread, np.copysign(np.inf, difference))
    of_spread = v0**2 / (n0 - 1) + v1**2 / (n1 - 1) + shared / (n0 - 1)
    scaled = _ratio(difference, spread, 0.0) ** 2 * _ratio(of_spread, 8 * spread**4, 0.0)
    margin = _Z95 * np.sqrt(scaled + _ratio(mean_error, spread**2, 0.0))
    return {
        "node": np.arange(t.size),
        "effect": effect,
        "low": effect - margin,
        "high": effect + margin,
        "t": t,
        "p_value": np.where(t == 0.0, 1.0, 2.0 * stdtr(freedom, -np.abs(t))),
        "sign": np.sign(difference).astype(np.int8),
    }


def _variance(x: np.ndarray) -> np.ndarray:
    """Over the records; exactly 0 where all values are the same."""
    return np.where(x.min(axis=0) == x.max(axis=0), 0.0, x.var(axis=0, ddof=1))


def _ratio(numerator: np.ndarray, denominator: np.ndarray, otherwise: np.ndarray | float) -> np.ndarray:
    """The ratio; ``otherwise`` where the denominator is 0, and 0 where both are."""
    safe = np.where(denominator > 0.0, denominator, 1.0)
    without = np.where(numerator == 0.0, 0.0, otherwise)
    return np.where(denominator > 0.0, numerator / safe, without)


def _test_layer(h0: np.ndarray, h1: np.ndarray, relabellings: Relabellings) -> tuple[np.ndarray, np.ndarray]:
    """Size of the observed statistic of every node, and the largest of every labelling."""
    z = standardise(h0, h1, relabellings.labels)
    largest = np.empty(relabellings.signs.shape[1])
    if relabellings.paired:
        # t = z sqrt((n - 1) / (n - z^2)) whatever the signs, so |z| orders nodes and labellings as |t| does.
        for block, sums in sums_by_labelling(z, relabellings.signs):
            largest[block] = np.abs(sums, out=sums).max(axis=1)
        return np.abs(relabellings.signs[:, 0] @ z), largest
    squares = z**2
    belongs = (relabellings.signs + 1.0) / 2.0
    blocks = zip(sums_by_labelling(z, belongs), sums_by_labelling(squares, belongs), strict=True)
    n0, n1 = len(h0), len(h1)
    observed = np.empty(0)
    for (block, sums), (_, sums_of_squares) in blocks:
        t = np.abs(_welch(sums, sums_of_squares, z.sum(axis=0), squares.sum(axis=0), n0, n1))
        largest[block] = t.max(axis=1)
        observed = t[0] if block.start == 0 else observed
    return observed, largest


def _welch(
    sums: np.ndarray, squares: np.ndarray, all_sums: np.ndarray, all_squares: np.ndarray, n0: int, n1: int
) -> np.ndarray:
    """Welch's t from the h1 side's sums and those of all records, (labellings, nodes)."""
    mean1, mean0 = sums / n1, (all_sums - sums) / n0
    within1 = (squares - n1 * mean1**2) / (n1 - 1) / n1
    within0 = (all_squares - squares - n0 * mean0**2) / (n0 - 1) / n0
    variance = within0 + within1
    # Columns have unit length: what is left of the variance below this is rounding.
    variance = np.where(variance > 1e-12 / (n0 * n1), variance, 0.0)
    difference = mean1 - mean0
    return _ratio(difference, np.sqrt(variance), np.copysign(np.inf, difference))
