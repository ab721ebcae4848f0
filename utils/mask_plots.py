"""Figures of masks. As in :mod:`utils.viz`: tables in, Axes out; nothing is computed and nothing is written."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from utils.viz import NEGATIVE, NULL, POSITIVE

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
        Of :func:`utils.mask_sweeps.sweep_sparsity`.
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


def plot_conditions(summary: pd.DataFrame, *, measure: str, ax: Axes | None = None) -> Axes:
    """Draw one measure of every condition with its 95 % interval; dotted: the first condition.

    Parameters
    ----------
    summary
        Of :func:`utils.mask_evaluation.summarise`.
    """
    own = summary[summary["measure"] == measure].reset_index(drop=True)
    ax = ax if ax is not None else plt.subplots(figsize=(4, 0.6 + 0.28 * len(own)), layout="constrained")[1]
    errors = np.stack([own["estimate"] - own["low"], own["high"] - own["estimate"]])
    places = np.arange(len(own))
    ax.errorbar(own["estimate"], places, xerr=errors, fmt="o", ms=4, lw=1.4, color=POSITIVE)
    ax.axvline(own["estimate"].iloc[0], color=NULL, ls=":", lw=1.2)
    ax.set_yticks(places, own["condition"])
    ax.set(xlabel=MEASURE_LABELS[measure], ylim=(len(own) - 0.5, -0.5))
    ax.xaxis.set_major_locator(MaxNLocator(nbins=4))
    return ax


def plot_mask_overlap(tables: dict[str, pd.DataFrame], *, ax: Axes | None = None) -> Axes:
    """Draw by layer how far two masks agree, one line a comparison; dotted: masks that are independent of each other.

    Parameters
    ----------
    tables
        Of :meth:`utils.masks.PersonaMask.overlap`, by name; a name of a score gets the score's colour.
    """
    ax = ax if ax is not None else plt.subplots(figsize=(4.5, 3), layout="constrained")[1]
    others = iter(["#56B4E9", "#E69F00", "#009E73", "#CC79A7"])
    for name, table in tables.items():
        colour = _SCORE_COLOURS[name] if name in _SCORE_COLOURS else next(others)
        ax.plot(table["layer"], table["jaccard"], color=colour, lw=1.6, marker="o", ms=3, label=name)
    expected = next(iter(tables.values()))
    ax.plot(expected["layer"], expected["expected_jaccard"], color=NULL, ls=":", lw=1.2, label="independent")
    ax.set(xlabel="block", ylabel="Jaccard index of the masks", ylim=(-0.03, 1.03))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    ax.legend(frameon=False, fontsize="small")
    return ax
