"""How far the two sides of a persona lie apart at each layer, with intervals and a label-flip baseline."""

import numpy as np
import pandas as pd
import xarray as xr
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from utils.intervals import describe, describe_nothing
from utils.layers.clusters import (
    CLUSTER_METRICS,
    cluster_metrics,
    draw_halves,
    flip_sides,
    gram_matrix,
    principal_gram,
    stack_members,
)
from utils.layers.probes import ProbePlan, plan_probes, probe_scores
from utils.layers.reduction import reduce
from utils.statements.contrasts import Contrast, find_contrasts

__all__ = [
    "CLUSTER_METRICS",
    "PCA_METRICS",
    "PROBE_METRICS",
    "SMALLEST_SIDE",
    "best_layer",
    "divergence",
    "layer_stability",
    "reduce",
]

PCA_METRICS = tuple(f"pca_{name}" for name in CLUSTER_METRICS)
PROBE_METRICS = ("probe_accuracy", "probe_auroc")
SMALLEST_SIDE = 5


def divergence(
    acts: xr.DataArray,
    contrasts: list[Contrast] | None = None,
    *,
    probe: bool = True,
    n_flips: int = 100,
    probe_flips: int = 20,
    n_components: int = 10,
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
        Label flips (within pairs where there are pairs) for the baseline of the cluster metrics; at least 20.
    probe_flips
        Label flips for the baseline of the probe, each a cross-validation of its own; 0 leaves its columns out.
    n_components
        Principal components of the PCA space; with fewer nodes, all of them.

    Returns
    -------
    DataFrame
        One row a persona and layer: ``persona, topic, layer, n_h0, n_h1`` and, for each metric, its value, its 95 %
        interval ``<metric>_low, <metric>_high`` and the 5th and 95th percentile under flipped labels
        ``<metric>_null_low, <metric>_null_high``. A layer where all statements have the same activation (layer 0 at
        the last token) is NaN.

        The cluster metrics ``centroid_distance, silhouette, calinski_harabasz, davies_bouldin`` (lower is further
        apart), ``fisher_ratio, mmd``: see :mod:`~utils.layers.clusters`.
        ``pca_<metric>`` is the same in the space of the first principal
        components, which are fitted to both sides together, labels unseen. ``probe_accuracy``,
        ``probe_auroc``: see :mod:`utils.layers.probes`.

    Raises
    ------
    ValueError
        A side with fewer than 5 statements, fewer statements than components, too few flips.

    Notes
    -----
    Intervals of the cluster metrics are delete-one-pair jackknife intervals: a bootstrap would duplicate statements, which
    lie at distance 0 and inflate the apparent clustering. They cover the value to be expected of as many other
    statements (93 to 99 % did in simulations, more without an effect; ``fisher_ratio`` without an effect and with
    many more nodes than statements 90 %). That is the population's value for ``mmd`` alone. The others depend on the number of
    statements, and without an effect ``centroid_distance, calinski_harabasz`` and ``fisher_ratio`` lie well above 0,
    and so may their intervals: whether there is an effect is for the flips to say.
    """
    if n_flips < 20:
        raise ValueError(f"n_flips must be at least 20 for a 5th and 95th percentile, not {n_flips}.")
    if probe_flips < 0 or 0 < probe_flips < 20:
        raise ValueError(f"probe_flips must be 0, or at least 20 for a 5th and 95th percentile, not {probe_flips}.")
    contrasts = find_contrasts(acts) if contrasts is None else contrasts
    for contrast in contrasts:
        check_contrast(contrast)
        if not 1 <= n_components <= len(contrast.rows):
            raise ValueError(
                f"n_components must be from 1 to the number of statements, {len(contrast.rows)} for persona "
                f"{contrast.persona!r}, not {n_components}."
            )
    rows = []
    total = len(contrasts) * acts.sizes["layer"]
    # The matrices are small: more BLAS threads cost more in waiting for each other than they gain.
    with (
        threadpool_limits(1, user_api="blas"),
        tqdm(total=total, desc="divergence", unit="layer", disable=not progress) as bar,
    ):
        for contrast in contrasts:
            labels, units = contrast.labels, contrast.units
            flips = flip_sides(labels, units, max(n_flips, probe_flips), np.random.default_rng(rng))
            members = stack_members(labels, units, flips[:, :n_flips])
            plan = plan_probes(labels, units, shuffled=flips[:, :probe_flips], rng=rng) if probe else None
            values = acts.isel(statement=contrast.rows).to_numpy()  # (layer, n, node)
            for layer, x in zip(acts["layer"].to_numpy(), values, strict=True):
                row = {"persona": contrast.persona, "topic": contrast.topic, "layer": int(layer)}
                row |= {"n_h0": len(contrast.h0), "n_h1": len(contrast.h1)}
                rows.append(row | _measure(x.astype(np.float64), members, units, n_components, plan))
                bar.update()
    return pd.DataFrame(rows)


def best_layer(table: pd.DataFrame, *, metric: str = "accuracy") -> int:
    """Choose the one layer at which all personas are compared: the best mean rank of ``metric`` over personas.

    Layers are ranked within each persona; ties go to the earlier layer. Layer 0 (before any block) takes no part, nor
    do layers where the metric is NaN for some persona. ``accuracy`` is that of :func:`utils.layers.layer_accuracy`.
    Give it a table from the ``select`` part only, so that what is reported on the ``test`` part is not what the layer
    was chosen on.

    Raises
    ------
    ValueError
        An unknown metric, or no layer left.
    """
    known = ("accuracy", *CLUSTER_METRICS, *PCA_METRICS, *PROBE_METRICS)
    if metric not in known or metric not in table:
        raise ValueError(f"the table has no metric {metric!r}; expected one of {', '.join(known)}.")
    wide = table[table["layer"] > 0].pivot(index="layer", columns="persona", values=metric).dropna()
    if wide.empty:
        raise ValueError("no layer above 0 has a finite metric for every persona.")
    mean_rank = wide.rank(ascending=metric.endswith("davies_bouldin"), method="average").mean(axis=1)
    return int(wide.index.to_numpy()[mean_rank.to_numpy().argmin()])


def layer_stability(
    acts: xr.DataArray,
    contrasts: list[Contrast] | None = None,
    *,
    metric: str = "silhouette",
    n_halves: int = 100,
    n_components: int = 10,
    rng: int = 0,
) -> pd.DataFrame:
    """How often random halves of the pairs pick each layer, by the rule of :func:`best_layer`.

    Every persona's pairs are halved anew each time; without pairs, the statements of each side.

    Parameters
    ----------
    acts, contrasts
        As for :func:`divergence`; give the contrasts of the ``select`` part, on which the layer is chosen.
    metric
        A cluster metric, ``pca_`` before it for PCA space (whose components are those of all statements).

    Returns
    -------
    DataFrame
        ``layer, share``: one row a layer of ``acts``, shares of the halves summing to 1.

    Raises
    ------
    ValueError
        An unknown metric, a side with fewer than 5 statements, no layer to pick.
    """
    if metric not in (*CLUSTER_METRICS, *PCA_METRICS):
        raise ValueError(
            f"unknown metric {metric!r}; expected one of {', '.join(CLUSTER_METRICS)}, or one of these after 'pca_'."
        )
    contrasts = find_contrasts(acts) if contrasts is None else contrasts
    layers = acts["layer"].to_numpy()
    frames = []
    with threadpool_limits(1, user_api="blas"):
        for contrast in contrasts:
            check_contrast(contrast)
            generator = np.random.default_rng([rng, len(frames)])
            members = draw_halves(contrast.labels, contrast.units, n_halves, generator)
            for layer, x in zip(layers, acts.isel(statement=contrast.rows).to_numpy(), strict=True):
                values = np.full(n_halves, np.nan)
                if np.ptp(x, axis=0).max() > 0:
                    gram = gram_matrix(x.astype(np.float64))
                    gram = principal_gram(gram, n_components) if metric.startswith("pca_") else gram
                    values = cluster_metrics(gram, members, contrast.units)[metric.removeprefix("pca_")]
                columns = {
                    "persona": contrast.persona,
                    "layer": int(layer),
                    "half": np.arange(n_halves),
                    metric: values,
                }
                frames.append(pd.DataFrame(columns))
    halves = pd.concat(frames, ignore_index=True)
    picked = [best_layer(half, metric=metric) for _, half in halves.groupby("half")]
    share = [picked.count(int(layer)) / n_halves for layer in layers]
    return pd.DataFrame({"layer": layers.astype(int), "share": share})


def check_contrast(contrast: Contrast) -> None:
    """Refuse a persona with a side too small to measure."""
    smallest = min(len(contrast.h0), len(contrast.h1))
    if smallest < SMALLEST_SIDE:
        raise ValueError(
            f"persona {contrast.persona!r} has {len(contrast.h1)} statements under H1 and {len(contrast.h0)} under H0; "
            f"at least {SMALLEST_SIDE} on each side are needed."
        )


def _measure(
    x: np.ndarray, members: np.ndarray, units: np.ndarray, n_components: int, plan: ProbePlan | None
) -> dict[str, float]:
    if not np.ptp(x, axis=0).max() > 0:
        nothing = describe_nothing((*CLUSTER_METRICS, *PCA_METRICS), shuffled=True)
        return nothing | (describe_nothing(PROBE_METRICS, shuffled=plan.labels.shape[1] > 1) if plan else {})
    n_units = int(units.max()) + 1
    gram = gram_matrix(x)
    row = {}
    for prefix, space in (("", gram), ("pca_", principal_gram(gram, n_components))):
        for name, values in cluster_metrics(space, members, units).items():
            row |= describe(prefix + name, values, n_units)
    return row | (probe_scores(x, plan) if plan else {})
