"""Figures of layers: curves, heatmaps, the metrics side by side, the verdict on the thirds, and statements as points."""

import re
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from utils.viz.style import NEGATIVE, NULL, NULL_LABEL, POSITIVE, label_grid, new_axes, persona_grid, persona_label

METRIC_LABELS = {
    "centroid_distance": "centroid distance (spreads)",
    "silhouette": "silhouette",
    "calinski_harabasz": "Calinski–Harabasz",
    "davies_bouldin": "Davies–Bouldin (lower = apart)",
    "fisher_ratio": "Fisher ratio",
    "mmd": "squared MMD",
    "probe_accuracy": "probe accuracy",
    "probe_auroc": "probe AUROC",
}
METRIC_LABELS |= {f"pca_{name}": f"{label}, PCA space" for name, label in METRIC_LABELS.items() if "probe" not in name}
_VERDICTS = {"supported": "#009E73", "mixed": NULL, "not supported": "#CC79A7"}
# Of each metric: its name beside the axis, and whether a smaller value means further apart.
_METRICS = {
    "centroid_distance": "centroid distance",
    "silhouette": "silhouette",
    "calinski_harabasz": "Calinski–Harabasz",
    "davies_bouldin": "−Davies–Bouldin",
    "fisher_ratio": "Fisher ratio",
    "mmd": "MMD",
    "pca_silhouette": "silhouette, PCA space",
    "probe_auroc": "probe AUROC",
}


def plot_layer_curve(
    table: pd.DataFrame, *, metric: str = "silhouette", mark: int | None = None, ax: Axes | None = None
) -> Axes:
    """Draw one persona's metric over layers with its interval, and the label-flip band where there is one.

    Parameters
    ----------
    table
        Rows of :func:`utils.layers.divergence` for one persona.
    mark
        A layer to mark with a vertical line.
    """
    ax = ax if ax is not None else new_axes(4.5, 3)
    layer = table["layer"]
    if f"{metric}_null_low" in table:
        ax.fill_between(
            layer,
            table[f"{metric}_null_low"],
            table[f"{metric}_null_high"],
            color=NULL,
            alpha=0.35,
            lw=0,
            label=NULL_LABEL,
        )
    elif metric.startswith("probe"):
        ax.axhline(0.5, color=NULL, ls=":", lw=1.2, label="chance")
    ax.fill_between(
        layer, table[f"{metric}_low"], table[f"{metric}_high"], color=POSITIVE, alpha=0.25, lw=0, label="95 % interval"
    )
    ax.plot(layer, table[metric], color=POSITIVE, lw=1.6, label=METRIC_LABELS[metric])
    if mark is not None:
        ax.axvline(mark, color="black", ls="--", lw=0.9, label=f"scanned layer ({mark})")
    ax.set(xlabel="layer", ylabel=METRIC_LABELS[metric], xlim=(0, layer.max()))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    return ax


def plot_layer_curves(table: pd.DataFrame, *, metric: str = "silhouette", mark: int | None = None) -> np.ndarray:
    """Draw every persona's curve in a panel of its own, one row a topic; returns the array of Axes."""
    axes, panels = persona_grid(table, sharex=True, sharey=True, height=1.9)
    for persona, ax in panels.items():
        plot_layer_curve(table[table["persona"] == persona], metric=metric, mark=mark, ax=ax)
        ax.set(title=persona_label(persona), xlabel="", ylabel="")
    label_grid(axes, panels, xlabel="layer (residual stream after block)", ylabel=METRIC_LABELS[metric])
    return axes


