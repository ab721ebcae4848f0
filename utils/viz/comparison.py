"""Figures of several studies side by side; functions take the tables of :class:`utils.comparison.Comparison`.

A study keeps its colour and marker through all figures. With more than six studies colours repeat with other line styles.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.lines import Line2D

from utils.viz.layers import METRIC_LABELS
from utils.viz.style import NULL, as_label, new_axes, persona_grid, persona_label, series_styles

_FOUND = "#E69F00"
_LABELS = METRIC_LABELS | {"accuracy": "pair accuracy"}
# Of each column of the detection table: its name, and the values at both ends of the colours.
_DETECTION = {
    "accuracy": ("pair accuracy", 0.5, 1.0),
    "separation_p_adjusted": ("separation p", 0.001, 1.0),
    "calibrated_p_adjusted": ("calibrated p", 0.001, 1.0),
    "p_adjusted": ("scan p", 0.001, 1.0),
    "precision": ("precision", 0.0, 1.0),
    "recall": ("recall", 0.0, 1.0),
    "auroc": ("AUROC of records", 0.0, 1.0),
    "probe_auroc": ("probe AUROC", 0.5, 1.0),
    "form_accuracy": ("form accuracy", 0.5, 1.0),
}


def plot_depth_curve(
    table: pd.DataFrame, *, metric: str = "accuracy", studies: Sequence[str] | None = None, ax: Axes | None = None
) -> Axes:
    """Draw one persona's metric over relative depth, a line and its 95 % interval for each study.

    Dots mark layers where pair accuracy is above chance (p ≤ 0.05, adjusted over layers), and with other metrics those where
    the sides lie further apart than under 95 % of flipped sides, where there are flips.

    Parameters
    ----------
    table
        Rows of ``Comparison.curves`` for one persona.
    metric
        ``accuracy`` or one of :func:`utils.layers.divergence`.
    studies
        All studies in their order, which fixes the colours; by default those of the table.
    """
    ax = ax if ax is not None else new_axes(4.5, 3)
    if _has_chance(metric):
        ax.axhline(0.5, color=NULL, ls=":", lw=1.2)
    for name, style in series_styles(studies or table["study"].unique()).items():
        own = table[table["study"] == name]
        ax.fill_between(
            own["depth"], own[f"{metric}_low"], own[f"{metric}_high"], color=style["color"], alpha=0.15, lw=0
        )
        ax.plot(own["depth"], own[metric], color=style["color"], ls=style["ls"], lw=1.4, label=as_label(name))
        beyond = _stand_out(own, metric)
        ax.plot(own["depth"][beyond], own[metric][beyond], ".", color=style["color"], ms=4)
    ax.set(xlabel="relative depth (layer k of L at k/L)", ylabel=_LABELS[metric], xlim=(0, 1))
    return ax


def plot_depth_curves(
    table: pd.DataFrame, *, metric: str = "accuracy", studies: Sequence[str] | None = None
) -> np.ndarray:
    """Draw :func:`plot_depth_curve` for every persona, one row a topic; returns the array of Axes.

    A persona that some studies lack says so in its title.
    """
    names = list(studies if studies is not None else table["study"].unique())
    axes, panels = persona_grid(table, sharex=True, sharey=True, height=2.0)
    for persona, ax in panels.items():
        own = table[table["persona"] == persona]
        plot_depth_curve(own, metric=metric, studies=names, ax=ax)
        held = own["study"].nunique()
        note = f"\n(in {held} of {len(names)} studies)" if held < len(names) else ""
        ax.set_title(persona_label(persona) + note, fontsize=8)
        ax.set(xlabel="", ylabel="", xticks=[0, 0.5, 1])
        # Ends at the edge of a panel would run into those of its neighbour.
        ax.set_xticklabels(["0", "½", "1"])
    figure = axes.flat[0].figure
    handles = [
        Line2D([], [], color=style["color"], ls=style["ls"], label=as_label(name))
        for name, style in series_styles(names).items()
    ]
    if metric == "accuracy":
        handles.append(Line2D([], [], color=NULL, marker=".", ls="", label="above chance (adjusted p ≤ 0.05)"))
    elif f"{metric}_null_high" in table:
        handles.append(Line2D([], [], color=NULL, marker=".", ls="", label="beyond 95 % of flipped sides"))
    if _has_chance(metric):
        handles.append(Line2D([], [], color=NULL, ls=":", label="chance"))
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    figure.supxlabel("relative depth (layer k of L at k/L)", fontsize=10)
    figure.supylabel(_LABELS[metric], fontsize=10)
    return axes


def plot_verdicts(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw d = mean(last) − max(mean(first), mean(middle)) of every persona and study with its interval.

    Full markers: supported or not supported; open: mixed; a grey cross: no value, for want of layers or of
    the persona.

    Parameters
    ----------
    table
        Rows of ``Comparison.thirds``; rows for the mean over personas may follow.
    """
    personas, styles = list(table["persona"].unique()), series_styles(table["study"].unique())
    ax = ax if ax is not None else new_axes(7.5, 1.2 + len(personas) * max(0.3, 0.1 * len(styles)))
    ax.axvline(0, color="black", lw=0.8)
    _shade_rows(len(personas), ax)
    for (name, style), shift in zip(styles.items(), _spread(len(styles)), strict=True):
        rows = table[table["study"] == name].set_index("persona").reindex(personas)
        place = np.arange(len(personas)) + shift
        ax.hlines(place, rows["d_low"], rows["d_high"], color=style["color"], lw=1.5)
        for full, at in ((True, rows["verdict"] != "mixed"), (False, rows["verdict"] == "mixed")):
            face = style["color"] if full else "white"
            ax.plot(rows["d"][at], place[at], ls="", marker=style["marker"], color=style["color"], mfc=face, ms=5)
        lost = rows["d"].isna().to_numpy()
        ax.plot(np.full(lost.sum(), 0.012), place[lost], "x", color=NULL, ms=4, transform=ax.get_yaxis_transform())
    ax.set_yticks(np.arange(len(personas)), [persona_label(name) for name in personas])
    ax.set(
        xlabel="pair accuracy, last third − larger of first and middle third (95 % interval)",
        ylim=(len(personas) - 0.5, -0.5),
    )
    handles = _study_handles(styles)
    handles.append(Line2D([], [], color="black", marker="o", mfc="white", ls="", ms=5, label="open: mixed"))
    if table["d"].isna().any():
        handles.append(Line2D([], [], color=NULL, marker="x", ls="", ms=4, label="no value"))
    _add_legend(ax, handles)
    return ax


