"""Exactly the k largest of many scores, block by block and in a fixed order.

Scores are 0 or more; a score below 0 marks what may not be chosen. Ties go by a second score, and ties of that to what
comes first. Nothing here holds more than a few blocks.

A weight counts for a side by |W| times one number an input, taken from the calibration. Magnitude and random are the
baselines. ``wanda`` is |W|·‖x‖₂ (Sun et al. 2023, arXiv 2306.11695) on the side's own statements. ``relu``, ``softplus``
and ``disjoint`` weigh the inputs by how far the sides differ there (Ye et al. 2026, arXiv 2602.07164), the first two with
the sign of the side.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from utils.options import MaskScore, Side
from utils.subnetworks.calibration import SIDES, Calibration

# A block of scores and of second scores, of one shape, (row, column) float64.
Block = tuple[torch.Tensor, torch.Tensor]
Blocks = Callable[[], Iterator[Block]]

_INFINITY = 0x7FF << 52  # as the bits of a float64; those of all numbers are below
_DIGIT = 21  # three times makes the 63 bits of a float64 without a sign

SCORES = ("magnitude", "random", "wanda", "relu", "softplus", "disjoint")
# Added to every sum of variances, so that inputs that never change have a finite contrast.
EPSILON = 1e-12


def keep_count(n: int, sparsity: float) -> int:
    """How many of n are kept: (1 − sparsity)·n, rounded down, so that two masks of half the weights can be disjoint."""
    return math.floor((1 - sparsity) * n + 1e-9)


def check_sparsity(sparsity: float) -> None:
    """Raise a ValueError unless the sparsity is in [0, 1)."""
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must be in [0, 1), not {sparsity}: it is the share of weights that is cut.")


def keep_rows(scores: torch.Tensor, seconds: torch.Tensor, k: int) -> torch.Tensor:
    """The k largest of each row.

    Parameters
    ----------
    scores, seconds
        (row, column) float64.

    Returns
    -------
    Tensor
        (row, column) bool, k true in each row.
    """
    if k == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    if k == scores.shape[1]:
        return torch.ones_like(scores, dtype=torch.bool)
    keys = _order(scores, seconds)
    at = _kth_of_rows(keys, k)
    kept, tied = keys > at, keys == at
    missing = k - kept.sum(1)
    crowded = torch.nonzero(tied.sum(1) > missing)[:, 0]
    kept |= tied
    if len(crowded):
        kept[crowded] = (keys[crowded] > at[crowded]) | _break_ties(tied[crowded], seconds[crowded], missing[crowded])
    return kept


def keep_all(blocks: Blocks, k: int) -> Iterator[torch.Tensor]:
    """The k largest over all blocks, as one (row, column) bool a block; the blocks are made anew several times."""
    if k == 0:
        yield from (torch.zeros_like(scores, dtype=torch.bool) for scores, _ in blocks())
        return
    at, missing, n_tied = _kth(lambda: (scores.reshape(-1) for scores, _ in blocks()), k)
    second, left = -1.0, missing
    if missing < n_tied:
        second, left, _ = _kth(lambda: (seconds[scores == at] for scores, seconds in blocks()), missing)
    for scores, seconds in blocks():
        tied = scores == at
        last = tied & (seconds == second)
        chosen = last & (last.reshape(-1).cumsum(0).reshape(last.shape) <= left)
        left -= int(chosen.sum())
        # Where all that tie are kept, the second score does not matter.
        yield (scores > at) | (tied if missing == n_tied else (tied & (seconds > second)) | chosen)


def _order(scores: torch.Tensor, seconds: torch.Tensor) -> torch.Tensor:
    """Whole numbers in the order of the scores, scores of 0 in the order of the second scores and below all others.

    Scores of 0 are often many, an input's whole column, and equal values make finding the k-th several times slower. The bits
    of floating-point numbers without a sign are in the order of the numbers. What may not be chosen is below everything.
    """
    # Adding 0 makes 0 of -0.
    bits, second_bits = (values.add(0.0).view(torch.int64) for values in (scores, seconds))
    barred = torch.arange(scores.shape[1], device=scores.device) + torch.iinfo(torch.int64).min
    return torch.where(scores > 0, bits, torch.where(scores == 0, second_bits - _INFINITY, barred))


def _kth_of_rows(scores: torch.Tensor, k: int) -> torch.Tensor:
    """The k-th largest of each row, (row, 1)."""
    place = scores.shape[1] - k
    if scores.device.type == "cpu":
        # Several times faster than torch.kthvalue.
        return torch.from_numpy(np.partition(scores.numpy(), place, axis=1)[:, place : place + 1])
    return scores.kthvalue(place + 1, dim=1, keepdim=True).values


def _break_ties(tied: torch.Tensor, seconds: torch.Tensor, missing: torch.Tensor) -> torch.Tensor:
    """Of what ties, the ``missing`` (row,) with the largest second scores, first come first."""
    kept = torch.zeros_like(tied)
    # As a rule an input's score is 0 in all rows, and all miss as many.
    for count in missing.unique():
        rows = missing == count
        values = torch.where(tied[rows], seconds[rows], -1.0)
        at = _kth_of_rows(values, int(count))
        above, equal = values > at, values == at
        kept[rows] = above | (equal & (equal.cumsum(1) <= count - above.sum(1, keepdim=True)))
    return kept


def _kth(values: Callable[[], Iterator[torch.Tensor]], k: int) -> tuple[float, int, int]:
    """The k-th largest value of 0 or more, how many of its equals are among the k, and how many there are.

    A radix search: bits of floating-point numbers without a sign are in the order of the numbers.
    """
    prefix, missing, n_equal = 0, k, 0
    for shift in (2 * _DIGIT, _DIGIT, 0):
        counts = torch.zeros(1 << _DIGIT, dtype=torch.long)
        for value in values():
            # Adding 0 makes 0 of -0; what may not be chosen has a sign and is below every prefix.
            bits = (value + 0.0).view(torch.int64)
            bits = bits[(bits >> (shift + _DIGIT)) == prefix] if shift < 2 * _DIGIT else bits[bits >= 0]
            digits = (bits >> shift) & ((1 << _DIGIT) - 1)
            counts += torch.bincount(digits, minlength=1 << _DIGIT).cpu()
        from_top = counts.flip(0).cumsum(0)
        place = int(torch.searchsorted(from_top, torch.tensor(missing)))
        n_equal = int(counts.flip(0)[place])
        missing -= int(from_top[place]) - n_equal
        prefix = (prefix << _DIGIT) | ((1 << _DIGIT) - 1 - place)
    return float(np.int64(prefix).view(np.float64)), missing, n_equal


@dataclass(frozen=True)
class ScoreRule:
    """Which score, for which side.

    Attributes
    ----------
    score
        See the module's docstring.
    side
        Whose subnetwork it is.
    tau
        Temperature of ``softplus``.
    length_normalised
        Whether a statement's norm is divided by √tokens before sides are compared (``relu``, ``softplus``).
    """

    score: MaskScore = "wanda"
    side: Side = "positive"
    tau: float = 1.0
    length_normalised: bool = True

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise ValueError(f"unknown score {self.score!r}; expected one of {', '.join(SCORES)}.")
        if self.side not in SIDES:
            raise ValueError(f"unknown side {self.side!r}; expected positive or negative.")
        if not self.tau > 0:
            raise ValueError(f"tau must be above 0, not {self.tau}.")


def norm_contrast(calibration: Calibration, name: str, *, length_normalised: bool = True) -> Float[np.ndarray, " d"]:
    """The contrast z of the sides at each input of a layer, above 0 where the positive side has the larger norms.

    ``z = (μ₊ − μ₋) / sqrt(σ₊² + σ₋² + ε)``, with mean and variance over statements of ‖x‖/√tokens, or of ‖x‖, which
    mostly measures how long the statements are.
    """
    (mean, variance), (other_mean, other_variance) = (
        calibration.norm_moments(side, name, length_normalised=length_normalised) for side in SIDES
    )
    return (mean - other_mean) / np.sqrt(variance + other_variance + EPSILON)


def token_contrast(calibration: Calibration, name: str) -> Float[np.ndarray, " d"]:
    """``|μ₊ − μ₋| / sqrt(σ₊² + σ₋² + ε)`` with mean and variance over tokens, without a sign."""
    means, variances = ([moment(side, name) for side in SIDES] for moment in (calibration.mean, calibration.variance))
    return np.abs(means[0] - means[1]) / np.sqrt(variances[0] + variances[1] + EPSILON)


def input_weights(calibration: Calibration, name: str, rule: ScoreRule) -> Float[np.ndarray, " d"]:
    """What |W| is multiplied by, one number of 0 or more an input; 1 for magnitude (and for random, which has its own draws)."""
    if rule.score in ("magnitude", "random"):
        return np.ones(len(calibration.rms(rule.side, name)))
    if rule.score == "wanda":
        return calibration.norm(rule.side, name)
    if rule.score == "disjoint":
        return token_contrast(calibration, name)
    z = norm_contrast(calibration, name, length_normalised=rule.length_normalised)
    z = z if rule.side == "positive" else -z
    return np.maximum(z, 0) if rule.score == "relu" else np.logaddexp(0, z / rule.tau)
