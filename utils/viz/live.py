"""Figures of a page that answer to the reader, by Bokeh, whose script is part of the page: nothing is loaded from elsewhere."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, cast

import numpy as np
import pandas as pd
from bokeh.embed import components
from bokeh.layouts import column, row
from bokeh.models import (
    ColumnDataSource,
    CustomJS,
    Div,
    HoverTool,
    LayoutDOM,
    Legend,
    LegendItem,
    Range1d,
    Select,
    Slider,
    TapTool,
)
from bokeh.palettes import Category20
from bokeh.plotting import figure
from bokeh.resources import Resources

from utils.intervals import LEVEL
from utils.viz.labels import short_name
from utils.viz.style import NEGATIVE, POSITIVE

_HEIGHT = 460
_METHODS = {"pca": "principal components", "umap": "UMAP"}
_CENTERS = {"none": "raw", "pairs": "pair-centred"}

_SHOW = """
const key = `${method.value}|${center.value}`, held = layers[key];
if (held === undefined) return;
const steps = held.length - 1;
if (slider.end !== Math.max(steps, 1)) { slider.end = Math.max(steps, 1); }
slider.disabled = steps === 0;
const at = Math.min(slider.value, steps), layer = held[at];
const x = maps.data[`${key}|${layer}|1`], y = maps.data[`${key}|${layer}|2`], shown = source.data;
let size = [0, 0];
for (let i = 0; i < x.length; i++) {
  const wanted = persona.value === 'all' || shown.persona[i] === persona.value;
  shown.x[i] = wanted ? x[i] : NaN; shown.y[i] = wanted ? y[i] : NaN;
  shown.color[i] = (colour.value === 'side' ? shown.side_color : shown.persona_color)[i];
  if (wanted) { size = [Math.max(size[0], Math.abs(x[i])), Math.max(size[1], Math.abs(y[i]))]; }
}
plot.x_range.setv({start: -1.08 * size[0], end: 1.08 * size[0]});
plot.y_range.setv({start: -1.08 * size[1], end: 1.08 * size[1]});
plot.title.text = `layer ${layer}, ${method.value}, ${center.value}`;
source.change.emit();
"""
_PICK = """
const picked = source.selected.indices;
if (picked.length === 0) { words.text = hint; return; }
const i = picked[0], partner = source.data.partner[i];
if (partner >= 0 && picked.indexOf(partner) < 0) { source.selected.indices = [i, partner]; return; }
const say = (k) => `${source.data.persona[k]}, ${source.data.side[k]}: ${source.data.text[k]}`;
words.text = partner >= 0 ? `${say(i)}\\n${say(partner)}` : say(i);
"""
_HINT = "Point at a statement to read it, click it to see its partner."


def map_figure(maps: pd.DataFrame, statements: pd.DataFrame, *, layer: int) -> LayoutDOM:
    """Statements as points: a slider over layers, colour by side or persona, the text under the pointer.

    Parameters
    ----------
    maps
        Of :func:`utils.layers.map_statements`.
    statements
        One row a statement of the maps, and more: ``id, persona, direction, pair, text``.
    layer
        Shown at first, or the nearest that is there.
    """
    first = maps[(maps["method"] == maps["method"].iloc[0]) & (maps["center"] == maps["center"].iloc[0])]
    ids = first.loc[first["layer"] == first["layer"].iloc[0], "id"]
    own = statements.set_index("id").loc[ids].reset_index()
    held: dict[str, list[int]] = {}
    coordinates = {}
    for (method, center, at), points in cast(Any, maps.groupby(["method", "center", "layer"], sort=False)):
        key = f"{_METHODS[method]}|{_CENTERS[center]}"
        held.setdefault(key, []).append(int(at))
        points = points.set_index("id").loc[ids]
        middle = points[["x1", "x2"]].mean()
        for axis in (1, 2):
            coordinates[f"{key}|{at}|{axis}"] = (points[f"x{axis}"] - middle[f"x{axis}"]).to_numpy(np.float32)
    keys = [name.split("|") for name in held]
    key = next(iter(held))
    start = int(np.abs(np.array(held[key]) - layer).argmin())
    title = f"layer {held[key][start]}, {keys[0][0]}, {keys[0][1]}"
    personas = list(dict.fromkeys(own["persona"]))
    colors = dict(zip(personas, _palette(len(personas)), strict=True))
    positive = (own["direction"] == "positive").to_numpy()
    side_color = np.where(positive, POSITIVE, NEGATIVE)
    x, y = (coordinates[f"{key}|{held[key][start]}|{axis}"] for axis in (1, 2))
    source = ColumnDataSource(
        {
            "x": x.astype(float),
            "y": y.astype(float),
            "color": side_color.astype(object),
            "side_color": side_color.astype(object),
            "persona_color": own["persona"].map(colors).to_numpy(object),
            "persona": own["persona"].map(short_name).to_numpy(object),
            "side": own["direction"].to_numpy(object),
            "text": own["text"].to_numpy(object),
            "partner": _partners(own),
            "marker": np.where(positive, "circle", "x").astype(object),
        }
    )
    plot = figure(
        height=_HEIGHT, sizing_mode="stretch_width", tools="pan,wheel_zoom,box_zoom,reset", toolbar_location="above",
        x_axis_label="component 1", y_axis_label="component 2", title=title,
        x_range=_range(x), y_range=_range(y), output_backend="canvas",
    )  # fmt: skip
    dots = plot.scatter(
        "x",
        "y",
        source=source,
        color="color",
        marker="marker",
        size=7,
        alpha=0.7,
        nonselection_alpha=0.15,
        line_width=1.5,
    )
    plot.add_tools(
        HoverTool(renderers=[dots], tooltips=[("", "@text"), ("", "@persona, @side")]), TapTool(renderers=[dots])
    )
    method = Select(title="Map", value=keys[0][0], options=list(dict.fromkeys(each for each, _ in keys)), width=190)
    center = Select(
        title="Activations", value=keys[0][1], options=list(dict.fromkeys(each for _, each in keys)), width=130
    )
    colour = Select(title="Colour", value="side", options=["side", "persona"], width=100)
    persona = Select(title="Persona", value="all", options=["all", *map(short_name, personas)], width=190)
    slider = Slider(title="Layer, from the first", start=0, end=max(1, len(held[key]) - 1), value=start, step=1, show_value=False,
                    sizing_mode="stretch_width")  # fmt: skip
    words = Div(text=_HINT, render_as_text=True, styles={"white-space": "pre-line", "min-height": "3.2em"})
    show = CustomJS(
        args={
            "source": source, "maps": ColumnDataSource(coordinates), "layers": held, "plot": plot, "slider": slider,
            "method": method, "center": center, "colour": colour, "persona": persona,
        },
        code=_SHOW,
    )  # fmt: skip
    for widget in (method, center, colour, persona, slider):
        widget.js_on_change("value", show)
    source.selected.js_on_change(
        "indices", CustomJS(args={"source": source, "words": words, "hint": _HINT}, code=_PICK)
    )
    sides = {"● positive": POSITIVE, "× negative": NEGATIVE}
    legends = [_chips(sides), _chips({f"■ {short_name(name)}": color for name, color in colors.items()})]
    controls = row(method, center, colour, persona, styles={"flex-wrap": "wrap"}, sizing_mode="stretch_width")
    return column(controls, slider, plot, *legends, words, sizing_mode="stretch_width")


def layer_figure(localization: pd.DataFrame, *, position: str, mark: int) -> LayoutDOM:
    """Pair accuracy over layers, a line a persona; the pointer reads the values, the legend hides a line.

    Parameters
    ----------
    localization
        Of :func:`utils.layers.layer_accuracy`.
    position
        The token position that is shown.
    mark
        The layer that was scanned.
    """
    own = localization[localization["position"] == position]
    personas = list(own["persona"].unique())
    title = f"position {position}; dashed: layer {mark}; large dots: adjusted p ≤ {LEVEL}"
    plot = figure(
        height=_HEIGHT, sizing_mode="stretch_width", tools="pan,box_zoom,reset", toolbar_location="above",
        x_axis_label="layer", y_axis_label="pair accuracy, test pairs", title=title,
    )  # fmt: skip
    plot.line(
        [mark, mark], [own["accuracy_low"].min(), own["accuracy_high"].max()], color="#555555", line_dash="dashed"
    )
    plot.line(own["layer"].agg(["min", "max"]).tolist(), [0.5, 0.5], color="#aaaaaa")
    items: list[LegendItem] = []
    dots: list[Any] = []
    for persona, color in zip(personas, _palette(len(personas)), strict=True):
        rows = own[own["persona"] == persona].sort_values("layer")
        columns = {
            "layer": rows["layer"],
            "accuracy": rows["accuracy"],
            "low": rows["accuracy_low"],
            "high": rows["accuracy_high"],
            "p": rows["p_adjusted"],
        }
        data: dict[str, Any] = {name: values.to_numpy() for name, values in columns.items()}
        data["persona"] = np.array([short_name(persona)] * len(rows), object)
        data["size"] = np.where(rows["p_adjusted"] <= LEVEL, 7, 3)
        source = ColumnDataSource(data)
        line: Any = plot.line("layer", "accuracy", source=source, color=color, line_width=1.5)
        dots.append(plot.scatter("layer", "accuracy", source=source, color=color, size="size"))
        items.append(LegendItem(label=short_name(persona), renderers=[line, dots[-1]]))
    plot.add_layout(Legend(items=items, click_policy="hide", label_text_font_size="11px", spacing=0), "right")
    tips = [
        ("", "@persona, layer @layer"),
        ("accuracy", "@accuracy{0.000} (@low{0.000} to @high{0.000})"),
        ("adjusted p", "@p{0.0000}"),
    ]
    plot.add_tools(HoverTool(renderers=dots, tooltips=tips))
    return plot


def embed_figures(figures: Sequence[LayoutDOM]) -> tuple[str, list[str]]:
    """HTML of figures: what a page needs once, and a part for each figure."""
    if not figures:
        return "", []
    script, parts = components(list(figures))
    library = Resources(mode="inline", components=["bokeh", "bokeh-widgets"]).render()
    return f"{library}\n{script}", list(parts)


def _partners(statements: pd.DataFrame) -> np.ndarray:
    """Where each statement's partner is, -1 where it has none."""
    places: dict[tuple, list[int]] = {}
    for place, each in enumerate(zip(statements["persona"], statements["pair"], strict=True)):
        places.setdefault(each, []).append(place)
    partners = np.full(len(statements), -1)
    for (_, pair), held in places.items():
        if len(held) == 2 and not pd.isna(pair) and pair != "":
            partners[held] = held[::-1]
    return partners


def _chips(colors: Mapping[str, str]) -> Div:
    """A legend in one line."""
    shown = [
        f'<span style="color: {color}; white-space: nowrap">{escape(name)}</span>' for name, color in colors.items()
    ]
    return Div(text=" &nbsp; ".join(shown), sizing_mode="stretch_width", disable_math=True)


def _palette(n: int) -> list[str]:
    return [Category20[20][2 * i % 20 + 2 * i // 20 % 2] for i in range(n)]


def _range(values: np.ndarray) -> Range1d:
    size = 1.08 * float(np.abs(values).max())
    return Range1d(start=-size, end=size)
