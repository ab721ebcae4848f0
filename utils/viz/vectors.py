"""Figures of persona vectors: cosines, dose–response with its cost, projections along an answer, interference."""

import html
from collections.abc import Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import HTML
from matplotlib.axes import Axes

from utils.viz.style import NEGATIVE, NULL, OKABE_ITO, POSITIVE, as_label, new_axes, persona_label, short_name

_BLACK = "#222222"
_COLOURS = [*OKABE_ITO, _BLACK]


def plot_cosines(cosines: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the cosines of personas' vectors.

    Parameters
    ----------
    cosines
        Of :meth:`utils.vectors.PersonaVectors.cosines`.
    """
    n = len(cosines)
    ax = ax if ax is not None else new_axes(1.9 + 0.5 * n, 1.3 + 0.42 * n)
    _draw_matrix(ax, cosines.to_numpy(), list(cosines.index), list(cosines.columns), "cosine", limit=1.0)
    return ax


def plot_interference(interference: pd.DataFrame, *, level: float = 0.05, ax: Axes | None = None) -> Axes:
    """Draw what steering by each persona's vector does to the preference for each persona; * where adjusted p ≤ ``level``.

    Parameters
    ----------
    interference
        Of :func:`utils.vectors.find_interference`.
    """
    order = list(dict.fromkeys(interference["steered"]))
    wide = interference.pivot(index="steered", columns="measured", values="effect").loc[order, order]
    p_values = interference.pivot(index="steered", columns="measured", values="p_adjusted").loc[order, order]
    n = len(order)
    ax = ax if ax is not None else new_axes(2.2 + 0.62 * n, 1.5 + 0.45 * n)
    marks = np.where(p_values.to_numpy() <= level, "*", "")
    _draw_matrix(ax, wide.to_numpy(), order, order, "change in preference (positive − negative)", marks=marks)
    ax.set(xlabel="measured", ylabel="steered")
    return ax


def plot_doses(doses: pd.DataFrame, *, personas: Sequence[str] | None = None, bound: float | None = None) -> np.ndarray:
    """Draw over strength the change in preference, left, and the perplexity as a ratio to that of the model as it is, right.

    Parameters
    ----------
    doses
        ``persona, strength, effect, low, high`` and ``perplexity_ratio`` with ``_low`` and ``_high``, as
        :class:`utils.experiments.vectors.VectorsResult` has them.
    bound
        Of the perplexity ratio, drawn dotted.

    Returns
    -------
    ndarray
        The two Axes.
    """
    _, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    axes[0].axhline(0, color=_BLACK, lw=0.8)
    axes[1].axhline(1, color=_BLACK, lw=0.8)
    names = list(dict.fromkeys(doses["persona"])) if personas is None else list(personas)
    for place, name in enumerate(names):
        own = doses[doses["persona"] == name].sort_values("strength")
        colour, marker = _COLOURS[place % len(_COLOURS)], "os^Dv"[place // len(_COLOURS) % 5]
        style = {"color": colour, "marker": marker, "ms": 3.5, "lw": 1.5, "label": persona_label(name)}
        axes[0].plot(own["strength"], own["effect"], **style)
        axes[0].fill_between(own["strength"], own["low"], own["high"], color=colour, alpha=0.15, lw=0)
        axes[1].plot(own["strength"], own["perplexity_ratio"], **style)
    if bound is not None:
        axes[1].axhline(bound, color=NULL, ls=":", lw=1.2)
    axes[1].set_yscale("log")
    ticks = [tick for tick in (1, 1.1, 1.25, 1.5, 2, 3, 5, 10, 30) if tick <= 1.2 * doses["perplexity_ratio"].max()]
    axes[1].set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes[1].minorticks_off()
    axes[0].set_ylabel("change in preference\n(positive − negative)")
    axes[1].set_ylabel("perplexity of neutral text,\ntimes that of the model as it is")
    for ax in axes:
        ax.set_xlabel("strength (units of the residual stream's length)")
    axes[0].legend(frameon=False, fontsize=8)
    return axes


def plot_turned(turned: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the effect of every persona's vector on its own preference with its 95 % interval, before what drawn vectors do.

    Grey bands are the 5th to 95th percentile of random vectors (above) and of vectors from flipped sides (below).

    Parameters
    ----------
    turned
        Of :func:`utils.vectors.find_turned`.
    """
    ax = ax if ax is not None else new_axes(6.2, 1.2 + 0.36 * len(turned))
    ax.axvline(0, color=_BLACK, lw=0.8)
    for place, (_, row) in enumerate(turned.iterrows()):
        for kind, shift, alpha in (("random", 0.15, 0.55), ("flipped", -0.15, 0.3)):
            low, high = row[f"{kind}_low"], row[f"{kind}_high"]
            label = {"random": "random vectors, 5–95 %", "flipped": "sides flipped, 5–95 %"}[kind]
            ax.barh(
                -place + shift, high - low, 0.28, left=low, color=NULL, alpha=alpha, label=label if not place else None
            )
        error = [[row["effect"] - row["low"]], [row["high"] - row["effect"]]]
        ax.errorbar(row["effect"], -place, xerr=error, fmt="o", color=POSITIVE, ms=5, lw=1.6, capsize=2)
    ax.set_yticks(-np.arange(len(turned)), [persona_label(name) for name in turned["persona"]])
    ax.set(xlabel="change in preference (positive − negative)")
    ax.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return ax


def plot_tokens(tokens: pd.DataFrame, *, persona: str, layer: int, ax: Axes | None = None) -> Axes:
    """Draw the projection along a prompt and an answer, token by token; the answer is in colour.

    The first token is left out: in many models it lies far from all others.

    Parameters
    ----------
    tokens
        Of :func:`utils.vectors.read_tokens`.
    """
    own = _pick(tokens, persona, layer)
    own = own[own["place"] > 0]
    ax = ax if ax is not None else new_axes(max(6.0, 0.17 * len(own)), 3.2)
    ax.axhline(0, color=_BLACK, lw=0.8)
    ax.plot(own["place"], own["projection"], color=NULL, lw=1)
    for part, colour in (("prompt", NULL), ("answer", POSITIVE)):
        rows = own[own["part"] == part]
        ax.plot(rows["place"], rows["projection"], "o", color=colour, ms=4, label=part)
    ax.set_xticks(own["place"], [_show(token) for token in own["token"]], rotation=90, fontsize=7)
    ax.set(ylabel=f"projection on {persona_label(persona)},\nlayer {layer} (residual lengths)", xlabel="")
    ax.margins(x=0.01)
    ax.legend(frameon=False, fontsize=8)
    return ax


def colour_tokens(tokens: pd.DataFrame, *, persona: str, layer: int, limit: float | None = None) -> HTML:
    """The text with each token on the colour of its projection: red towards the persona, blue away from it.

    Parameters
    ----------
    tokens
        Of :func:`utils.vectors.read_tokens`.
    limit
        Projection of the full colour; by default the largest but for the first token.

    Returns
    -------
    HTML
        For a notebook; its ``data`` is the page's text.
    """
    own = _pick(tokens, persona, layer)
    rest = own.loc[own["place"] > 0, "projection"].abs()
    limit = limit or float(rest.max()) or 1.0
    scale, spans = mpl.colormaps["RdBu_r"], []
    for _, row in own.iterrows():
        red, green, blue, _ = scale(0.5 + 0.5 * np.clip(row["projection"] / limit, -1, 1))
        dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
        style = f"background:rgb({red * 255:.0f},{green * 255:.0f},{blue * 255:.0f});color:{'#fff' if dark else '#111'}"
        style += ";font-weight:600" if row["part"] == "answer" else ""
        text = html.escape(row["token"]).replace("\n", "⏎<br>")
        spans.append(f'<span style="{style}" title="{row["projection"]:.3f}">{text}</span>')
    title = f"{html.escape(short_name(persona))}, layer {layer}; full colour at ±{limit:.2f} residual lengths; answer in bold"
    return HTML(
        f'<div style="font:14px/1.7 monospace;white-space:pre-wrap"><div style="color:#555">{title}</div>{"".join(spans)}</div>'
    )


def plot_before_and_said(answers: pd.DataFrame, *, persona: str, layer: int, ax: Axes | None = None) -> Axes:
    """Draw the projection of what was said over that of the last prompt token, one colour a system prompt.

    Parameters
    ----------
    answers
        Of :func:`utils.vectors.read_answers`.
    """
    own = answers[(answers["persona"] == persona) & (answers["layer"] == layer)]
    ax = ax if ax is not None else new_axes(4.6, 3.6)
    for place, (system, rows) in enumerate(own.groupby("system", sort=False)):
        colour = [NULL, POSITIVE, NEGATIVE, *OKABE_ITO[:4]][place % 7]
        ax.plot(rows["before"], rows["said"], "o", ms=4.5, color=colour, label=as_label(system) or "(none)")
    ax.set(xlabel="before speaking (last prompt token)", ylabel="said (mean over the answer)")
    ax.set_title(f"projection on {persona_label(persona)}, layer {layer}", fontsize=10)
    ax.legend(frameon=False, fontsize=7)
    return ax


def _draw_matrix(
    ax: Axes,
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    label: str,
    *,
    limit: float | None = None,
    marks: np.ndarray | None = None,
) -> None:
    limit = limit if limit is not None else float(np.abs(values).max()) or 1.0
    image = ax.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    ax.set_xticks(range(len(columns)), [persona_label(name) for name in columns], rotation=40, ha="right", fontsize=8)
    ax.set_yticks(range(len(rows)), [persona_label(name) for name in rows], fontsize=8)
    for i, j in np.ndindex(values.shape):
        mark = "" if marks is None else marks[i, j]
        colour = "white" if abs(values[i, j]) > 0.6 * limit else _BLACK
        ax.text(j, i, f"{values[i, j]:.2f}{mark}", ha="center", va="center", fontsize=7, color=colour)
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.9)
    bar.set_label(label, fontsize=8)


def _pick(tokens: pd.DataFrame, persona: str, layer: int) -> pd.DataFrame:
    own = tokens[(tokens["persona"] == persona) & (tokens["layer"] == layer)].sort_values("place")
    if own.empty:
        raise ValueError(f"there are no projections on {persona!r} at layer {layer}; read the tokens with that vector.")
    return own


def _show(token: str) -> str:
    return as_label(token.replace("\n", "⏎").strip()) or "·"
