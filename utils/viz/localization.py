"""Figures of the tests that use all pairs: accuracy over layers, by persona beside its form baseline, and their power."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from utils.viz.style import (
    NEGATIVE,
    NULL,
    OKABE_ITO,
    POSITIVE,
    as_label,
    label_grid,
    new_axes,
    persona_grid,
    persona_label,
)

_POSITIONS = {"last": "last token of the prompt", "mean": "mean over the statement", "statement": "its last token"}
_STYLES: dict[int, dict[str, Any]] = {
    0: {"color": POSITIVE, "ls": "-"},
    1: {"color": NEGATIVE, "ls": "--"},
    2: {"color": "black", "ls": ":"},
}


def plot_accuracy_curve(
    table: pd.DataFrame, *, onset: pd.DataFrame | None = None, mark: int | None = None, ax: Axes | None = None
) -> Axes:
    """Draw one persona's pair accuracy over layers, one line a token position.

    Parameters
    ----------
    table
        Rows of :func:`utils.layers.layer_accuracy` for one persona, with a column ``position`` where there are several. Filled
        dots: above chance (p ≤ 0.05, adjusted over layers). The band is the 95 % interval of the first position.
    onset
        Rows of :func:`utils.layers.layer_onset` for the persona: a tick at the bottom marks the onset.
    mark
        A layer to mark with a vertical line.
    """
    ax = ax if ax is not None else new_axes(4.5, 3)
    table = table if "position" in table else table.assign(position="last")
    ax.axhline(0.5, color=NULL, lw=1.2, label="chance")
    for i, (name, own) in enumerate(table.groupby("position", sort=False)):
        style, label = _STYLES[i], _POSITIONS.get(str(name), as_label(name))
        if i == 0:
            band = {"color": style["color"], "alpha": 0.2, "lw": 0, "label": "95 % interval"}
            ax.fill_between(own["layer"], own["accuracy_low"], own["accuracy_high"], **band)
        ax.plot(own["layer"], own["accuracy"], lw=1.4, label=label, **style)
        found = own[own["p_adjusted"] <= 0.05]
        ax.plot(found["layer"], found["accuracy"], "o", ms=2.6, color=style["color"])
        if onset is not None:
            at = onset if "position" not in onset else onset[onset["position"] == name]
            ax.plot(at["onset"], np.full(len(at), 0.335 + 0.03 * i), "^", ms=5, color=style["color"])
    if mark is not None:
        ax.axvline(mark, color="black", ls=(0, (1, 2)), lw=0.9, label=f"chosen layer ({mark})")
    ax.set(xlabel="layer", ylabel="pair accuracy", xlim=(0, table["layer"].max()), ylim=(0.3, 1.02))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    return ax


def plot_accuracy_curves(
    table: pd.DataFrame, *, onset: pd.DataFrame | None = None, mark: int | None = None
) -> np.ndarray:
    """Draw every persona's accuracy in a panel of its own, one row a topic; returns the array of Axes."""
    axes, panels = persona_grid(table, sharex=True, sharey=True, height=1.9)
    for persona, ax in panels.items():
        own = None if onset is None else onset[onset["persona"] == persona]
        plot_accuracy_curve(table[table["persona"] == persona], onset=own, mark=mark, ax=ax)
        ax.set(title=persona_label(persona), xlabel="", ylabel="")
    label_grid(axes, panels, xlabel="layer (residual stream after block)", ylabel="pair accuracy")
    return axes


def plot_tests(table: pd.DataFrame, *, form: pd.DataFrame | None = None, ax: Axes | None = None) -> Axes:
    """Draw every persona's pair accuracy with its interval, beside chance, its form baseline and the adjusted p-values.

    Parameters
    ----------
    table
        One row a persona of ``detection.parquet``: ``accuracy`` with ``_low, _high``, and ``separation_p_adjusted,
        calibrated_p_adjusted, p_adjusted``. Filled: separation found (≤ 0.05).
    form
        As :func:`utils.statements.form_table` returns it: a cross marks what the form of the statements alone gives.
    """
    ax = ax if ax is not None else new_axes(8.5, 1.1 + 0.32 * len(table))
    place = np.arange(len(table))[::-1]
    middle, low, high = (table[name].to_numpy() for name in ("accuracy", "accuracy_low", "accuracy_high"))
    found = (table["separation_p_adjusted"] <= 0.05).to_numpy()
    ax.axvline(0.5, color=NULL, lw=1.2, label="chance")
    bars = [np.maximum(middle - low, 0), np.maximum(high - middle, 0)]
    ax.errorbar(middle, place, xerr=bars, fmt="none", ecolor=POSITIVE, lw=1.5, capsize=2, label="95 % interval")
    ax.plot(middle[found], place[found], "o", color=POSITIVE, ms=5.5, label="told apart")
    ax.plot(middle[~found], place[~found], "o", mfc="white", mec=POSITIVE, ms=5.5, label="not told apart")
    if form is not None:
        shown = table[["persona"]].merge(form, on="persona", how="left")["form_accuracy"]
        ax.plot(shown, place, "x", color="black", ms=5, label="form of the statements alone")
    columns = {"separation_p_adjusted": "separation", "calibrated_p_adjusted": "calibrated", "p_adjusted": "scan"}
    for i, (name, label) in enumerate(columns.items()):
        x = 1.07 + 0.13 * i
        ax.text(x, 1.01, label, transform=ax.transAxes, ha="center", va="bottom", fontsize=8)
        for y, p in zip(place, table[name], strict=True):
            weight = "bold" if p <= 0.05 else "normal"
            ax.text(
                x,
                y,
                f"{p:.3f}",
                transform=ax.get_yaxis_transform(),
                ha="center",
                va="center",
                fontsize=8,
                weight=weight,
            )
    ax.set_yticks(place, [persona_label(name) for name in table["persona"]])
    ax.set(
        xlabel="pair accuracy, leave-one-out (right: adjusted p-values)", xlim=(0.3, 1.0), ylim=(-0.6, len(table) - 0.4)
    )
    ax.legend(loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=3, frameon=False, fontsize=8)
    return ax


def plot_power(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw how many personas each test finds with how many pairs; bars: 5 to 95 % of the draws.

    Parameters
    ----------
    table
        As :func:`utils.study.power.measure_power` returns it.
    """
    ax = ax if ax is not None else new_axes(5.5, 3.4)
    styles = zip(table.groupby("test", sort=False), OKABE_ITO, ("o", "s", "^", "D"), strict=False)
    for (name, own), colour, marker in styles:
        spread = [own["found"] - own["found_low"], own["found_high"] - own["found"]]
        ax.errorbar(
            own["n"],
            own["found"],
            yerr=np.maximum(spread, 0),
            color=colour,
            marker=marker,
            ms=5,
            lw=1.5,
            capsize=2,
            label=as_label(name),
        )
    most = int(table["n_personas"].max())
    ax.axhline(most, color=NULL, ls=":", lw=1)
    ax.set(xlabel="pairs a persona", ylabel=f"personas found, of {most} (adjusted p ≤ 0.05)", ylim=(-0.4, most + 0.6))
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(frameon=False)
    return ax