def plot_layer_heatmap(
    table: pd.DataFrame, *, metric: str = "silhouette", mark: int | None = None, ax: Axes | None = None
) -> Axes:
    """Draw a metric as persona × layer."""
    personas = list(table["persona"].unique())
    wide = table.pivot(index="persona", columns="layer", values=metric).loc[personas]
    ax = ax if ax is not None else new_axes(9, 0.9 + 0.3 * len(wide))
    sns.heatmap(
        wide, ax=ax, cmap="cividis", cbar_kws={"label": METRIC_LABELS[metric]}, rasterized=True, yticklabels=False
    )
    layers = list(wide.columns)
    step = max(1, len(layers) // 12)
    ax.set_xticks(np.arange(0, len(layers), step) + 0.5, layers[::step], rotation=0)
    ax.set_yticks(np.arange(len(wide)) + 0.5, [persona_label(name) for name in wide.index], rotation=0)
    if mark in layers:
        ax.axvline(layers.index(mark), color="white", lw=1.2)
        ax.axvline(layers.index(mark) + 1, color="white", lw=1.2)
    ax.set(xlabel="layer" + (f" (framed: {mark}, scanned)" if mark in layers else ""), ylabel="")
    return ax


def plot_thirds(table: pd.DataFrame, *, metric: str = "pair accuracy", ax: Axes | None = None) -> Axes:
    """Draw d = mean(last) − max(mean(first), mean(middle)) of every persona with its interval and verdict.

    Parameters
    ----------
    table
        As :func:`utils.layers.layer_thirds` returns it; a row without persona is the model.
    metric
        What d is a difference of.
    """
    ax = ax if ax is not None else new_axes(7, 0.9 + 0.3 * len(table))
    place = np.arange(len(table))[::-1]
    ax.axvline(0, color="black", lw=0.8)
    for verdict, colour in _VERDICTS.items():
        at = (table["verdict"] == verdict).to_numpy()
        if at.any():
            d, low, high = (table[name].to_numpy()[at] for name in ("d", "d_low", "d_high"))
            ax.errorbar(
                d, place[at], xerr=[d - low, high - d], fmt="o", color=colour, ms=5, lw=1.6, capsize=2, label=verdict
            )
    ax.set_yticks(place, [persona_label(name) for name in table["persona"]])
    ax.set(xlabel=f"{metric}, last third − larger of first and middle third (95 % interval)")
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.set_ylim(-0.6, len(table) - 0.4)
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return ax


def plot_metric_map(table: pd.DataFrame, *, mark: int | None = None, ax: Axes | None = None) -> Axes:
    """Draw metric × layer for one persona, each metric from its lowest (dark) to its highest layer (bright).

    A dot marks a value further apart than 95 % of flipped sides, where there are flips.

    Parameters
    ----------
    table
        Rows of :func:`utils.layers.divergence` for one persona; layers without a value are left out.
    mark
        A layer to mark with a vertical line.
    """
    table = table.dropna(subset="silhouette")
    shown = [name for name in _METRICS if name in table]
    ax = ax if ax is not None else new_axes(9, 0.9 + 0.32 * len(shown))
    layers = table["layer"].tolist()
    turned = np.array([-1 if name.endswith("davies_bouldin") else 1 for name in shown])[:, None]
    values = turned * table[shown].to_numpy().T  # (metric, layer)
    lowest, spread = values.min(axis=1, keepdims=True), np.ptp(values, axis=1, keepdims=True)
    shades = (values - lowest) / np.where(spread > 0, spread, 1)
    edges = (-0.5, len(layers) - 0.5, len(shown) - 0.5, -0.5)
    ax.imshow(shades, aspect="auto", cmap="cividis", extent=edges)
    for y, (name, sign) in enumerate(zip(shown, turned[:, 0], strict=True)):
        bound = f"{name}_null_{'low' if sign < 0 else 'high'}"
        if bound in table:
            beyond = np.flatnonzero(values[y] > sign * table[bound].to_numpy())
            ax.plot(beyond, np.full(len(beyond), y), ".", color=POSITIVE, ms=4)
    step = max(1, len(layers) // 8)
    ax.set_xticks(range(0, len(layers), step), layers[::step])
    ax.set_yticks(range(len(shown)), [_METRICS[name] for name in shown])
    if mark in layers:
        ax.axvline(layers.index(mark), color="white", ls="--", lw=1)
    ax.set(xlabel="layer")
    return ax


def plot_metric_maps(table: pd.DataFrame, *, mark: int | None = None) -> np.ndarray:
    """Draw :func:`plot_metric_map` for every persona, one row a topic; returns the array of Axes."""
    axes, panels = persona_grid(table, sharex=True, sharey=True, height=2.0)
    for persona, ax in panels.items():
        plot_metric_map(table[table["persona"] == persona], mark=mark, ax=ax)
        ax.set_title(persona_label(persona), fontsize=9)
        ax.tick_params(labelsize=7)
        ax.set_xlabel("")
    axes.flat[0].figure.supxlabel("layer (residual stream after block)", fontsize=9)
    return axes


def plot_embedding(points: pd.DataFrame, *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Draw statements in two dimensions, coloured by direction.

    Parameters
    ----------
    points
        As :func:`utils.layers.reduce` returns them.
    """
    ax = ax if ax is not None else new_axes(4, 3.6)
    for direction, colour, marker in (("negative", NEGATIVE, "o"), ("positive", POSITIVE, "^")):
        side = points[points["direction"] == direction]
        ax.scatter(side["x1"], side["x2"], s=13, color=colour, marker=marker, alpha=0.65, lw=0, label=direction)
    explained = points.attrs.get("explained")
    names = [f"PC{i + 1} ({share:.0%})" for i, share in enumerate(explained)] if explained else ["x1", "x2"]
    ax.set(xticks=[], yticks=[], title=title)
    ax.set_xlabel(names[0], fontsize=8)
    ax.set_ylabel(names[1], fontsize=8)
    return ax


def plot_embeddings(points: pd.DataFrame, *, explained: dict[str, list[float]] | None = None) -> np.ndarray:
    """Draw :func:`plot_embedding` for every persona, one row a topic; returns the array of Axes."""
    axes, panels = persona_grid(points, sharex=False, sharey=False, height=2.1)
    for persona, ax in panels.items():
        own = points[points["persona"] == persona].copy()
        own.attrs["explained"] = (explained or {}).get(persona)
        plot_embedding(own, ax=ax, title=persona_label(persona))
    label_grid(axes, panels, markerscale=2)
    return axes


def plot_layer_embeddings(points: pd.DataFrame, *, columns: int = 6) -> np.ndarray:
    """Draw one shared embedding of several layers, a panel a layer on the same axes; returns the array of Axes.

    Parameters
    ----------
    points
        As :func:`utils.layers.reduce` returns them for several layers.
    """
    layers = points["layer"].unique()
    columns = min(columns, len(layers))
    rows = -(-len(layers) // columns)
    _, axes = plt.subplots(
        rows,
        columns,
        figsize=(2.1 * columns, 2.1 * rows + 0.4),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for ax in axes.flat[len(layers) :]:
        ax.set_visible(False)
    panels = {str(layer): ax for layer, ax in zip(layers, axes.flat, strict=False)}
    for layer, ax in panels.items():
        plot_embedding(points[points["layer"].astype(str) == layer], ax=ax)
        ax.set_title(f"layer {layer}", fontsize=9)
        ax.set(xlabel="", ylabel="")
    label_grid(axes, panels, markerscale=2)
    return axes


def plot_component_pairs(points: pd.DataFrame) -> np.ndarray:
    """Draw every two components of a reduction against each other; returns the array of Axes, None above the diagonal.

    Parameters
    ----------
    points
        As :func:`utils.layers.reduce` returns them, with two components or more.
    """
    names = [name for name in map(str, points.columns) if re.fullmatch(r"x\d+", name)]
    grid: Any = sns.PairGrid(
        points, vars=names, hue="direction", hue_order=["negative", "positive"], palette=[NEGATIVE, POSITIVE],
        hue_kws={"marker": ["o", "^"]}, corner=True, height=1.7,
    )  # fmt: skip
    grid.map_lower(plt.scatter, s=9, alpha=0.6, lw=0)
    grid.map_diag(sns.kdeplot, fill=True, alpha=0.25, lw=1)
    grid.add_legend(title="")
    for ax in grid.axes.flat:
        if ax is not None:
            ax.set(xticks=[], yticks=[])
    return grid.axes
