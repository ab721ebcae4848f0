"""What the figures share: colours, short names, and grids of panels, one a persona.

Colours are from the Okabe–Ito palette, which colour-blind readers can tell apart.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from utils.viz.labels import as_label, persona_label, short_name

__all__ = [
    "NEGATIVE", "NULL", "NULL_LABEL", "OKABE_ITO", "POSITIVE", "as_label", "label_grid", "new_axes", "persona_grid",
    "persona_label", "series_styles", "short_name",
]  # fmt: skip

POSITIVE, NEGATIVE, NULL = "#D55E00", "#0072B2", "#8A8A8A"
NULL_LABEL = "sides flipped, 5–95 %"

OKABE_ITO = ["#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#0072B2", "#D55E00"]
_COLOURS, _MARKERS, _LINES = OKABE_ITO[::-1], "os^Dv*", ("-", "--", ":")


def new_axes(width: float, height: float) -> Axes:
    """Axes of a figure of its own, sizes in inches."""
    return plt.figure(figsize=(width, height), layout="constrained").add_subplot()


def series_styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour, marker and line style of every series; with more than six colours repeat with other line styles."""
    n = len(_COLOURS)
    return {
        str(name): {"color": _COLOURS[i % n], "marker": _MARKERS[i % n], "ls": _LINES[i // n % len(_LINES)]}
        for i, name in enumerate(names)
    }


def persona_grid(
    table: pd.DataFrame, *, sharex: bool, sharey: bool, height: float
) -> tuple[np.ndarray, dict[str, Axes]]:
    """One panel a persona, one row a topic; panels without a persona are hidden."""
    topics = table.drop_duplicates("persona").groupby("topic", sort=False)["persona"].apply(list)
    rows = [chunk for personas in topics for chunk in _chunks(personas, 5)]
    columns = max(map(len, rows))
    size = (max(4.0, 2.15 * columns), height * len(rows) + 1.0)
    _, axes = plt.subplots(
        len(rows), columns, figsize=size, sharex=sharex, sharey=sharey, squeeze=False, layout="constrained"
    )
    panels = {}
    for row, personas in zip(axes, rows, strict=True):
        for ax in row[len(personas) :]:
            ax.set_visible(False)
        panels |= dict(zip(personas, row, strict=False))
    for ax in panels.values():
        ax.title.set_fontsize(9)
        ax.tick_params(labelsize=8)
    return axes, panels


def label_grid(
    axes: np.ndarray, panels: dict[str, Axes], *, xlabel: str = "", ylabel: str = "", markerscale: float = 1
) -> None:
    """One legend above all panels, and one label for each axis."""
    figure = axes.flat[0].figure
    handles, labels = next(iter(panels.values())).get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=4, frameon=False, markerscale=markerscale, fontsize=9
    )
    figure.supxlabel(xlabel, fontsize=10)
    figure.supylabel(ylabel, fontsize=10)


def _chunks(names: list[str], size: int) -> Sequence[list[str]]:
    return [names[i : i + size] for i in range(0, len(names), size)]
