"""Intervals and ranks: bootstrap over units that were drawn as a whole, delete-one jackknife, random draws."""

import logging
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Real

logger = logging.getLogger(__name__)

# Resamples of fewer units than this are too much alike for an interval.
FEWEST = 5

# Below this mean shift (in logits) what divides it is rounding.
_SMALLEST_SHIFT = 1e-3

_Z95 = 1.959963984540054


def resample_weights(n: int, n_bootstrap: int, rng: int | np.random.Generator) -> Float[np.ndarray, "resample n"]:
    """How often each of n units is in each resample; rows sum to n."""
    generator = np.random.default_rng(rng)
    return generator.multinomial(n, np.full(n, 1 / n), size=n_bootstrap).astype(float)


def interval(resampled: Float[np.ndarray, "resample ..."], *, level: float = 0.95) -> Float[np.ndarray, "2 ..."]:
    """Percentile interval, low before high; NaN where a resample is."""
    return np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2], axis=0)


def resample_ratio(
    values: Float[np.ndarray, "units"], sizes: Real[np.ndarray, "units"], weights: Float[np.ndarray, "resample units"]
) -> tuple[float, Float[np.ndarray, "resample"]]:
    """Sum of values over sum of sizes, and the same in every resample."""
    return float(values.sum() / sizes.sum()), weights @ values / (weights @ sizes)


def rank_p_value(effect: float, drawn: np.ndarray) -> float:
    """Two-sided p-value of an effect among those of drawn sets; NaN without any."""
    if not len(drawn):
        return float("nan")
    smaller = min((drawn >= effect).sum(), (drawn <= effect).sum())
    return float(min(1.0, 2 * (1 + smaller) / (1 + len(drawn))))


def ratio_of_sums(values: np.ndarray, shift: np.ndarray, weights: np.ndarray) -> Sequence[np.ndarray]:
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
