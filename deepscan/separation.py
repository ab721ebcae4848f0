"""Test for effects spread over many nodes: how well a ridge rule tells the sides of left-out pairs apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Shaped

from deepscan.relabellings import Relabellings, centre_and_scale, read_layers, relabel, share_reaching, standardise
from deepscan.trials import run_parallel

if TYPE_CHECKING:
    import pandas

_Z95 = 1.959963984540054
# Any two left-out predictions share a term. Where the sides are alike, this raises the variance of the number of hits
# over that of independent ones by the sum of (2/pi) * arcsin of the correlations of the predictions, at most 1 + 2/pi.
_DESIGN_EFFECT = 1 + 2 / np.pi


@dataclass(frozen=True, eq=False, repr=False)
class SeparationTest:
    """What :func:`separation_test` found. Fields "by layer" have an axis of layers exactly where the activations have.

    Attributes
    ----------
    p_value : float
        Of all layers together.
    statistic : by layer
        Q of the observed sides.
    null : by layer (..., n_permutations)
        Q of the permuted sides.
    accuracy : by layer
        Share of the pairs of which the rule fitted to all other pairs knows the h1 side (a tie is half a hit). Without
        pairs, the mean of the shares of h0 and of h1 records that are put on their side. Chance is 0.5.
    accuracy_interval : by layer (..., 2)
        95 % interval of the accuracy, see :func:`separation_test`.
    predictions : by layer (..., n)
        Left-out predictions. With pairs in the order of the rows of ``h0``, positive where the rule is right; without,
        in the order of ``[h0; h1]``, positive for h1.
    layer_p_value, layer_p_adjusted : by layer
        p-value of each layer by itself, and adjusted over the layers (family-wise, by the largest statistic).
    n, paired : int, bool
        Number of pairs, or of records without pairs.
    """

    p_value: float
    statistic: Float[np.ndarray, " layers"] | float
    null: Float[np.ndarray, "*axis permutations"]
    accuracy: Float[np.ndarray, " layers"] | float
    accuracy_interval: Float[np.ndarray, "*axis 2"]
    predictions: Float[np.ndarray, "*axis units"]
    layer_p_value: Float[np.ndarray, " layers"] | float
    layer_p_adjusted: Float[np.ndarray, " layers"] | float
    n: int
    paired: bool

    @property
    def table(self) -> "pandas.DataFrame":
        """One row a layer: ``layer, statistic, p_value, p_adjusted, accuracy, accuracy_low, accuracy_high``."""
        import pandas as pd

        statistic = np.atleast_1d(self.statistic)
        low, high = np.reshape(self.accuracy_interval, (-1, 2)).T
        columns = {
            "layer": np.arange(statistic.size),
            "statistic": statistic,
            "p_value": np.atleast_1d(self.layer_p_value),
            "p_adjusted": np.atleast_1d(self.layer_p_adjusted),
            "accuracy": np.atleast_1d(self.accuracy),
            "accuracy_low": low,
            "accuracy_high": high,
        }
        return pd.DataFrame(columns)

    def __repr__(self) -> str:
        units = f"{self.n} {'pairs' if self.paired else 'records'}"
        if np.ndim(self.statistic):
            return f"SeparationTest(p_value={self.p_value:.4g}, {np.size(self.statistic)} layers, {units})"
        low, high = self.accuracy_interval
        return (
            f"SeparationTest(p_value={self.p_value:.4g}, accuracy={self.accuracy:.3f} [{low:.3f}, {high:.3f}], {units})"
        )


def separation_test(
    h0: Shaped[np.ndarray, "h0 nodes"] | Shaped[np.ndarray, "layers h0 nodes"] | Sequence[np.ndarray],
    h1: Shaped[np.ndarray, "h1 nodes"] | Shaped[np.ndarray, "layers h1 nodes"] | Sequence[np.ndarray],
    *,
    pairs: Shaped[np.ndarray, " records"] | Sequence | None = None,
    ridge: float = 1.0,
    n_permutations: int = 999,
    rng: int | np.random.Generator = 0,
    n_jobs: int = 1,
) -> SeparationTest:
    """Test whether two sets of activations differ along any direction, with all records at once.

    With differences d (n pairs by p nodes), ``Z_ij = d_ij / sqrt(sum_i d_ij^2)``, ``K = (n/p) Z Z^T``,
    ``H = K (K + ridge I)^-1`` and M = H with a zero diagonal, the statistic is ``Q(e) = e^T M e``: how well the sides of each
    pair are predicted from all the others. Flipping the sides of a pair changes the sign of its e and nothing else, so
    ``p = (1 + #{Q(e) >= Q(1)}) / (1 + n_permutations)`` over random flips is exact. Without pairs, Z are the nodes of
    all records about their common mean, and e the labels -1 and +1 about theirs, permuted.

    Left-out predictions ``f_i = ((H e)_i - H_ii e_i) / (1 - H_ii)`` are those of the ridge rule refitted without unit i
    (nodes scaled once, over all; labels of single records about the mean of the others'). Their hits are not
    independent: the interval of the accuracy is Wilson's, with n over 1 + 2/pi in the place of n, which is the most by which
    shared terms raise the variance where the sides are alike. In simulations with 20 to 120 pairs or records a side, it
    held the accuracy to be expected of as many others in 92 to 100 % of the draws.

    Parameters
    ----------
    h0, h1 : (n, n_nodes), or (layers, n, n_nodes) or a sequence of layers
        Activations under H0 and under the alternative; float16, float32 or float64. Several layers hold the same
        records, and are tested together: the largest of their statistics, each about its mean and over its standard
        deviation over all labellings, under the same flips.
    pairs : optional
        As for :func:`deepscan.detect`; the same seed and pairs give the same flips.
    ridge : float
        Penalty, above 0; of nodes that are independent, each pair has leverage 1 / (1 + ridge).
    n_permutations : int
        Random flips; with 0 the p-value is 1.
    rng : int or Generator
    n_jobs : int
        Threads over layers; no p-value depends on it.

    Returns
    -------
    SeparationTest

    Raises
    ------
    ValueError
        Different nodes or layers, NaN or inf, incomplete pairs, fewer than two pairs, or a ridge that is not above 0.
    """
    if not (isinstance(ridge, int | float | np.number) and 0.0 < ridge < np.inf):
        raise ValueError(f"ridge is {ridge!r}; expected a finite number above 0")
    sides, several = read_layers(h0, h1, smallest=1)
    relabellings = relabel(sides, pairs, n_permutations, rng)
    found = run_parallel(
        _test_layer, [(*both, relabellings, float(ridge)) for both in sides], n_jobs=n_jobs, progress=False
    )
    q, predictions = (np.stack(part) for part in zip(*found, strict=True))
    z = centre_and_scale(q)
    largest = z.max(axis=0)
    rates = [_accuracy(row, relabellings) for row in predictions]
    by_layer: dict[str, Any] = {
        "statistic": q[:, 0],
        "null": q[:, 1:],
        "accuracy": np.array([rate for rate, _ in rates]),
        "accuracy_interval": np.array([_interval(*each) for each in rates]),
        "predictions": np.stack([relabellings.align(row) for row in predictions]),
        "layer_p_value": share_reaching(q, q[:, 0]),
        "layer_p_adjusted": share_reaching(largest, z[:, 0]),
    }
    if not several:
        by_layer = {name: float(x[0]) if x.ndim == 1 else x[0] for name, x in by_layer.items()}
    p_value = float(share_reaching(largest, largest[0]))
    return SeparationTest(p_value=p_value, **by_layer, n=len(relabellings.signs), paired=relabellings.paired)


def _test_layer(
    h0: np.ndarray, h1: np.ndarray, relabellings: Relabellings, ridge: float
) -> tuple[np.ndarray, np.ndarray]:
    """Q of every labelling, and the left-out predictions of the observed one."""
    root = smoother_root(standardise(h0, h1, relabellings.labels), ridge)
    signs = relabellings.centred
    leverage = np.einsum("ki,ki->i", root, root)
    projected = root @ signs
    q = np.einsum("kb,kb->b", projected, projected) - leverage @ signs**2
    predictions = (root.T @ projected[:, 0] - leverage * signs[:, 0]) / (1.0 - leverage)
    if not relabellings.paired:
        # A label is missing from the mean of the others, which would give it away.
        predictions -= signs[:, 0] * leverage / (1.0 - leverage) / (len(signs) - 1)
    return q, predictions


def smoother_root(z: Float[np.ndarray, "units nodes"], ridge: float) -> Float[np.ndarray, "rank units"]:
    """A with ``A^T A = H = K (K + ridge I)^-1`` for ``K = (n/p) z z^T``, through the smaller of K and its dual."""
    n, p = z.shape
    if n <= p:
        values, vectors = np.linalg.eigh((n / p) * (z @ z.T))
        values = np.maximum(values, 0.0)
        return np.sqrt(values / (values + ridge))[:, None] * vectors.T
    values, vectors = np.linalg.eigh((n / p) * (z.T @ z))
    return np.sqrt(n / p) / np.sqrt(np.maximum(values, 0.0) + ridge)[:, None] * (vectors.T @ z.T)


def _accuracy(predictions: np.ndarray, relabellings: Relabellings) -> tuple[float, float]:
    """Share of hits, and the number of units that it is worth: fewer than there are where the sides are uneven."""
    sign = relabellings.signs[:, 0]
    hits = (1.0 + np.sign(predictions) * sign) / 2.0
    sides = [hits[sign == side] for side in np.unique(sign)]
    worth = len(sides) ** 2 / sum(1.0 / len(side) for side in sides)
    return float(np.mean([side.mean() for side in sides])), worth


def _interval(rate: float, worth: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of hits that are not independent."""
    n = worth / _DESIGN_EFFECT
    middle = (rate + _Z95**2 / (2 * n)) / (1 + _Z95**2 / n)
    margin = _Z95 / (1 + _Z95**2 / n) * np.sqrt(rate * (1 - rate) / n + _Z95**2 / (4 * n**2))
    return max(0.0, middle - margin), min(1.0, middle + margin)
