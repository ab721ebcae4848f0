"""The figures of a study: which there are, what each shows, and where it is written."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from utils.folders import check_folder
from utils.layers.separation import reduce
from utils.nodes.sets import node_profiles
from utils.statements.names import find_names
from utils.statements.splits import split_parts
from utils.study.results import Study
from utils.viz import (
    plot_accuracy_curves,
    plot_detection,
    plot_embeddings,
    plot_layer_curves,
    plot_layer_heatmap,
    plot_metric_maps,
    plot_node_map,
    plot_node_profiles,
    plot_overlap,
    plot_power,
    plot_scores,
    plot_tests,
    plot_thirds,
    plot_upset,
    plot_venn,
)
from utils.viz.pages import drawing_style, figure_of, save_figure, write_figures

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FigureEntry:
    """A figure of a study: its file name without ending, the section of the report, and one sentence of reading."""

    name: str
    section: str
    caption: str
    draw: Callable[[Study], Figure]


def list_figures(study: Study) -> Iterator[FigureEntry]:
    """The figures that a study can show, in the order of the report."""
    layer = study.best_layer
    last = (
        "" if study.position != "last" else " Layer 0 at the last token is the same for all statements and is left out."
    )
    yield FigureEntry(
        "tests",
        "Personas",
        f"Are the two sides of a persona told apart at layer {layer}? Share of the test pairs of which the rule fitted to all "
        "other pairs knows the persona's statement, with 95 % interval; cross: the same from the form of the statements alone. "
        "Right: p-values of three tests, each adjusted over the personas (Benjamini–Hochberg); bold up to 0.05.",
        _draw_tests,
    )
    yield FigureEntry(
        "accuracy_curves",
        "Personas",
        "Pair accuracy over layers, test pairs; dots: above chance (adjusted over layers); triangles: onset. At the last token a "
        "rise shows when information reaches the template's token; in the mean over the statement its words are in it.",
        _draw_accuracy_curves,
    )
    if study.power is not None:
        yield FigureEntry(
            "power",
            "Personas",
            "How many personas would have been found with fewer pairs: random draws from the test pairs of this study.",
            _draw_power,
        )
    yield FigureEntry(
        "layer_curves",
        "Layers",
        "Silhouette of the two sides over layers, test pairs. Orange: value and 95 % jackknife interval; grey: what flipped "
        f"sides give; dashed: the layer that was scanned, chosen on the select pairs.{last}",
        _draw_layer_curves,
    )
    yield FigureEntry(
        "probe_curves",
        "Layers",
        "Cross-validated AUROC of a linear probe over layers, with intervals from resampled pairs; 0.5 is chance.",
        _draw_probe_curves,
    )
    yield FigureEntry(
        "layer_heatmap", "Layers", "Silhouette of every persona at every layer, test pairs.", _draw_layer_heatmap
    )
    yield FigureEntry(
        "metric_maps",
        "Layers",
        "Every metric over layers, from its lowest (dark) to its highest value (bright), so that the metrics can be compared; "
        "dots: further apart than 95 % of flipped sides.",
        _draw_metric_maps,
    )
    if study.thirds is not None:
        yield FigureEntry(
            "thirds",
            "Layers",
            "Are the sides told apart best in the last third of the layers? Above 0 they are; the last row is the mean over "
            "personas.",
            _draw_thirds,
        )
    yield FigureEntry(
        "embeddings",
        "Layers",
        f"The test statements at layer {layer}, on the first two principal components of each persona's own statements.",
        _draw_embeddings,
    )
    if pd.DataFrame(study.record["sizes"])["paired"].all():
        yield FigureEntry(
            "embeddings_centred",
            "Layers",
            "The same, each statement minus the mean of its pair: what partners share, their subject above all, is gone, and "
            "partners are mirror images. Colours on two sides: the persona is among the largest differences within pairs.",
            partial(_draw_embeddings, center="pairs"),
        )
    yield FigureEntry(
        "detection",
        "Scan",
        f"Do the runs return the persona's statements? Precision and recall at layer {layer}; p: permutation p-value, "
        "corrected over personas (Benjamini–Hochberg).",
        _draw_detection,
    )
    yield FigureEntry(
        "scores", "Scan", "Scan scores with the true sides beside scores with sides flipped within pairs.", _draw_scores
    )
    yield FigureEntry(
        "node_profiles",
        "Nodes",
        "How often the runs selected each node, from the most frequent down, with true and with flipped sides. Runs share "
        "statements and nodes are correlated, so that flipped sides select many nodes often, too.",
        _draw_node_profiles,
    )
    yield FigureEntry(
        "node_map",
        "Nodes",
        "The node set of every persona: red where its statements lie above the background, blue where below.",
        _draw_node_map,
    )
    filled = [persona for persona, held in study.node_sets.items() if held]
    if len(filled) >= 2:
        yield FigureEntry(
            "upset",
            "Overlap",
            "Sizes of the exclusive intersections of the (node, side) sets, the largest first.",
            _draw_upset,
        )
        yield FigureEntry(
            "overlap",
            "Overlap",
            "Jaccard index of every two node sets; a dot marks an overlap larger than scans with flipped sides give "
            "(adjusted p ≤ 0.05).",
            _draw_overlap,
        )
    for topic, personas in _topics(study).items():
        held = [persona for persona in personas if persona in filled]
        if 2 <= len(held) <= 6:
            yield FigureEntry(
                f"venn_{topic}", "Overlap", f"Shared and distinct nodes of the {topic} personas.", _venn_of(held)
            )


def draw_figures(study: Study) -> None:
    """Draw every figure of a study into ``figures/`` as PNG and SVG."""
    folder = study.folder / "figures"
    folder.mkdir(exist_ok=True)
    entries = list(list_figures(study))
    current = {entry.name for entry in entries}
    for old in folder.iterdir():
        if old.suffix in {".png", ".svg"} and old.stem not in current:
            old.unlink()
    write_figures(((entry.name, entry.draw(study)) for entry in entries), folder)


def draw_again(
    study: Study,
    names: Sequence[str] | None,
    *,
    folder: Path,
    kind: Literal["png", "svg", "pdf"] = "pdf",
    width: float | None = None,
) -> list[Path]:
    """Draw some figures of a study into a folder of their own, in the same style.

    Parameters
    ----------
    names
        As :func:`list_figures` calls them; None for all.
    width
        Inches; the height keeps its proportion to it. That of each figure by default.

    Raises
    ------
    ValueError
        An unknown name, with near matches, or a width that is not between 1 and 40 inches.
    """
    if width is not None and not 1 <= width <= 40:
        raise ValueError(f"a figure cannot be {width:g} inches wide; give a width from 1 to 40.")
    entries = {entry.name: entry for entry in list_figures(study)}
    chosen = list(entries) if names is None else find_names("figure", names, entries)
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with drawing_style():
        for name in chosen:
            figure = entries[name].draw(study)
            if width is not None:
                figure.set_size_inches(width, width * figure.get_figheight() / figure.get_figwidth())
            written.append(save_figure(figure, folder / name, kind))
            plt.close(figure)
    return written


def _draw_tests(study: Study) -> Figure:
    table = study.detection[study.detection["layer"] == study.best_layer]
    return figure_of(plot_tests(table, form=study.form if study.record["has_texts"] else None))


def _draw_accuracy_curves(study: Study) -> Figure:
    return plot_accuracy_curves(study.localization, onset=study.onset, mark=study.best_layer).flat[0].figure


def _draw_power(study: Study) -> Figure:
    if study.power is None:
        raise ValueError("the study has no table of power; ask for it with power_draws.")
    return figure_of(plot_power(study.power))


def _draw_layer_curves(study: Study) -> Figure:
    return plot_layer_curves(study.layers, metric="silhouette", mark=study.best_layer).flat[0].figure


def _draw_probe_curves(study: Study) -> Figure:
    return plot_layer_curves(study.layers, metric="probe_auroc", mark=study.best_layer).flat[0].figure


def _draw_layer_heatmap(study: Study) -> Figure:
    layers = study.layers.dropna(subset="silhouette")
    return figure_of(plot_layer_heatmap(layers, metric="silhouette", mark=study.best_layer))


def _draw_metric_maps(study: Study) -> Figure:
    return plot_metric_maps(study.layers, mark=study.best_layer).flat[0].figure


def _draw_thirds(study: Study) -> Figure:
    model = pd.DataFrame([{**study.record["thirds"], "persona": "mean over personas"}])
    return figure_of(plot_thirds(pd.concat([study.thirds, model], ignore_index=True)))


def _draw_embeddings(study: Study, center: Literal["none", "pairs"] = "none") -> Figure:
    acts = study.activations.sel(layer=study.best_layer)
    acts = acts.isel(statement=split_parts(acts, rng=study.config["seed"]) == "test").load()
    frames, explained = [], {}
    for persona in study.personas:
        points = reduce(acts.sel(persona=persona), method="pca", center=center, rng=study.config["seed"])
        explained[persona] = points.attrs.pop("explained")
        frames.append(points)
    return plot_embeddings(pd.concat(frames, ignore_index=True), explained=explained).flat[0].figure


def _draw_detection(study: Study) -> Figure:
    table = study.detection[study.detection["layer"] == study.best_layer]
    return figure_of(plot_detection(table.assign(p_value=table["p_adjusted"])))


def _draw_scores(study: Study) -> Figure:
    scores = [runs.table[["kind", "score"]].assign(persona=persona) for persona, runs in study.runs.items()]
    return figure_of(plot_scores(pd.concat(scores, ignore_index=True)))


def _draw_node_profiles(study: Study) -> Figure:
    topics = study.layers.drop_duplicates("persona")[["persona", "topic"]]
    profiles = node_profiles(study.runs).merge(topics, on="persona")
    return plot_node_profiles(profiles, threshold=study.config["threshold"]).flat[0].figure


def _draw_node_map(study: Study) -> Figure:
    at_best = study.nodes[study.nodes["layer"] == study.best_layer]
    labels = zip(at_best["persona"], at_best["node"], at_best["sign"], strict=True)
    held = [(node, sign) in study.node_sets[persona] for persona, node, sign in labels]
    # Nodes outside the set count as never selected, so that a persona with an empty set keeps its row.
    shown = at_best.assign(frequency=at_best["frequency"].where(np.asarray(held, bool), 0.0))
    return figure_of(plot_node_map(shown, study.record["n_nodes"]))


def _draw_upset(study: Study) -> Figure:
    return plot_upset(study.node_sets)


def _draw_overlap(study: Study) -> Figure:
    return figure_of(plot_overlap(study.overlap))


def _venn_of(personas: list[str]) -> Callable[[Study], Figure]:
    return lambda study: figure_of(plot_venn({persona: study.node_sets[persona] for persona in personas}))


def _topics(study: Study) -> dict[str, list[str]]:
    first = study.layers.drop_duplicates("persona")
    return {str(topic): rows["persona"].tolist() for topic, rows in first.groupby("topic", sort=False)}
