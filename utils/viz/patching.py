"""Figures of patching: where a patch moves the answer, which heads do, and how well the gradient tells."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from utils.layers.thirds import THIRDS, find_third
from utils.patching.effects import CLAIMS
from utils.viz.style import NEGATIVE, NULL, OKABE_ITO, POSITIVE, as_label

COMPONENT_LABELS = {
    "resid": "residual stream",
    "attn": "attention",
    "mlp": "MLP",
    "heads": "heads",
    "bias": "constants",
}


def plot_patch_grid(table: pd.DataFrame, *, value: str = "effect") -> np.ndarray:
    """Draw an effect as segment × layer, one panel a component with one colour scale; returns the array of Axes.

    A dot marks cells whose 95 % interval leaves out 0. Fallback and flipped questions are to be drawn apart.

    Parameters
    ----------
    table
        As :func:`utils.patching.patch` returns it, without heads.
    value
        ``effect``, ``direct``, ``indirect``, or another column; dots only where there are ``_low`` and ``_high``.
    """
    table = table[table["component"] != "heads"]
    components = list(dict.fromkeys(table["component"]))
    segments = list(dict.fromkeys(table["segment"]))
    limit = _limit(table[value])
    height = (0.7 + 0.32 * len(segments)) * len(components) + 0.6
    _, axes = plt.subplots(len(components), 1, figsize=(8, height), squeeze=False, sharex=True, layout="constrained")
    layers = sorted(table["layer"].unique().tolist())
    shown = None
    for ax, component in zip(axes[:, 0], components, strict=True):
        own = table[table["component"] == component]
        wide = own.pivot(index="segment", columns="layer", values=value)
        # A component without a layer (attention of layer 0) leaves its cells empty, so that panels share their axis.
        wide = wide.reindex(index=segments, columns=layers)
        shown = _draw_cells(ax, wide, limit)
        if f"{value}_low" in own:
            clear = own[(own[f"{value}_low"] > 0) | (own[f"{value}_high"] < 0)]
            rows = clear["segment"].map(segments.index).to_numpy()
            places = clear["layer"].map(layers.index).to_numpy()
            ax.plot(places, rows, "o", ms=2.4, color="black", mec="white", mew=0.3)
        ax.set_title(COMPONENT_LABELS.get(component, component), fontsize=9)
        ax.set_yticks(np.arange(len(segments)), segments)
    axes[-1, 0].set_xlabel("layer")
    axes[0, 0].figure.colorbar(shown, ax=axes, label=value.replace("_", " "), shrink=0.8, pad=0.01)
    return axes[:, 0]


def plot_head_map(table: pd.DataFrame, *, value: str = "effect", ax: Axes | None = None) -> Axes:
    """Draw an effect as head × layer.

    Parameters
    ----------
    table
        Rows of :func:`utils.patching.patch` with component ``heads`` and one segment, or of
        :func:`utils.patching.compare_groups` for one group.
    """
    ax = ax if ax is not None else plt.figure(figsize=(8, 3), layout="constrained").add_subplot()
    wide = table.pivot(index="head", columns="layer", values=value).sort_index()
    shown = _draw_cells(ax, wide, _limit(table[value]))
    step = max(1, len(wide) // 16)
    ax.set_yticks(np.arange(0, len(wide), step), wide.index[::step])
    ax.set(xlabel="layer", ylabel="head")
    ax.figure.colorbar(shown, ax=ax, label=value.replace("_", " "), pad=0.01)
    return ax


def plot_group_attention(
    attention: pd.DataFrame, heads: Sequence[tuple[int, int]], *, value: str = "weighted"
) -> np.ndarray:
    """Draw what some heads read from each identity, by group, one panel a head; returns the array of Axes.

    Parameters
    ----------
    attention
        As :func:`utils.patching.persona_attention` returns it.
    heads
        (layer, head) of each panel.
    """
    groups = list(dict.fromkeys(attention["group"]))
    columns = min(3, len(heads))
    rows = -(-len(heads) // columns)
    size = (1.4 + 2.5 * columns, (0.9 + 0.27 * len(groups)) * rows + 0.4)
    _, axes = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False, layout="constrained")
    for ax in axes.flat[len(heads) :]:
        ax.set_visible(False)
    # Points beside each other; from a seed, so that a figure is the same each time.
    jitter = np.random.default_rng(0)
    for (layer, head), ax in zip(heads, axes.flat, strict=False):
        own = attention[(attention["layer"] == layer) & (attention["head"] == head)]
        place = own["group"].map(groups.index).to_numpy()
        sns.boxplot(
            x=own[value].to_numpy(), y=place, orient="h", color="#DDDDDD", fliersize=0, width=0.6, linewidth=0.8, ax=ax
        )
        ax.plot(own[value], place + jitter.uniform(-0.2, 0.2, len(own)), "o", color=NEGATIVE, ms=2.6, alpha=0.8, mew=0)
        ax.set(xlabel="", ylabel="")
        ax.set_yticks(range(len(groups)), [as_label(group) for group in groups])
        ax.set_title(f"layer {layer}, head {head}", fontsize=9)
        ax.tick_params(labelsize=8)
        ax.xaxis.set_major_locator(MaxNLocator(3))
    label = "attention × size of the value, per persona token" if value == "weighted" else value
    axes.flat[0].figure.supxlabel(label, fontsize=9)
    return axes


def plot_agreement(exact: pd.DataFrame, approximate: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the gradient's approximation of each cell against its exact effect; on the line they agree."""
    ax = ax if ax is not None else plt.figure(figsize=(4.6, 4), layout="constrained").add_subplot()
    keys = ["component", "layer", "segment", "head", "fallback"]
    both = exact.merge(approximate, on=keys, suffixes=("", "_approximate"))
    ends = both[["effect", "effect_approximate"]].to_numpy()
    ax.plot([np.nanmin(ends), np.nanmax(ends)], [np.nanmin(ends), np.nanmax(ends)], color=NULL, lw=0.9, ls=":")
    for (component, own), colour, marker in zip(both.groupby("component", sort=False), OKABE_ITO, "osD^", strict=False):
        label = COMPONENT_LABELS.get(str(component), str(component))
        ax.scatter(
            own["effect"], own["effect_approximate"], s=15, marker=marker, color=colour, alpha=0.8, lw=0, label=label
        )
    ax.set(xlabel="effect, exact", ylabel="effect, by gradient")
    ax.legend(frameon=False, fontsize=8)
    return ax


