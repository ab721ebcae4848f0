"""Figures of an audit: how many nodes the runs choose, and what the sets of two sources share."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from utils.viz.style import new_axes, persona_label, series_styles

_PAIR = ("a", "kind_a", "b", "kind_b")


def plot_union_sizes(profiles: pd.DataFrame, *, shares: list[float] | None = None, ax: Axes | None = None) -> Axes:
    """Draw how many nodes at least a share of the runs chose, a line a source; dashed for its clean runs.

    Parameters
    ----------
    profiles
        One row a source, kind of runs and share: ``source, kind`` (mixed or clean), ``share, size, n_nodes``. The
        share runs from one run, the union over all, to every run.
    shares
        Shares to mark with a vertical line.
    """
    ax = ax if ax is not None else new_axes(7.5, 3.8)
    for share in shares or ():
        if share > 0:
            ax.axvline(share, color="#BBBBBB", lw=0.8, zorder=0)
    for name, style in series_styles(profiles["source"].unique()).items():
        for kind, own in profiles[profiles["source"] == name].groupby("kind", sort=False):
            clean = kind != "mixed"
            look = {"ls": "--", "lw": 1.2, "alpha": 0.9} if clean else {"ls": style["ls"], "lw": 1.8}
            label = f"{persona_label(name)}, {kind} runs" if clean else persona_label(name)
            # From no run on: the first value holds up to one run.
            x, y = np.append(0, own["share"]), own["size"] / own["n_nodes"]
            ax.plot(x, np.append(y.iloc[0], y), color=style["color"], drawstyle="steps-pre", label=label, **look)
    ax.xaxis.set_major_formatter(PercentFormatter(1))
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.set(
        xlim=(0, 1),
        ylim=(0, 1),
        xlabel="least share of the runs that chose a node (left end: any run)",
        ylabel="share of all nodes",
    )
    columns = 1 + profiles["source"].nunique() // 16
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8, ncols=columns)
    return ax


def plot_excess(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the overlap of every pair less what independence gives, as a share of the smaller set, a column a share of runs.

    The scale is always from -1 to 1. In the cells: nodes that are shared, and how many are expected. Dots: more or fewer at
    adjusted p ≤ 0.05. Grey: a set is empty.

    Parameters
    ----------
    table
        One row a pair and share, as of :func:`utils.audit.overlap_table`: ``a, kind_a, b, kind_b, share, shared,
        expected, excess, verdict``.
    """
    cells = [(tuple(row[name] for name in _PAIR), row) for row in table.to_dict("records")]
    rows, columns = list(dict.fromkeys(pair for pair, _ in cells)), sorted(table["share"].unique())
    ax = ax if ax is not None else new_axes(4.6 + 1.15 * len(columns), 1.6 + 0.36 * len(rows))
    ax.set_facecolor("#E4E4E4")
    edges = np.arange(len(columns) + 1), np.arange(len(rows) + 1)
    values = np.full((len(rows), len(columns)), np.nan)
    for pair, cell in cells:
        values[rows.index(pair), columns.index(cell["share"])] = cell["excess"]
    shown = ax.pcolormesh(*edges, np.ma.masked_invalid(values), cmap="PuOr_r", vmin=-1, vmax=1, ec="white", lw=0.8)
    for pair, cell in cells:
        x, y = columns.index(cell["share"]), rows.index(pair)
        dark = abs(np.nan_to_num(cell["excess"])) > 0.6
        expected = f"{cell['expected']:,.0f}" if cell["expected"] >= 10 else f"{cell['expected']:.2g}"
        text = f"{cell['shared']:,} ({expected})"
        ax.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
        if cell["verdict"] != "as many":
            ax.plot(x + 0.93, y + 0.2, "o", color="white", ms=4.5, mec="black", mew=0.9)
    ax.set_xticks(
        np.arange(len(columns)) + 0.5,
        ["any run" if share == 0 else f"{100 * share:g} % of runs" for share in columns],
        fontsize=8,
    )
    ax.set_yticks(np.arange(len(rows)) + 0.5, [_label_pair(*pair) for pair in rows], fontsize=8)
    ax.tick_params(length=0)
    ax.set(ylim=(len(rows), 0), xlabel="nodes chosen by at least")
    bar = ax.figure.colorbar(shown, ax=ax, pad=0.02, ticks=[-1, -0.5, 0, 0.5, 1])
    bar.set_label("shared − expected,\nas a share of the smaller set", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return ax


def _label_pair(a: str, kind_a: str, b: str, kind_b: str) -> str:
    if a == b:
        return f"{persona_label(a)}, {kind_a} – {kind_b} runs"
    named = [(a, kind_a), (b, kind_b)]
    return " – ".join(persona_label(name) + ("" if kind == "mixed" else f", {kind} runs") for name, kind in named)
