"""How far the two sides of a persona lie apart at each layer, with intervals and a label-flip baseline."""

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from utils.contrasts import Contrast, find_contrasts
from utils.probes import probe_scores
from utils.reduction import reduce

__all__ = ["CLUSTER_METRICS", "PROBE_METRICS", "best_layer", "cluster_metrics", "divergence", "reduce"]

CLUSTER_METRICS = ("centroid_distance", "silhouette", "calinski_harabasz", "davies_bouldin")
PROBE_METRICS = ("probe_accuracy", "probe_auroc")
SMALLEST_SIDE = 5
_Z95 = 1.959963984540054


def divergence(
    acts: xr.DataArray,
    contrasts: list[Contrast] | None = None,
    *,
    probe: bool = True,
    n_flips: int = 100,
    rng: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure, per persona and layer, how far H1 and H0 lie apart.

    Parameters
    ----------
    acts
        (layer, statement, node), as :func:`utils.activations.extract` returns it.
    contrasts
        What to compare; by default positive with negative statements of every persona in ``acts``.
    probe
        Also fit a linear probe, cross-validated by pair. Takes most of the time.
    n_flips
        Label flips (within pairs where there are pairs) for the baseline; at least 20.

    Returns
    -------
    DataFrame
        One row a persona and layer: ``persona, topic, layer, n_h0, n_h1`` and, for each metric, its value, its 95 %
        interval ``<metric>_low, <metric>_high`` and, for the cluster metrics, the 5th and 95th percentile
        under flipped labels ``<metric>_null_low, <metric>_null_high``. A layer where all statements have
        the same activation (layer 0 at the last token) is NaN.

        ``centroid_distance``: distance of the means in units of the pooled within-side spread (root of the summed
        variances). ``silhouette``, ``calinski_harabasz``, ``davies_bouldin`` (lower is further apart): as in
        scikit-learn. ``probe_accuracy``, ``probe_auroc``: see :mod:`utils.probes`.

        Intervals of the cluster metrics are delete-one-pair jackknife intervals: a bootstrap would duplicate
        statements, which lie at distance 0 and inflate the apparent clustering. Intervals of the
        probe resample pairs over fixed out-of-fold predictions.

    Raises
    ------
    ValueError
        A side with fewer than 5 statements.
    """
    if n_flips < 20:
        raise ValueError(f"n_flips must be at least 20 for a 5th and 95th percentile, not {n_flips}.")
    if contrasts is None:
        contrasts = find_contrasts(acts)
    rows = []
    total = len(contrasts) * acts.sizes["layer"]
    # The matrices are small: more BLAS threads cost more in waiting for each other than they gain.
    with (
        threadpool_limits(1, user_api="blas"),
        tqdm(total=total, desc="divergence", unit="layer", disable=not progress) as bar,
    ):
        for contrast in contrasts:
            _check_size(contrast)
            plus, minus = _memberships(contrast, n_flips, np.random.default_rng(rng))
            values = acts.isel(statement=contrast.rows).to_numpy()  # (layer, n, node)
            for layer, x in zip(acts["layer"].to_numpy(), values, strict=True):
                row = {"persona": contrast.persona, "topic": contrast.topic, "layer": int(layer)}
                row |= {"n_h0": len(contrast.h0), "n_h1": len(contrast.h1)}
                rows.append(row | _measure(x.astype(np.float64), contrast, plus, minus, probe, rng))
                bar.update()
    return pd.DataFrame(rows)


def best_layer(table: pd.DataFrame, *, metric: str = "silhouette") -> int:
    """Choose the one layer at which all personas are compared: the best mean rank of ``metric`` over personas.

    Layers are ranked within each persona; ties go to the earlier layer. Layer 0 (before any block) takes no part, nor do
    layers where the metric is NaN for some persona. Give it a table from the ``select`` part only, so that what is
    reported on the ``test`` part is not what the layer was chosen on.

    Raises
    ------
    ValueError
        An unknown metric, or no layer left.
    """
    if metric not in (*CLUSTER_METRICS, *PROBE_METRICS) or metric not in table:
        raise ValueError(f"the table has no metric {metric!r}; expected one of {', '.join(CLUSTER_METRICS)}.")
    wide = table[table["layer"] > 0].pivot(index="layer", columns="persona", values=metric).dropna()
    if wide.empty:
        raise ValueError("no layer above 0 has a finite metric for every persona.")
    mean_rank = wide.rank(ascending=metric == "davies_bouldin", method="average").mean(axis=1)
    return int(wide.index.to_numpy()[mean_rank.to_numpy().argmin()])


def cluster_metrics(
    x: Float[np.ndarray, "n d"], plus: Float[np.ndarray, "n k"], minus: Float[np.ndarray, "n k"]
) -> dict[str, Float[np.ndarray, "k"]]:
    """Cluster metrics of k two-way labellings of the same rows at once.

    Own code and not scikit-learn's, because jackknife and flips need hundreds of labellings of one set of
    rows: all of them follow from one Gram matrix and a few matrix products.

    Parameters
    ----------
    x
        Activations.
    plus, minus
        1 where a row belongs to the side under that labelling, else 0; a row with neither is left out.
    """
    centred = x - x.mean(axis=0)
    gram = centred @ centred.T  # (n, n)
    square = np.diag(gram)  # (n,)
    distance = np.sqrt(np.maximum(square[:, None] + square[None, :] - 2 * gram, 0))
    np.fill_diagonal(distance, 0)
    n_plus, n_minus = plus.sum(0), minus.sum(0)  # (k,)
    to_plus, to_minus = gram @ plus, gram @ minus  # (n, k)
    norm_plus = (plus * to_plus).sum(0) / n_plus**2
    norm_minus = (minus * to_minus).sum(0) / n_minus**2
    cross = (minus * to_plus).sum(0) / (n_plus * n_minus)
    between = np.maximum(norm_plus + norm_minus - 2 * cross, 0)  # squared distance of the centroids
    within = square @ plus - n_plus * norm_plus + square @ minus - n_minus * norm_minus
    n = n_plus + n_minus
    spread_plus = np.sqrt(np.maximum(square[:, None] - 2 * to_plus / n_plus + norm_plus, 0))
    spread_minus = np.sqrt(np.maximum(square[:, None] - 2 * to_minus / n_minus + norm_minus, 0))
    scatter = (plus * spread_plus).sum(0) / n_plus + (minus * spread_minus).sum(0) / n_minus
    near_plus, near_minus = distance @ plus, distance @ minus
    own = plus * near_plus / (n_plus - 1) + minus * near_minus / (n_minus - 1)
    other = plus * near_minus / n_minus + minus * near_plus / n_plus
    widest = np.maximum(own, other)
    silhouette = np.divide(other - own, widest, out=np.zeros_like(own), where=widest > 0)
    return {
        "centroid_distance": np.sqrt(between / (within / (n - 2))),
        "silhouette": silhouette.sum(0) / n,
        "calinski_harabasz": between * n_plus * n_minus / n / (within / (n - 2)),
        "davies_bouldin": scatter / np.sqrt(np.maximum(between, np.finfo(float).tiny)),
    }


def _memberships(contrast: Contrast, n_flips: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Labellings as columns: the true one, one for each left-out unit, then the flips; (n, 1 + n_units + n_flips)."""
    truth, units = contrast.labels, contrast.units
    n_units = units.max() + 1
    flipped = np.empty((len(truth), n_flips), bool)
    for flip in range(n_flips):
        flipped[:, flip] = truth ^ (rng.random(n_units) < 0.5)[units] if contrast.paired else rng.permutation(truth)
    labels = np.hstack([np.repeat(truth[:, None], 1 + n_units, axis=1), flipped])
    present = np.ones(labels.shape, bool)
    present[:, 1 : 1 + n_units] = units[:, None] != np.arange(n_units)
    return (labels & present).astype(float), (~labels & present).astype(float)


def _measure(
    x: np.ndarray, contrast: Contrast, plus: np.ndarray, minus: np.ndarray, probe: bool, rng: int
) -> dict[str, float]:
    names = (*CLUSTER_METRICS, *(PROBE_METRICS if probe else ()))
    if not np.ptp(x, axis=0).max() > 0:
        columns = [name + suffix for name in names for suffix in ("", "_low", "_high")]
        columns += [name + suffix for name in CLUSTER_METRICS for suffix in ("_null_low", "_null_high")]
        return dict.fromkeys(columns, float("nan"))
    row = {}
    n_units = contrast.units.max() + 1
    for name, values in cluster_metrics(x, plus, minus).items():
        left_out, null = values[1 : 1 + n_units], values[1 + n_units :]
        error = np.sqrt((n_units - 1) * left_out.var())
        low, high = np.quantile(null, [0.05, 0.95])
        row |= {name: values[0], f"{name}_low": values[0] - _Z95 * error, f"{name}_high": values[0] + _Z95 * error}
        row |= {f"{name}_null_low": low, f"{name}_null_high": high}
    if probe:
        row |= probe_scores(x, contrast.labels, contrast.units, rng=rng)
    return {name: float(value) for name, value in row.items()}


def _check_size(contrast: Contrast) -> None:
    smallest = min(len(contrast.h0), len(contrast.h1))
    if smallest < SMALLEST_SIDE:
        raise ValueError(
            f"persona {contrast.persona!r} has {len(contrast.h1)} statements under H1 and {len(contrast.h0)} under H0; "
            f"at least {SMALLEST_SIDE} on each side are needed."
        )
