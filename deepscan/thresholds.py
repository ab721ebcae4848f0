"""The thresholds alpha of a scan and the index of each p-value among them."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, Integer

from deepscan.checks import check_integer, check_probabilities
from deepscan.tails import Tail, node_blocks, tail_pvalues

TOLERANCE = 1e-12
Alphas = int | Sequence[float] | np.ndarray | Literal["exact"]


def given_alphas(alphas: Alphas, alpha_max: float) -> np.ndarray | None:
    """Thresholds that do not depend on the p-values, ascending; ``None`` for ``"exact"``.

    Raises
    ------
    ValueError
        A threshold or ``alpha_max`` is outside (0, 1), there is none, or a given one is above ``alpha_max``.
    """
    if not (isinstance(alpha_max, int | float | np.number) and 0.0 < alpha_max < 1.0):
        raise ValueError(f"alpha_max is {alpha_max!r}; expected a number in (0, 1)")
    if isinstance(alphas, str):
        if alphas != "exact":
            raise ValueError(f"alphas is {alphas!r}; expected a number of thresholds, an array of them, or 'exact'")
        return None
    if isinstance(alphas, int | np.integer) and not isinstance(alphas, bool):
        count = check_integer(alphas, "alphas", minimum=1)
        return np.linspace(alpha_max / count, alpha_max, count)
    grid = np.unique(np.asarray(alphas, dtype=np.float64))
    if grid.ndim != 1 or grid.size == 0 or not (grid[0] > 0.0 and grid[-1] < 1.0):
        raise ValueError("alphas must hold at least one threshold, and each must be in (0, 1)")
    if grid[-1] > alpha_max + TOLERANCE:
        raise ValueError(f"alphas holds {grid[-1]}, above alpha_max = {alpha_max}; lower it or raise alpha_max")
    return grid


def exact_alphas(p: Float[np.ndarray, "records nodes"], alpha_max: float) -> Float[np.ndarray, " thresholds"]:
    """Every distinct p-value up to ``alpha_max``; those within the tolerance of 0 are raised to it."""
    found, waiting, held = np.empty(0), [], 0
    for block in node_blocks(p.shape[1], 8 * p.shape[0]):
        values = p[:, block].ravel()
        check_probabilities(values, "p")
        waiting.append(np.unique(values[values <= alpha_max + TOLERANCE]))
        held += waiting[-1].size
        if held > max(found.size, 1 << 16):
            found, waiting, held = np.unique(np.concatenate([found, *waiting])), [], 0
    values = np.unique(np.concatenate([found, *waiting])).astype(np.float64)
    return np.unique(np.maximum(values[values < 1.0], TOLERANCE))


def split_alphas(alphas: Alphas, alpha_max: float, n: int, tail: Tail) -> Float[np.ndarray, " thresholds"]:
    """Thresholds for p-values from ``n`` background values, of which there are few enough to list."""
    grid = given_alphas(alphas, alpha_max)
    if grid is not None:
        return grid
    possible = np.unique(tail_pvalues(np.arange(n + 1), n, tail))
    return possible[(possible <= alpha_max + TOLERANCE) & (possible < 1.0)]


def bin_dtype(n_alphas: int) -> type:
    """Smallest type that holds the indices 0 ... n_alphas."""
    return np.uint8 if n_alphas <= 255 else np.uint16 if n_alphas <= 65535 else np.uint32


def bin_pvalues(
    p: Float[np.ndarray, "records nodes"], alphas: Float[np.ndarray, " thresholds"]
) -> Integer[np.ndarray, "records nodes"]:
    """Index of the smallest threshold that each p-value does not exceed (within 1e-12).

    Returns
    -------
    (n_records, n_nodes) unsigned integers
        ``len(alphas)`` where a p-value exceeds all. One byte a cell for up to 255 thresholds, two up to 65,535.

    Raises
    ------
    ValueError
        A p-value is outside [0, 1] or NaN.
    """
    from deepscan.binning import even_width, fill_bins, fill_even_bins

    count = alphas.size
    bins = np.empty(p.shape, bin_dtype(count))
    width = even_width(alphas)
    table = () if width else part_table(alphas)
    step = p.shape[0] if p.flags.c_contiguous else max(1, (1 << 22) // p.shape[1])
    for start in range(0, p.shape[0], step):
        part = slice(start, start + step)
        values = np.ascontiguousarray(p[part])
        if width:
            wrong = fill_even_bins(values, alphas[0], width, alphas[-1], count, bins[part])
        else:
            wrong = fill_bins(values, *table, bins[part])
        if wrong:
            check_probabilities(values, "p")
    return bins


def part_table(alphas: Float[np.ndarray, " thresholds"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``edges``, ``starts`` and ``words`` of :func:`deepscan.binning.fill_bins`."""
    from deepscan.binning import PART_BITS, PARTS

    edges = alphas + TOLERANCE
    units = (edges * 2.0**52).astype(np.int64)
    part = units >> PART_BITS
    starts = np.searchsorted(part, np.arange(2 * PARTS + 1))
    words = starts[:-1].astype(np.uint64) << PART_BITS
    # A value past the threshold in its part makes the sum carry.
    words[part] += ((1 << PART_BITS) - 1 - (units & ((1 << PART_BITS) - 1))).astype(np.uint64)
    words[(np.diff(starts) > 1) | (starts[:-1] >= 1 << 63 - PART_BITS)] = 1 << 63
    return edges, starts, words


def bin_counts(alphas: Float[np.ndarray, " thresholds"], n: int, tail: Tail) -> np.ndarray:
    """Index, as of :func:`bin_pvalues`, for each number 0 ... n of background values at least as extreme."""
    p = tail_pvalues(np.arange(n + 1), n, tail)
    return np.searchsorted(alphas, p - TOLERANCE).astype(bin_dtype(alphas.size))
