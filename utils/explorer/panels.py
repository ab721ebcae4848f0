"""The picture of an exploratory scan: precision and recall, scores, nodes, and the statements in two dimensions."""

from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.ticker import MaxNLocator

from utils.explorer.rescan import NODE_SHARE, Rescan
from utils.viz.style import NEGATIVE, NULL, POSITIVE

_SIZE = (9.4, 5.6)


@dataclass(frozen=True)
class Panels:
    """A figure of four panels, of which what never changes is painted once: half of the time goes into text.

    Attributes
    ----------
    figure
        For :func:`draw_panels`; pyplot does not know it, so nothing has to close it.
    canvas, still
        What it is painted on, and the pixels of what never changes.
    """

    figure: Figure
    canvas: FigureCanvasAgg
    still: Any

    def paint(self) -> bytes:
        """The picture as PNG."""
        self.canvas.restore_region(self.still)
        for ax in self.figure.axes:
            shown = {*ax.lines, *ax.collections, *ax.texts}
            moving = [artist for artist in ax.get_children() if artist in shown or artist.get_animated()]
            for artist in sorted(moving, key=lambda artist: artist.get_zorder()):
                ax.draw_artist(artist)
        self.figure.draw_artist(self.figure.texts[0])
        png = BytesIO()
        imsave(png, np.asarray(self.canvas.buffer_rgba()), format="png", pil_kwargs={"compress_level": 1})
        return png.getvalue()


def make_panels() -> Panels:
    """Four empty panels for :func:`draw_panels`."""
    figure = Figure(figsize=_SIZE, dpi=90)
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2)
    # Fixed margins: finding them anew would take longer than drawing.
    figure.subplots_adjust(left=0.09, right=0.985, bottom=0.085, top=0.855, wspace=0.2, hspace=0.5)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
        # Titles and labels at given places: looking for free ones takes a third of the time of drawing.
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_label_coords(0.5, -0.2)
        ax.xaxis.set_major_locator(MaxNLocator(4))
    for ax, ticks, labels in zip(axes[0], ([1, 0], [1, 0]), (_RECORDS, _SIDES), strict=True):
        ax.set_yticks(ticks, labels)
        ax.set_ylim(-0.6, 1.6)
    axes[0, 0].set(xlim=(-0.02, 1.02), xticks=[0, 0.5, 1])
    axes[1, 0].set(ylim=(0, 1.05))
    axes[1, 0].set_yticks([0, 0.5, 1])
    axes[1, 1].set(xticks=[], yticks=[])
    for ax, title in zip(axes.flat, _TITLES, strict=True):
        ax.set_title(title, fontsize=9, loc="left", y=1.0)
    for ax in axes[1]:
        # Above the title.
        ax.annotate("", (0, 1), (0, 17.5), "axes fraction", "offset points", fontsize=9)
    for axis in (axes[0, 1].xaxis, axes[1, 0].xaxis):
        axis.set_animated(True)
    figure.suptitle("", fontsize=10, y=0.985)
    canvas.draw()
    return Panels(figure, canvas, canvas.copy_from_bbox(figure.bbox))


def draw_panels(found: Rescan, figure: Figure) -> np.ndarray:
    """Draw what a scan found, in place of what the figure showed.

    Parameters
    ----------
    figure
        Of :func:`make_panels`. Its axes and ticks are kept: making them is most of the work of drawing.

    Returns
    -------
    ndarray of Axes
        (2, 2): precision and recall; scores; nodes; statements.
    """
    axes = np.array(figure.axes).reshape(2, 2)
    for ax in axes.flat:
        for artist in [*ax.lines, *ax.collections]:
            artist.remove()
    setting, n = found.setting, len(found.points)
    units = f"{n // 2} pairs" if found.paired else f"{n} statements"
    part = f"all {units}" if setting.part == "all" else f"{units} of the {setting.part} part"
    figure.texts[0].set_text(
        f"{setting.persona}, layer {setting.layer}, {part}\n"
        f"{setting.n_runs} runs beside {setting.n_permutations} flips of the sides: to explore, not a test"
    )
    _draw_records(found.mixed, found.chance, axes[0, 0])
    _draw_scores(found.mixed, found.null, axes[0, 1])
    _draw_nodes(found, axes[1, 0])
    _draw_points(found.points, axes[1, 1])
    return axes


