"""Who belongs where: the true labels, the same with one unit left out, and shuffled ones, side by side as columns.

The columns of ``members`` are in this order throughout: the truth, one column a left-out unit, then the shuffled
labels. A unit is a pair, or a single statement.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

_Z95 = 1.959963984540054


def flip_sides(
    labels: Bool[np.ndarray, "n"], units: Int[np.ndarray, "n"], n_flips: int, rng: np.random.Generator
) -> Bool[np.ndarray, "n flips"]:
    """Labels as they could have been without an effect.

    A unit with both sides has them swapped or not; units with one side only, such as single statements, exchange theirs.
    """
    first = np.unique(units, return_index=True)[1]
    n_units = len(first)
    n_h1, n_rows = np.bincount(units, labels, minlength=n_units), np.bincount(units, minlength=n_units)
    single = (n_h1 == 0) | (n_h1 == n_rows)
    flipped = np.empty((len(labels), n_flips), bool)
    for flip in range(n_flips):
        flipped[:, flip] = labels
        if not single.all():
            flipped[:, flip] ^= ((rng.random(n_units) < 0.5) & ~single)[units]
        if single.any():
            exchanged = labels[first]
            exchanged[single] = rng.permutation(exchanged[single])
            flipped[:, flip] = np.where(single[units], exchanged[units], flipped[:, flip])
    return flipped


def stack_members(
    labels: Bool[np.ndarray, "n"] | Int[np.ndarray, "n"],
    units: Int[np.ndarray, "n"],
    shuffled: Bool[np.ndarray, "n s"] | Int[np.ndarray, "n s"],
) -> Float[np.ndarray, "c n k"]:
    """Class memberships (see :mod:`utils.layers.clusters`) of the truth, of each left-out unit, and of shuffled labels."""
    n_units = int(units.max()) + 1
    columns = np.hstack([np.repeat(labels[:, None], 1 + n_units, axis=1), shuffled])
    present = np.ones(columns.shape, bool)
    present[:, 1 : 1 + n_units] = units[:, None] != np.arange(n_units)
    return np.stack([((columns == label) & present).astype(float) for label in np.unique(labels)])


def draw_halves(
    labels: Bool[np.ndarray, "n"], units: Int[np.ndarray, "n"], n_halves: int, rng: np.random.Generator
) -> Float[np.ndarray, "2 n halves"]:
    """Class memberships of the two sides in random halves of the units (one more of an odd number).

    Units with both sides are halved together, units with one side only within their side.
    """
    n_units = int(units.max()) + 1
    n_h1, n_rows = np.bincount(units, labels, minlength=n_units), np.bincount(units, minlength=n_units)
    stratum = np.where(n_h1 == 0, 0, np.where(n_h1 == n_rows, 1, 2))
    half = np.zeros((n_units, n_halves), bool)
    for column in half.T:
        for kind in np.unique(stratum):
            own = np.flatnonzero(stratum == kind)
            column[rng.permutation(own)[: (len(own) + 1) // 2]] = True
    present = half[units]
    return np.stack([present & (labels == side)[:, None] for side in (False, True)]).astype(float)


def describe(name: str, values: Float[np.ndarray, "k"], n_units: int) -> dict[str, float]:
    """The value under the true labels, its delete-one-unit jackknife interval, and the band under shuffled labels.

    Parameters
    ----------
    values
        One a column of :func:`stack_members`.

    Returns
    -------
    dict
        ``<name>``, ``<name>_low, <name>_high`` (95 %) and, where there are shuffled labels, ``<name>_null_low,
        <name>_null_high`` (5th and 95th percentile).
    """
    value, left_out, shuffled = float(values[0]), values[1 : 1 + n_units], values[1 + n_units :]
    margin = _Z95 * jackknife_error(left_out)
    row = {name: value, f"{name}_low": value - margin, f"{name}_high": value + margin}
    return row | null_band(name, shuffled)


def describe_nothing(names: Sequence[str], *, shuffled: bool) -> dict[str, float]:
    """The columns of :func:`describe`, with or without those of shuffled labels, where nothing can be measured."""
    suffixes = ("", "_low", "_high", *(("_null_low", "_null_high") if shuffled else ()))
    return {name + suffix: float("nan") for name in names for suffix in suffixes}


def null_band(name: str, shuffled: Float[np.ndarray, "s"]) -> dict[str, float]:
    """The 5th and 95th percentile under shuffled labels; nothing where there are none."""
    if not len(shuffled):
        return {}
    # Between two infinite values there is nothing to interpolate.
    method = "linear" if np.isfinite(shuffled).all() else "nearest"
    low, high = np.quantile(shuffled, [0.05, 0.95], method=method)
    return {f"{name}_null_low": float(low), f"{name}_null_high": float(high)}


def jackknife_error(left_out: Float[np.ndarray, "units"]) -> float:
    """Standard error from the values with one unit left out each; NaN where one of them is infinite."""
    if not np.isfinite(left_out).all():
        return float("nan")
    return float(np.sqrt((len(left_out) - 1) * left_out.var()))
