"""Figures of masks. As in :mod:`utils.viz.nodes`: tables in, Axes out; nothing is computed and nothing is written."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from utils.viz.layers import plot_layer_curve
from utils.viz.style import NEGATIVE, NULL, POSITIVE, as_label

_SCORE_COLOURS = {
    "wanda": NEGATIVE,
    "softplus": POSITIVE,
    "relu": "#009E73",
    "disjoint": "#CC79A7",
    "magnitude": "#E69F00",
    "random": NULL,
}
MEASURE_LABELS = {
    "likelihood": "likelihood: positive − negative\n(nats a token)",
    "self_report": "agreement: positive − negative\n(log-odds)",
    "two_options": "choice of the positive\n(log-odds)",
    "big_five": "Big Five self-report\n(log-odds)",
    "accuracy": "accuracy",
    "perplexity": "perplexity",
    "prompt_tokens": "tokens in the prompt",
    "seconds": "seconds an answer",
}


def plot_sweep(table: pd.DataFrame, *, measure: str = "likelihood", ax: Axes | None = None) -> Axes:
    """Draw a measure over sparsity, one line a score, with 95 % intervals; dotted: the dense model.

    Parameters
    ----------
    table
        Of :func:`utils.subnetworks.sweep_sparsity`.
    measure
        ``likelihood`` or ``perplexity`` (on a logarithmic axis).
    """
    ax = ax if ax is not None else plt.subplots(figsize=(4.5, 3), layout="constrained")[1]
    own = table[table["measure"] == measure]
    for score, group in own.groupby("score", sort=False):
        ordered, colour = group.sort_values("sparsity"), _SCORE_COLOURS[str(score)]
        ax.plot(ordered["sparsity"], ordered["estimate"], color=colour, marker="o", ms=4, lw=1.6, label=score)
        ax.fill_between(ordered["sparsity"], ordered["low"], ordered["high"], color=colour, alpha=0.2, lw=0)
    ax.axhline(own.loc[own["sparsity"] == 0, "estimate"].iloc[0], color=NULL, ls=":", lw=1.2, label="dense")
    if measure == "perplexity":
        ax.set_yscale("log")
    ax.set(xlabel="sparsity (share of the weights cut)", ylabel=MEASURE_LABELS[measure])
    ax.legend(frameon=False, fontsize="small")
    return ax


def plot_conditions(
    summary: pd.DataFrame, *, measure: str, change: bool = False, nulls: Sequence[str] = (), ax: Axes | None = None
) -> Axes:
    """Draw one measure of every condition with its 95 % interval; dotted: the first condition.

    A condition that was not measured so has an empty row, and figures of several measures the same rows.

    Parameters
    ----------
    summary
        Of :func:`utils.responses.summarise`.
    change
        Draw the change from the baseline, unit by unit, whose intervals are the narrower ones.
    nulls
        Conditions of which the estimates alone are drawn, all in the last row and in grey, with a band from the least to the
        largest: how far masks go that have nothing to find. The row is called after the first, without its number.
    """
    value, low, high = ("change", "change_low", "change_high") if change else ("estimate", "low", "high")
    own = summary[summary["measure"] == measure].set_index("condition")
    null = own.loc[own.index.isin(nulls), value]
    conditions = [name for name in summary["condition"].unique() if name not in nulls]
    own = own.reindex(conditions)
    names = [*conditions, *([f"{nulls[0].rstrip(' 0123456789')} ({len(nulls)})"] if nulls else [])]
    ax = ax if ax is not None else plt.subplots(figsize=(4, 0.6 + 0.28 * len(names)), layout="constrained")[1]
    errors = np.stack([own[value] - own[low], own[high] - own[value]])
    places = np.arange(len(names))
    if len(null):
        ax.axvspan(null.min(), null.max(), color=NULL, alpha=0.2, lw=0)
        ax.plot(null, [len(own)] * len(null), "o", ms=4, color=NULL)
    ax.errorbar(own[value], places[: len(own)], xerr=errors, fmt="o", ms=4, lw=1.4, color=POSITIVE)
    ax.axvline(own[value].iloc[0], color=NULL, ls=":", lw=1.2)
    ax.set_yticks(places, [as_label(name) for name in names])
    label = MEASURE_LABELS[measure]
    if change:
        label = "perplexity,\ntimes the baseline's" if measure == "perplexity" else f"change in\n{label}"
    ax.set(xlabel=label, ylim=(len(names) - 0.5, -0.5))
    ax.xaxis.set_major_locator(MaxNLocator(nbins=4))
    return ax


def plot_mask_overlap(tables: dict[str, pd.DataFrame], *, ax: Axes | None = None) -> Axes:
    """Draw by layer how far two masks agree, one line a comparison; dotted: masks that are independent of each other.

    Parameters
    ----------
    tables
        Of :meth:`utils.subnetworks.PersonaMask.overlap`, by name; a name of a score gets the score's colour.
    """
    ax = ax if ax is not None else plt.subplots(figsize=(4.5, 3), layout="constrained")[1]
    others = iter(["#56B4E9", "#E69F00", "#009E73", "#CC79A7"])
    for name, table in tables.items():
        colour = _SCORE_COLOURS[name] if name in _SCORE_COLOURS else next(others)
        ax.plot(table["layer"], table["jaccard"], color=colour, lw=1.6, marker="o", ms=3, label=as_label(name))
    expected = next(iter(tables.values()))
    ax.plot(expected["layer"], expected["expected_jaccard"], color=NULL, ls=":", lw=1.2, label="independent")
    ax.set(xlabel="block", ylabel="Jaccard index of the masks", ylim=(-0.03, 1.03))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    ax.legend(frameon=False, fontsize="small")
    return ax


def plot_overlap_and_divergence(
    tables: dict[str, pd.DataFrame], divergence: pd.DataFrame, *, metric: str = "silhouette"
) -> np.ndarray:
    """Draw how far opposing masks agree beside how far the sides' activations lie apart, over the same layers.

    Parameters
    ----------
    tables
        As of :func:`plot_mask_overlap`.
    divergence
        Of :func:`utils.layers.divergence`, one persona's rows.
    metric
        One of its columns.

    Returns
    -------
    ndarray
        Two Axes, from left to right; block k of the masks is what makes layer k of the activations.
    """
    axes = plt.subplots(1, 2, figsize=(9, 3), sharex=True, layout="constrained")[1]
    plot_mask_overlap(tables, ax=axes[0])
    plot_layer_curve(divergence, metric=metric, ax=axes[1])
    axes[1].legend(frameon=False, fontsize="small")
    return axes