def plot_detection_map(table: pd.DataFrame, *, value: str = "p_adjusted", ax: Axes | None = None) -> Axes:
    """Draw one column of the detection table as persona × study; grey cells are missing.

    Beside p-values a dot marks p ≤ 0.05.

    Parameters
    ----------
    table
        ``Comparison.detection``.
    value
        ``accuracy``, ``separation_p_adjusted``, ``calibrated_p_adjusted``, ``p_adjusted`` (of the scan), ``precision``,
        ``recall``, ``auroc``, ``probe_auroc`` or ``form_accuracy``.
    """
    label, low, high = _DETECTION[value]
    is_p = value.endswith("p_adjusted")
    personas, studies = table["persona"].unique(), table["study"].unique()
    wide = table.pivot(index="persona", columns="study", values=value).loc[personas, studies].astype(float)
    ax = ax if ax is not None else new_axes(2.4 + 0.7 * len(studies), 1.6 + 0.3 * len(personas))
    ax.set_facecolor("#E4E4E4")
    scale: dict[str, Any] = {"norm": LogNorm(low, high)} if is_p else {"vmin": low, "vmax": high}
    sns.heatmap(
        wide, ax=ax, cmap="cividis_r" if is_p else "cividis", annot=True,
        fmt=".3f" if is_p else ".2f", annot_kws={"fontsize": 7}, cbar=False,
        xticklabels=False, yticklabels=False, linewidths=0.4, **scale,
    )  # fmt: skip
    if is_p:
        row, column = np.nonzero(wide.to_numpy() <= 0.05)
        ax.plot(column + 0.88, row + 0.18, "o", color=_FOUND, ms=3.5, mec="white", mew=0.4)
    ax.set_xticks(np.arange(len(studies)) + 0.5, [as_label(name) for name in studies], rotation=90, fontsize=8)
    ax.set_yticks(np.arange(len(personas)) + 0.5, [persona_label(name) for name in personas], rotation=0)
    ax.tick_params(left=False, bottom=False)
    ax.set(xlabel="", ylabel="")
    ax.set_title(label, fontsize=9)
    return ax


