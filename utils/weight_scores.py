"""How much each weight counts for a side: |W| times one number an input, taken from the calibration.

Magnitude and random are the baselines. ``wanda`` is |W|·‖x‖₂ (Sun et al. 2023, arXiv 2306.11695) on the side's own
statements. ``relu``, ``softplus`` and ``disjoint`` weigh the inputs by how far the sides differ there (Ye et al. 2026,
arXiv 2602.07164), the first two with the sign of the side.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from utils.options import MaskScore, Side
from utils.subnetworks.calibration import SIDES, Calibration

SCORES = ("magnitude", "random", "wanda", "relu", "softplus", "disjoint")
# Added to every sum of variances, so that inputs that never change have a finite contrast.
EPSILON = 1e-12


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