def plot_claims(table: pd.DataFrame) -> np.ndarray:
    """Draw the effects that claims 1 and 2 are about, layer by layer with 95 % intervals; returns the array of Axes.

    The third of the layers in which a claim expects the largest effects is shaded.

    Parameters
    ----------
    table
        The table ``claim_layers`` of :func:`utils.experiments.run_patching`, flipped or fallback questions alone.
    """
    layers = sorted(table["layer"].unique().tolist())
    _, axes = plt.subplots(len(CLAIMS), 1, figsize=(7, 4.2), sharex=True, layout="constrained")
    for ax, (claim, component, segment, third) in zip(axes, CLAIMS, strict=True):
        own = table[(table["component"] == component) & (table["segment"] == segment)].sort_values("layer")
        expected = [layer for layer in layers if THIRDS[find_third(layer, layers[-1])] == third]
        ax.axvspan(expected[0] - 0.5, expected[-1] + 0.5, color=NULL, alpha=0.15, lw=0)
        bounds = np.abs(own[["effect_low", "effect_high"]].sub(own["effect"], axis=0)).T
        ax.errorbar(own["layer"], own["effect"], yerr=bounds, fmt="o", ms=4, color=POSITIVE, elinewidth=1)
        ax.axhline(0, color="black", lw=0.6)
        ax.set_title(claim, fontsize=9)
        ax.set_ylabel("effect")
    axes[-1].set_xlabel("layer (shaded: the third that the claim expects)")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    return axes


def plot_terms(terms: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw how much the terms of every layer change from base to source, attention and MLP, in logits.

    Parameters
    ----------
    terms
        As :func:`utils.patching.persona_terms` returns them; means over questions are drawn.
    """
    ax = ax if ax is not None else plt.figure(figsize=(7, 2.8), layout="constrained").add_subplot()
    means = terms.groupby(["identity", "component", "layer"])["term"].mean()
    change = means["source"] - means["base"]
    for component, colour, shift in (("attn", NEGATIVE, -0.2), ("mlp", POSITIVE, 0.2)):
        own = change[component]
        ax.bar(own.index + shift, own, width=0.4, color=colour, label=COMPONENT_LABELS[component])
    ax.axhline(0, color="black", lw=0.6)
    ax.set(xlabel="layer", ylabel="change of the term (logits)")
    ax.legend(frameon=False, fontsize=8)
    return ax


def _draw_cells(ax: Axes, wide: pd.DataFrame, limit: float) -> AxesImage:
    """A picture of a table, blue below and red above 0, with every few layers named."""
    shown = ax.imshow(wide.to_numpy(dtype=float), cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    step = max(1, len(wide.columns) // 15)
    ax.set_xticks(np.arange(0, len(wide.columns), step), wide.columns[::step])
    ax.tick_params(labelsize=8)
    return shown


def _limit(values: pd.Series) -> float:
    largest = np.nanmax(np.abs(values.to_numpy(dtype=float)), initial=0)
    return largest if np.isfinite(largest) and largest > 0 else 1.0