def plot_study_overlaps(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the Jaccard index of the node sets of two personas within each study, pair by pair.

    Full markers: larger than under flipped sides (adjusted p ≤ 0.05 within the study); a short bar: what flipped sides
    give; a grey cross: a persona or both node sets are missing.

    Parameters
    ----------
    table
        Rows of ``Comparison.overlaps``, for the pairs to show.
    """
    pairs = list(dict.fromkeys(zip(table["a"], table["b"], strict=True)))
    styles = series_styles(table["study"].unique())
    ax = ax if ax is not None else new_axes(7.5, 1.2 + len(pairs) * max(0.3, 0.1 * len(styles)))
    _shade_rows(len(pairs), ax)
    for (name, style), shift in zip(styles.items(), _spread(len(styles)), strict=True):
        rows = table[table["study"] == name].set_index(["a", "b"]).reindex(pairs)
        place = np.arange(len(pairs)) + shift
        ax.plot(rows["expected_jaccard"], place, "|", color=style["color"], ms=7, mew=1.4)
        for full, at in ((True, rows["p_adjusted"] <= 0.05), (False, ~(rows["p_adjusted"] <= 0.05))):
            face = style["color"] if full else "white"
            ax.plot(rows["jaccard"][at], place[at], ls="", marker=style["marker"], color=style["color"], mfc=face, ms=5)
        lost = rows["jaccard"].isna().to_numpy()
        ax.plot(np.full(lost.sum(), 0.012), place[lost], "x", color=NULL, ms=4, transform=ax.get_yaxis_transform())
    ax.set_yticks(np.arange(len(pairs)), [f"{persona_label(a)} – {persona_label(b)}" for a, b in pairs], fontsize=8)
    right = np.nanmax([0.05, *table["jaccard"], *table["expected_jaccard"]])
    ax.set(
        xlabel="Jaccard index of the two node sets", ylim=(len(pairs) - 0.5, -0.5), xlim=(-0.04 * right, 1.05 * right)
    )
    handles = _study_handles(styles)
    handles.append(Line2D([], [], color="black", marker="o", mfc="white", ls="", ms=5, label="open: adjusted p > 0.05"))
    handles.append(Line2D([], [], color="black", marker="|", ls="", ms=7, mew=1.4, label="under flipped sides"))
    if table["jaccard"].isna().any():
        handles.append(Line2D([], [], color=NULL, marker="x", ls="", ms=4, label="missing"))
    _add_legend(ax, handles)
    return ax


def _study_handles(styles: dict[str, dict[str, Any]]) -> list[Line2D]:
    return [
        Line2D([], [], color=style["color"], marker=style["marker"], ls="", ms=5, label=as_label(name))
        for name, style in styles.items()
    ]


def _has_chance(metric: str) -> bool:
    """Whether 0.5 is what no difference gives."""
    return metric == "accuracy" or metric.startswith("probe")


def _stand_out(table: pd.DataFrame, metric: str) -> np.ndarray:
    """Where accuracy is above chance, or the sides lie further apart than 95 % of flips put them; nowhere without flips."""
    if metric == "accuracy":
        return (table["accuracy_p_adjusted"] <= 0.05).to_numpy()
    lower_is_apart = metric.endswith("davies_bouldin")
    bound = f"{metric}_null_{'low' if lower_is_apart else 'high'}"
    if bound not in table:
        return np.zeros(len(table), bool)
    return ((table[metric] < table[bound]) if lower_is_apart else (table[metric] > table[bound])).to_numpy()


def _spread(count: int) -> np.ndarray:
    """Where the studies of a row are drawn, around 0."""
    return (np.arange(count) - (count - 1) / 2) * (0.7 / count)


def _shade_rows(count: int, ax: Axes) -> None:
    for row in range(0, count, 2):
        ax.axhspan(row - 0.5, row + 0.5, color="#F2F2F2", lw=0, zorder=0)


def _add_legend(ax: Axes, handles: list[Line2D]) -> None:
    ax.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=8)