_TITLES = (
    "records that each run returned (dotted: precision by chance)",
    "scan score of each run",
    "orange above the background, blue below, black neither",
    "ring: returned by a run, thicker for more runs",
)
_RECORDS = ("precision", "recall")
_SIDES = ("true sides", "sides\nflipped")


def _draw_records(mixed: pd.DataFrame, chance: float, ax: Axes) -> None:
    ax.axvline(chance, color=NULL, ls=":", lw=1.2)
    for y, name, colour in ((1, "precision", POSITIVE), (0, "recall", NEGATIVE)):
        _draw_strip(mixed[name], y, colour, ax)


def _draw_scores(mixed: pd.DataFrame, null: pd.DataFrame, ax: Axes) -> None:
    for y, scores, colour in ((1, mixed["score"], POSITIVE), (0, null["score"], NULL)):
        _draw_strip(scores, y, colour, ax)
    both = pd.concat([mixed["score"], null["score"]])
    margin = 0.05 * (both.max() - both.min()) or 1.0
    ax.set_xlim(both.min() - margin, both.max() + margin)


def _draw_strip(values: pd.Series, y: float, colour: str, ax: Axes) -> None:
    """One dot a run, spread out evenly in height, and a black line at the mean."""
    height = y + 0.3 * (2 * (np.arange(len(values)) * 0.618 % 1) - 1)
    ax.plot(values, height, "o", ms=4.5, mew=0, alpha=0.6, color=colour)
    ax.vlines(values.mean(), y - 0.42, y + 0.42, color="black", lw=1.6)


def _draw_nodes(found: Rescan, ax: Axes) -> None:
    nodes = found.nodes
    often = nodes["frequency"] >= NODE_SHARE
    for chosen, colour, size in (
        (~often, NULL, 4),
        (often & (nodes["sign"] > 0), POSITIVE, 16),
        (often & (nodes["sign"] < 0), NEGATIVE, 16),
        (often & (nodes["sign"] == 0), "black", 16),
    ):
        ax.scatter(nodes["node"][chosen], nodes["frequency"][chosen], s=size, color=colour, lw=0, alpha=0.8)
    ax.axhline(NODE_SHARE, color="black", ls="--", lw=0.8)
    ax.set_xlim(-0.01 * found.runs.n_nodes, 1.01 * found.runs.n_nodes)
    ax.texts[0].set_text(
        f"nodes by share of runs: {found.n_nodes} in half or more ({found.null_n_nodes:.0f} if flipped),"
    )


def _draw_points(points: pd.DataFrame, ax: Axes) -> None:
    for direction, colour, marker in (("negative", NEGATIVE, "o"), ("positive", POSITIVE, "^")):
        side = points[points["direction"] == direction]
        ax.scatter(side["x1"], side["x2"], s=13, color=colour, marker=marker, alpha=0.65, lw=0)
    hit = points[points["returned"] > 0]
    ax.scatter(hit["x1"], hit["x2"], s=45, facecolor="none", edgecolor="black", lw=0.5 * np.sqrt(hit["returned"]))
    for axis, name in (("x", "x1"), ("y", "x2")):
        low, high = points[name].min(), points[name].max()
        margin = 0.06 * (high - low) or 1.0
        getattr(ax, f"set_{axis}lim")(low - margin, high + margin)
    explained = points.attrs["explained"]
    ax.texts[0].set_text(f"statements on PC1 ({explained[0]:.0%}) and PC2 ({explained[1]:.0%}), orange: positive")
