"""Figures of statements as points: one layer, many personas, many layers, many components."""

import re
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from utils.viz.style import NEGATIVE, POSITIVE, label_grid, new_axes, persona_grid, short_name


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
        plot_embedding(own, ax=ax, title=short_name(persona))
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
