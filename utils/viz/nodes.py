"""Figures of scans and of nodes.

Functions take tables, draw on ``ax`` (or axes of their own) and return Axes. Nothing here computes results or writes
files. Maps are perceptually uniform, colours those of :mod:`utils.viz.style`.
"""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from utils.viz.style import (
    NEGATIVE,
    NULL,
    NULL_LABEL,
    POSITIVE,
    label_grid,
    new_axes,
    persona_grid,
    persona_label,
)


def plot_detection(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw precision and recall of the mixed runs, persona by persona, with what picking at random would give.

    Parameters
    ----------
    table
        One row a persona: ``persona, precision, precision_low, precision_high, recall, recall_low, recall_high,
        chance, p_value``; low and high are the 5th and 95th percentile of the runs.
    """
    ax = ax if ax is not None else new_axes(7.5, 1.2 + 0.34 * len(table))
    y = np.arange(len(table))
    for name, colour, marker, shift in (("precision", POSITIVE, "o", -0.14), ("recall", NEGATIVE, "s", 0.14)):
        ax.hlines(y + shift, table[f"{name}_low"], table[f"{name}_high"], color=colour, lw=2, alpha=0.5)
        ax.plot(table[name], y + shift, marker, color=colour, ms=5, label=f"{name} (mean, 5–95 % of runs)")
    ax.axvline(table["chance"].iloc[0], color=NULL, ls=":", label="precision of a random choice")
    for row, p_value in enumerate(table["p_value"]):
        ax.text(1.02, row, f"p = {p_value:.2g}", va="center", fontsize=8, transform=ax.get_yaxis_transform())
    ax.set_yticks(y, [persona_label(name) for name in table["persona"]])
    ax.set(xlim=(0, 1.02), ylim=(len(table) - 0.5, -0.5), xlabel="precision and recall of the records a run returned")
    ax.legend(loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=3, frameon=False, fontsize=8)
    return ax


def plot_scores(
    scores: pd.DataFrame, *, labels: tuple[str, str] = ("true sides", "sides flipped"), ax: Axes | None = None
) -> Axes:
    """Draw the scores of mixed runs and of null runs, persona by persona.

    Parameters
    ----------
    scores
        One row a run: ``persona, kind`` (mixed or null), ``score``.
    labels
        What mixed and null runs are called.
    """
    personas = list(scores["persona"].unique())
    ax = ax if ax is not None else new_axes(7.5, 1.2 + 0.42 * len(personas))
    # By number, as names could hold markup.
    named = scores.assign(
        persona=scores["persona"].map(personas.index),
        runs=scores["kind"].map(dict(zip(("mixed", "null"), labels, strict=True))),
    )
    sns.boxplot(
        named, y="persona", x="score", hue="runs", hue_order=list(labels), orient="h",
        palette=dict(zip(labels, (POSITIVE, NULL), strict=True)), whis=(5, 95), fliersize=0, width=0.7, linewidth=0.9, ax=ax,
    )  # fmt: skip
    # A box without width is a line that nobody sees.
    for runs, colour, shift in zip(labels, (POSITIVE, NULL), (-0.175, 0.175), strict=True):
        ends = named[named["runs"] == runs].groupby("persona")["score"].agg(["min", "max"])
        thin = ends[np.isclose(ends["min"], ends["max"])]
        ax.plot(thin["min"], thin.index.to_numpy(float) + shift, "o", color=colour, mec="black", mew=0.6, ms=5)
    ax.set_yticks(np.arange(len(personas)), [persona_label(name) for name in personas])
    ax.set(ylabel="", ylim=(len(personas) - 0.5, -0.5), xlabel="scan score of a run (box: quartiles, whiskers: 5–95 %)")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    return ax


def plot_node_profiles(profiles: pd.DataFrame, *, threshold: float | None = None) -> np.ndarray:
    """Draw how often the runs selected each node, from the most frequent down, one panel a persona.

    Parameters
    ----------
    profiles
        As :func:`utils.nodes.node_profiles` returns them, with a column ``topic``.
    threshold
        The share of runs that the node set asks for.

    Returns
    -------
    ndarray of Axes
    """
    axes, panels = persona_grid(profiles, sharex=True, sharey=True, height=1.9)
    for persona, ax in panels.items():
        own = profiles[profiles["persona"] == persona]
        ax.fill_between(own["rank"], own["null_low"], own["null_high"], color=NULL, alpha=0.4, lw=0, label=NULL_LABEL)
        ax.plot(own["rank"], own["frequency"], color=POSITIVE, lw=1.6, label="true sides")
        if threshold is not None:
            ax.axhline(
                threshold, color="black", ls="--", lw=0.9, label=f"least share for the node set ({threshold:.0%})"
            )
        ax.set(title=persona_label(persona), ylim=(0, 1.02), xlim=(1, own["rank"].max()))
    label_grid(axes, panels, xlabel="node, by rank", ylabel="share of runs that selected it")
    return axes


def plot_node_map(nodes: pd.DataFrame, n_nodes: int, *, ax: Axes | None = None) -> Axes:
    """Draw persona × node: the share of runs that selected a node, red above and blue below the background.

    Parameters
    ----------
    nodes
        One row a persona and node to show: ``persona, node, sign, frequency``.
    n_nodes
        How many nodes there are.
    """
    personas = list(nodes["persona"].unique())
    image = np.zeros((len(personas), n_nodes))
    for row, persona in enumerate(personas):
        own = nodes[nodes["persona"] == persona]
        image[row, own["node"]] = own["frequency"] * own["sign"]
    ax = ax if ax is not None else new_axes(10, 1.1 + 0.28 * len(personas))
    # Short bars and not pixels: a single node of thousands would be too thin to see.
    row, node = np.nonzero(image)
    width = max(1.2, 500 / n_nodes)
    shown = ax.scatter(node, row, c=image[row, node], marker="|", s=130, lw=width, cmap="RdBu_r", vmin=-1, vmax=1)
    ax.hlines(np.arange(len(personas)), 0, n_nodes, color="#DDDDDD", lw=0.6, zorder=0)
    ax.set_yticks(np.arange(len(personas)), [persona_label(name) for name in personas])
    ax.set(xlabel="node", xlim=(-0.01 * n_nodes, 1.01 * n_nodes), ylim=(max(1, len(personas)) - 0.5, -0.5))
    bar = ax.figure.colorbar(shown, ax=ax, pad=0.01, label="share of runs, by side")
    bar.set_ticks([-1, 0, 1], labels=["1, below", "0", "1, above"])
    return ax


def plot_overlap(table: pd.DataFrame, *, value: str = "jaccard", level: float = 0.05, ax: Axes | None = None) -> Axes:
    """Draw the overlap of every two node sets as a triangle; a dot marks ``p_adjusted`` ≤ ``level``.

    Parameters
    ----------
    table
        As :func:`utils.nodes.overlap` returns it.
    """
    names = list(dict.fromkeys([*table["a"], *table["b"]]))
    place = {name: i for i, name in enumerate(names)}
    image = np.full((len(names), len(names)), np.nan)
    for a, b, shown in zip(table["a"], table["b"], table[value], strict=True):
        image[place[b], place[a]] = shown
    ax = ax if ax is not None else new_axes(1.8 + 0.5 * len(names), 1.2 + 0.45 * len(names))
    highest = None if np.isfinite(image).any() else 1
    sns.heatmap(
        image[1:, :-1], ax=ax, cmap="cividis", vmin=0, vmax=highest, square=True, annot=True, fmt=".2f",
        annot_kws={"fontsize": 7}, cbar_kws={"label": value.replace("_", " "), "shrink": 0.6}, linewidths=0.4,
    )  # fmt: skip
    if "p_adjusted" in table:
        for a, b, p_value in zip(table["a"], table["b"], table["p_adjusted"], strict=True):
            if p_value <= level:
                ax.plot(place[a] + 0.86, place[b] - 1 + 0.16, "o", color="#E69F00", ms=3.2, mec="white", mew=0.4)
    ax.set_xticks(
        np.arange(len(names) - 1) + 0.5, [persona_label(name) for name in names[:-1]], rotation=45, ha="right"
    )
    ax.set_yticks(np.arange(len(names) - 1) + 0.5, [persona_label(name) for name in names[1:]], rotation=0)
    return ax
