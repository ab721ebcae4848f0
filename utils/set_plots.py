"""Figures of sets: UpSet plots and Venn diagrams of node sets."""

import logging
import warnings
from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.nodes import NodeSet, membership
from utils.viz import short_name

logger = logging.getLogger(__name__)

OKABE_ITO = ["#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#0072B2", "#D55E00"]


def plot_venn(sets: Mapping[str, NodeSet], *, ax: Axes | None = None) -> Axes:
    """Draw two to six node sets as a Venn diagram; with two and three, areas are proportional.

    Raises
    ------
    ValueError
        Fewer than two or more than six sets (use :func:`plot_upset`), or all sets empty.
    """
    if not 2 <= len(sets) <= 6:
        raise ValueError(f"a Venn diagram shows two to six sets, not {len(sets)}; use plot_upset.")
    if not any(sets.values()):
        raise ValueError("all node sets are empty; lower the frequency threshold.")
    ax = ax if ax is not None else plt.figure(figsize=(6, 5)).add_subplot()
    names = [f"{short_name(name)} ({len(held)})" for name, held in sets.items()]
    members = [set(held) for held in sets.values()]
    colours = OKABE_ITO[: len(sets)]
    if len(sets) <= 3:
        _draw_areas(members, names, colours, ax)
    else:
        _draw_petals(members, names, colours, ax)
    return ax


def plot_upset(sets: Mapping[str, NodeSet], *, max_intersections: int = 25) -> Figure:
    """Draw the exclusive intersections of any number of node sets, the largest first.

    Returns a Figure and not Axes: the plot is several axes that the library lays out by itself.

    Raises
    ------
    ValueError
        Fewer than two sets are not empty.
    """
    from marsilea.upset import Upset, UpsetData

    filled = {name: held for name, held in sets.items() if held}
    if len(filled) < 2:
        raise ValueError(
            "an UpSet plot needs at least two node sets that are not empty; lower the frequency threshold."
        )
    table = membership(filled)
    counts = table.value_counts()
    smallest = int(np.sort(counts.to_numpy())[::-1][:max_intersections][-1])
    # Ties at the cut would bring in many small intersections: leave them out unless nothing else remains.
    if len(counts) > max_intersections and (counts > smallest).any() and (counts >= smallest).sum() > max_intersections:
        smallest += 1
    if (hidden := int((counts < smallest).sum())) > 0:
        logger.info("%d intersections of fewer than %d nodes are not drawn", hidden, smallest)
    # Items as text: the library takes tuples apart.
    data = UpsetData.from_sets(
        [{f"{node}{sign:+d}" for node, sign in held} for held in filled.values()],
        sets_names=[short_name(name) for name in filled],
    )
    plot = Upset(data, orient="h", min_cardinality=smallest, fontsize=9, size_scale=0.6, sort_subsets="-cardinality")
    before = set(plt.get_fignums())
    plot.render()
    figure = plot.figure
    for number in set(plt.get_fignums()) - before:
        if plt.figure(number) is not figure:
            plt.close(number)
    return figure


def _draw_areas(members: list[set], names: list[str], colours: list[str], ax: Axes) -> None:
    import matplotlib_venn

    # The two functions share their arguments, but not their types.
    draw: Any = matplotlib_venn.venn2 if len(members) == 2 else matplotlib_venn.venn3
    with warnings.catch_warnings():
        # An empty set has no area to draw, which its label says.
        warnings.filterwarnings("ignore", message=".*zero area")
        draw(members, set_labels=names, set_colors=tuple(colours), alpha=0.6, ax=ax)


def _draw_petals(members: list[set], names: list[str], colours: list[str], ax: Axes) -> None:
    import venn

    draw: Any = venn.venn if len(members) < 6 else venn.pseudovenn
    draw(dict(zip(names, members, strict=True)), ax=ax, cmap=colours, fontsize=8, legend_loc="upper left")
    for text in ax.texts:
        text.set_visible(text.get_text() != "0")
    if legend := ax.get_legend():
        legend.set_bbox_to_anchor((1.0, 1.0))
