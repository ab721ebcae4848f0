"""Figures of a causal check: effects among those of random sets, dose–response, and where along the layers nodes act."""

from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from utils.causal.effects import ASKED, CHECK, CLEAN, DENSE, MATCHED, RANDOM
from utils.viz.style import NEGATIVE, NULL, POSITIVE, new_axes, persona_label

_BLACK = "#222222"
_LINES = {"scan": POSITIVE, "mean-difference": NEGATIVE, DENSE: "#009E73"}
_MEASURES = {"likelihood": "log-likelihood a token", "self_report": "log-odds of agreeing"}
_VERBS = {"steer": "steered", "ablate": "ablated", "resample": "resampled", "patch": "patched"}


def describe_check(row: pd.Series) -> str:
    """A check in words, from a row of the effects."""
    return f"{_VERBS[row['mode']]}, {row['prompt']} prompt: {row['measure'].replace('_', '-')}"


def plot_controls(effects: pd.DataFrame, values: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the effect of every node set of one comparison, with those of the random sets as dots below.

    Parameters
    ----------
    effects
        Rows of :func:`utils.causal.summarise_effects` of one check, layer and strength; the first tells the size in the title
        and of the dots. Grey bars: 5 to 95 % of random sets of a row's size.
    values
        What they were summarised from, for the random sets; other rows are left out.
    """
    first = effects.iloc[0]
    ax = ax if ax is not None else new_axes(7, 1.2 + 0.32 * (len(effects) + 2))
    ax.axvline(0, color=_BLACK, lw=0.8)
    names = []
    for _, row in effects.iterrows():
        if row["n_random"] and row["selector"] != ASKED:
            # Of each row its own: random sets of as many nodes.
            width = row["random_high"] - row["random_low"]
            ax.barh(-len(names), width, left=row["random_low"], height=0.9, color=NULL, alpha=0.25, lw=0)
        colour = _LINES.get(row["selector"], _BLACK)
        ax.errorbar(
            row["effect"],
            -len(names),
            xerr=np.array([[row["effect"] - row["low"]], [row["high"] - row["effect"]]]),
            fmt="o",
            color=colour,
            ms=5,
            lw=1.6,
            capsize=2,
        )
        p = "" if pd.isna(row["p_value"]) else f"  (p {row['p_value']:.2g})"
        size = "" if row["size"] == first["size"] else f", {row['n_nodes']} nodes"
        names.append(f"{_shorten(row['selector'])}{size}{p}")
    drawn = _drawn_effects(first, values)
    jitter = np.random.default_rng(0).uniform(-0.28, 0.28, size=max(map(len, drawn.values()), default=0))
    for name, points in drawn.items():
        ax.plot(points, -len(names) + jitter[: len(points)], "o", color=NULL, ms=2.5, alpha=0.7, mew=0)
        names.append(f"{name} ({len(points)} sets)")
    ax.set_yticks(-np.arange(len(names)), names)
    ax.set_ylim(-len(names) + 0.4, 0.6)
    ax.set(xlabel=f"change in preference for the persona ({_MEASURES[first['measure']]})")
    ax.set_title(f"{describe_check(first)}; {first['size']} nodes of layer {first['layer']}", fontsize=10)
    return ax


def plot_dose(effects: pd.DataFrame, *, over: Literal["strength", "size"] = "strength", ax: Axes | None = None) -> Axes:
    """Draw effects over the strength of steering (at 0 there is none), or over how many nodes are changed.

    Parameters
    ----------
    effects
        Rows of :func:`utils.causal.summarise_effects` of one check and layer that differ in ``over`` alone.
    """
    ax = ax if ax is not None else new_axes(5.2, 3.6)
    ax.axhline(0, color=_BLACK, lw=0.8)
    if over == "strength":
        nothing = dict.fromkeys(["strength", "effect", "low", "high", "random_low", "random_high"], 0.0)
        shown = pd.concat([effects, effects.drop_duplicates("selector").assign(**nothing)], ignore_index=True)
    else:
        shown = effects[effects["n_nodes"] == effects["size"]]
    _draw_curves(ax, shown, over)
    first = effects.iloc[0]
    if over == "size":
        ax.set_xscale("log")
        sizes = sorted(effects["size"].unique())
        ax.set_xticks(sizes, [str(size) for size in sizes])
        ax.minorticks_off()
    label = "strength (units of the residual stream's length)" if over == "strength" else "nodes changed"
    ax.set(xlabel=label, ylabel=f"change in preference\n({_MEASURES[first['measure']]})")
    ax.set_title(describe_check(first), fontsize=10)
    ax.legend(frameon=False, fontsize=8)
    return ax


def plot_effect_layers(
    effects: pd.DataFrame, divergence: pd.DataFrame, *, metric: str = "silhouette", mark: int | None = None
) -> np.ndarray:
    """Draw, over layers, how far the sides lie apart, and below it what changing as many nodes of each layer does.

    Parameters
    ----------
    effects
        Rows of :func:`utils.causal.summarise_effects` that differ in check and layer alone.
    divergence
        Rows of :func:`utils.layers.divergence` for the persona.

    Returns
    -------
    ndarray
        The Axes, top to bottom.
    """
    checks = list(effects.groupby(CHECK, sort=False))
    _, axes = plt.subplots(
        1 + len(checks), 1, figsize=(7, 2.2 * (1 + len(checks))), sharex=True, layout="constrained", squeeze=False
    )
    axes = axes[:, 0]
    table = divergence.dropna(subset=metric).sort_values("layer")
    axes[0].fill_between(
        table["layer"], table[f"{metric}_low"], table[f"{metric}_high"], color=_BLACK, alpha=0.15, lw=0
    )
    axes[0].plot(table["layer"], table[metric], color=_BLACK, lw=1.5)
    axes[0].set_title("visible: how far the sides lie apart", fontsize=10)
    axes[0].set_ylabel(metric)
    for ax, (_, own) in zip(axes[1:], checks, strict=True):
        ax.axhline(0, color=_BLACK, lw=0.8)
        _draw_curves(ax, own, "layer")
        ax.set_title(f"acting: {describe_check(own.iloc[0])}", fontsize=10)
        ax.set_ylabel("change in\npreference")
    if mark is not None:
        for ax in axes:
            ax.axvline(mark, color=_BLACK, ls="--", lw=0.8)
    axes[0].figure.legend(
        *axes[-1].get_legend_handles_labels(), loc="outside upper center", frameon=False, fontsize=8, ncols=4
    )
    axes[-1].set_xlabel("layer (residual stream after block)" + (f"; dashed: {mark}, scanned" if mark else ""))
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    return axes


def plot_costs(costs: pd.DataFrame) -> np.ndarray:
    """Draw what interventions cost, perplexity on the left and accuracy on the right, with 95 % intervals.

    Parameters
    ----------
    costs
        As :func:`utils.causal.measure.measure_costs` returns them.

    Returns
    -------
    ndarray
        The two Axes.
    """
    shown = costs[costs["selector"] != CLEAN]
    _, axes = plt.subplots(1, 2, figsize=(9, 0.9 + 0.26 * len(shown)), sharey=True, layout="constrained")
    names = [
        f"{_VERBS[mode]}: {_shorten(selector)}{f' (mean of {n})' if n > 1 else ''}"
        for mode, selector, n in zip(shown["mode"], shown["selector"], shown["n_sets"], strict=True)
    ]
    labels = {
        "perplexity_ratio": "perplexity on neutral text,\nratio to the model as it is",
        "accuracy_change": "change in accuracy on questions",
    }
    for ax, (value, label), neutral in zip(axes, labels.items(), (1, 0), strict=True):
        ax.axvline(neutral, color=_BLACK, lw=0.8)
        for place, (_, row) in enumerate(shown.iterrows()):
            colour = NULL if row["selector"] == RANDOM else _LINES.get(row["selector"], _BLACK)
            ax.plot([row[f"{value}_low"], row[f"{value}_high"]], [-place, -place], color=colour, lw=1.6)
            ax.plot(row[value], -place, "o", color=colour, ms=4.5)
        ax.set_xlabel(label)
    axes[0].set_yticks(-np.arange(len(names)), names)
    return axes


def _draw_curves(ax: Axes, effects: pd.DataFrame, over: str) -> None:
    effects = effects.sort_values(over)
    null = effects.drop_duplicates(over)
    fewest, most = null["n_random"].min(), null["n_random"].max()
    label = f"random sets ({fewest if fewest == most else f'{fewest}–{most}'}), 5–95 %"
    ax.fill_between(null[over], null["random_low"], null["random_high"], color=NULL, alpha=0.25, lw=0, label=label)
    for selector, colour in _LINES.items():
        own = effects[effects["selector"] == selector]
        if len(own):
            ax.plot(own[over], own["effect"], "o-", color=colour, ms=3.5, lw=1.5, label=selector)
            if selector == "scan":
                ax.fill_between(own[over], own["low"], own["high"], color=colour, alpha=0.18, lw=0)


def _drawn_effects(first: pd.Series, values: pd.DataFrame) -> dict[str, np.ndarray]:
    """Effects of the random sets of a comparison."""
    at = np.ones(len(values), dtype=bool)
    for name in ("layer", *CHECK):
        at &= (values[name] == first[name]).to_numpy()
    own = values[at]
    clean = own[own["selector"] == CLEAN].groupby("pair")["value"].first().mean()
    own = own[(own["strength"] == first["strength"]) & (own["size"] == first["size"])]
    means = own[own["selector"].isin([RANDOM, MATCHED])].groupby(["selector", "draw"])["value"].mean() - clean
    return {name: means[name].to_numpy() for name in (RANDOM, MATCHED) if name in means.index.get_level_values(0)}


def _shorten(selector: str) -> str:
    if selector == ASKED:
        return "persona prompt, nothing changed"
    return f"scan of {persona_label(selector.removeprefix('scan of '))}" if selector.startswith("scan of") else selector
