"""Figures of sets: UpSet plots and Venn diagrams of node sets."""

import logging
import warnings
from collections.abc import Mapping
from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.nodes.sets import NodeSet, membership
from utils.viz.style import (
    OKABE_ITO,
    persona_label,
)

logger = logging.getLogger(__name__)
LARGEST_VENN = 6


def plot_venn(sets: Mapping[str, NodeSet], *, ax: Axes | None = None) -> Axes:
    """Draw two to six node sets as a Venn diagram; with two and three, areas are proportional.

    Empty sets have no area; they are named below the diagram. More than six sets that are not empty are drawn as an
    UpSet plot instead, which says so above and in a warning; the axes returned are then those of its matrix.

    Raises
    ------
    ValueError
        Fewer than two sets, all sets empty, or ``ax`` given and too many sets, as an UpSet plot is several axes.
    """
    if len(sets) < 2:
        raise ValueError(f"a Venn diagram shows two to six sets, not {len(sets)}; use plot_upset.")
    filled = {name: held for name, held in sets.items() if held}
    if not filled:
        raise ValueError("all node sets are empty; lower the frequency threshold.")
    if len(filled) > LARGEST_VENN:
        return _replace_venn(sets, len(filled), ax)
    ax = ax if ax is not None else plt.figure(figsize=(6, 5)).add_subplot()
    names = [_label(name, held) for name, held in filled.items()]
    members = [set(held) for held in filled.values()]
    colours = [colour for colour, held in zip(OKABE_ITO, sets.values(), strict=False) if held]
    if len(filled) <= 3:
        _draw_areas(members, names, colours, ax)
    else:
        _draw_petals(members, names, colours, ax)
    _name_empty([_label(name, held) for name, held in sets.items() if not held], ax)
    return ax


def plot_upset(sets: Mapping[str, NodeSet], *, max_intersections: int = 25, title: str | None = None) -> Figure:
    """Draw the exclusive intersections of any number of node sets, the largest first.

    What is not drawn, empty sets and the smallest intersections, is named below. Returns a Figure and not Axes: the plot
    is several axes that the library lays out by itself.

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
    smallest, missing = _cut(membership(filled).value_counts(), max_intersections)
    if empty := [persona_label(name) for name, held in sets.items() if not held]:
        missing.append(f"empty sets: {', '.join(empty)}")
    # Items as text: the library takes tuples apart.
    data = UpsetData.from_sets(
        [{f"{node}{sign:+d}" for node, sign in held} for held in filled.values()],
        sets_names=[persona_label(name) for name in filled],
    )
    plot = Upset(data, orient="h", min_cardinality=smallest, fontsize=9, size_scale=0.6, sort_subsets="-cardinality")
    pad: Any = 0.15  # inches; declared as a whole number by the library
    if title is not None:
        plot.add_title(top=fill(title, 36), align="left", fontsize=9, pad=pad)
    if missing:
        plot.add_title(bottom=fill(f"Not drawn: {'; '.join(missing)}", 36), align="left", fontsize=8, pad=pad)
    plot.set_margin(0.2)
    before = set(plt.get_fignums())
    plot.render()
    figure = plot.figure
    for number in set(plt.get_fignums()) - before:
        if plt.figure(number) is not figure:
            plt.close(number)
    return figure


def _replace_venn(sets: Mapping[str, NodeSet], n_filled: int, ax: Axes | None) -> Axes:
    reason = f"{n_filled} sets are more than a Venn diagram shows ({LARGEST_VENN})"
    if ax is not None:
        raise ValueError(f"{reason}, and an UpSet plot does not fit into one axes; leave out ax or use plot_upset.")
    logger.warning("%s; drawn as an UpSet plot", reason)
    # The library draws the matrix first.
    return plot_upset(sets, title=f"{reason}: drawn as an UpSet plot.").axes[0]


def _cut(counts: pd.Series, max_intersections: int) -> tuple[int, list[str]]:
    """The size from which intersections are drawn, and a description of those that are not."""
    smallest = int(np.sort(counts.to_numpy())[::-1][:max_intersections][-1])
    # Ties at the cut would bring in many small intersections: leave them out unless nothing else remains.
    if len(counts) > max_intersections and (counts > smallest).any() and (counts >= smallest).sum() > max_intersections:
        smallest += 1
    hidden = counts[counts < smallest]
    if not len(hidden):
        return smallest, []
    return smallest, [f"{len(hidden)} intersections of at most {hidden.max()} node{'s' if hidden.max() > 1 else ''}"]


def _label(name: str, held: NodeSet) -> str:
    return f"{persona_label(name)} ({len(held)})"


def _name_empty(labels: list[str], ax: Axes) -> None:
    """Write the names of empty sets below a diagram, one a line."""
    for line, label in enumerate(["empty:", *labels] if labels else []):
        offset = (0, -16 - 12 * line)
        ax.annotate(label, (0, 0), xycoords="axes fraction", xytext=offset, textcoords="offset points", fontsize=9)


def _draw_areas(members: list[set], names: list[str], colours: list[str], ax: Axes) -> None:
    import matplotlib_venn

    if alone := len(members) == 1:
        # The library needs two sets: the other one has no area, and nothing of it is to be seen.
        members, names, colours = [*members, set()], [*names, ""], [*colours, "white"]
    # The two functions share their arguments, but not their types.
    draw: Any = matplotlib_venn.venn2 if len(members) == 2 else matplotlib_venn.venn3
    with warnings.catch_warnings():
        # Sets without a node of their own leave regions without an area.
        warnings.filterwarnings("ignore", message=".*zero area")
        drawn = draw(members, set_labels=names, set_colors=tuple(colours), alpha=0.6, ax=ax)
    if alone and (count := drawn.get_label_by_id("01")) is not None:
        count.set_visible(False)


def _draw_petals(members: list[set], names: list[str], colours: list[str], ax: Axes) -> None:
    import venn

    draw: Any = venn.venn if len(members) < 6 else venn.pseudovenn
    draw(dict(zip(names, members, strict=True)), ax=ax, cmap=colours, fontsize=8, legend_loc="upper left")
    for text in ax.texts:
        text.set_visible(text.get_text() != "0")
    if legend := ax.get_legend():
        legend.set_bbox_to_anchor((1.0, 1.0))
