"""Score functions of a subset: how far its count of small p-values is above what a threshold lets expect.

Every score is a function of three numbers: ``n_alpha``, how many cells of the subset have p <= alpha; ``n``, how many
cells it has; and ``alpha``. All are one-sided: 0 where no more cells are small than expected.

References
----------
McFowland, Speakman and Neill (2013), *Fast generalized subset scan for anomalous pattern detection*, JMLR 14.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Float, Shaped

ScoreName = Literal["bj", "hc", "ks"]
ScoreFunction = Callable[..., np.ndarray]

Counts = Shaped[np.ndarray, "*subsets"]
Levels = Float[np.ndarray, "*subsets"] | float


def berk_jones(n_alpha: Counts, n: Counts, alpha: Levels) -> Float[np.ndarray, "*subsets"]:
    """Berk-Jones: the log-likelihood ratio ``n KL(n_alpha/n || alpha)``.

    Parameters
    ----------
    n_alpha, n : arrays of the same shape
        Cells with p <= alpha, and all cells, of each subset.
    alpha : array or float
        The thresholds, each in (0, 1).

    Returns
    -------
    Float array
        Scores in nats; 0 where ``n_alpha <= n alpha``, ``n log(1/alpha)`` where every cell is small.
    """
    n_alpha, n, alpha, over = _broadcast(n_alpha, n, alpha)
    full = over & (n_alpha >= n)
    part = over & ~full
    score = np.zeros(n.shape)
    score[full] = -n[full] * np.log(alpha[full])
    share = n_alpha[part] / n[part]
    inside = n_alpha[part] * np.log(share / alpha[part])
    outside = (n[part] - n_alpha[part]) * np.log((1.0 - share) / (1.0 - alpha[part]))
    score[part] = np.maximum(inside + outside, 0.0)
    return score


def higher_criticism(n_alpha: Counts, n: Counts, alpha: Levels) -> Float[np.ndarray, "*subsets"]:
    """Higher Criticism: ``(n_alpha - n alpha) / sqrt(n alpha (1 - alpha))``, standard deviations above expectation.

    Parameters and result as for :func:`berk_jones`.
    """
    n_alpha, n, alpha, over = _broadcast(n_alpha, n, alpha)
    score = np.zeros(n.shape)
    level, size = alpha[over], n[over]
    score[over] = (n_alpha[over] - size * level) / np.sqrt(size * level * (1.0 - level))
    return score


def kolmogorov_smirnov(n_alpha: Counts, n: Counts, alpha: Levels) -> Float[np.ndarray, "*subsets"]:
    """Kolmogorov-Smirnov: ``(n_alpha - n alpha) / sqrt(n)``.

    Parameters and result as for :func:`berk_jones`.
    """
    n_alpha, n, alpha, over = _broadcast(n_alpha, n, alpha)
    score = np.zeros(n.shape)
    score[over] = (n_alpha[over] - n[over] * alpha[over]) / np.sqrt(n[over])
    return score


def _broadcast(n_alpha, n, alpha):
    n_alpha, n, alpha = np.broadcast_arrays(*(np.asarray(a, dtype=np.float64) for a in (n_alpha, n, alpha)))
    return n_alpha, n, alpha, n_alpha > n * alpha


SCORES: dict[str, ScoreFunction] = {"bj": berk_jones, "hc": higher_criticism, "ks": kolmogorov_smirnov}
KINDS = {name: kind for kind, name in enumerate(SCORES)}
CALLABLE = -1


def score_kind(score: ScoreName | ScoreFunction) -> int:
    """Number by which the kernels know a score; ``CALLABLE`` for a function.

    Raises
    ------
    ValueError
        The name is unknown.
    """
    if callable(score):
        return CALLABLE
    if score not in KINDS:
        raise ValueError(f"score is {score!r}; expected one of {', '.join(map(repr, KINDS))}, or a function")
    return KINDS[score]


def score_name(score: ScoreName | ScoreFunction) -> str:
    """Name under which a score is recorded in a configuration."""
    return score if isinstance(score, str) else getattr(score, "__qualname__", type(score).__name__)


def evaluate(score: ScoreFunction, n_alpha: np.ndarray, n: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Call a user's score function and check what it returns.

    Raises
    ------
    ValueError
        It returned another shape, or a NaN.
    """
    values = np.asarray(score(n_alpha, n, alpha), dtype=np.float64)
    if values.shape != n_alpha.shape or np.isnan(values).any():
        raise ValueError(
            f"score must return one number, not NaN, for each of the {n_alpha.size} subsets it is given; "
            f"it returned an array of shape {values.shape} with {int(np.isnan(values).sum())} NaN"
        )
    return values
