"""A comparison of studies in a folder: its tables, figures, and one page that opens from disk."""

import base64
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jinja2
import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.comparison.compare import Comparison
from utils.comparison.tables import difference_table, list_notes, persona_table, share_table, study_table
from utils.viz.comparison import plot_depth_curves, plot_detection_map, plot_study_overlaps, plot_verdicts
from utils.viz.pages import save_figure

_TABLES = ("curves", "thirds", "detection", "overlaps", "summary", "differences")
# Pairs of personas in the figure of overlaps.
_MOST_PAIRS = 12

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>personascope: {{ names | join(", ") }}</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
  h1 { font-size: 1.7rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
  figure { margin: 1.5rem 0; } img { max-width: 100%; } figcaption { color: #444; font-size: .92rem; }
  .scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .88rem; }
  th, td { padding: .25rem .6rem; text-align: left; border-bottom: 1px solid #e3e3e3; vertical-align: top; }
  .warn { background: #fff3d6; border-left: 4px solid #e69f00; padding: .6rem 1rem; }
</style>
</head>
<body>
<h1>Studies side by side: {{ names | join(", ") }}</h1>
{% for title, about, table, figures in sections %}
<h2>{{ title }}</h2>
<p>{{ about }}</p>
{% if table %}<div class="scroll">{{ table | safe }}</div>{% endif %}
{% if loop.first %}{% for sentence in notes %}<p class="warn">{{ sentence }}</p>
{% endfor %}{% endif %}
{% for name, caption, image in figures %}
<figure><img src="data:image/png;base64,{{ image }}" alt="{{ name }}"><figcaption>{{ caption }}</figcaption></figure>
{% endfor %}
{% endfor %}
</body>
</html>
"""
_ABOUT = {
    "What is not the same": "Only what is the same can tell models, or statements, apart.",
    "Studies": "Layers were chosen, and personas found, in each study by itself. Found: adjusted p ≤ 0.05. Of shared: of the "
    "personas that all studies hold. Last third: do the sides lie furthest apart in the last third of the layers (silhouette, "
    "mean over the personas of the study)? d: last third minus the larger of the other two.",
    "Personas": "At the layer that each study scanned. Node set: its size, and in brackets its mean size under flipped sides.",
    "Layers": "Layer k of L is drawn at relative depth k/L.",
    "Node sets": "Overlap of the node sets of two personas within each study: Jaccard index, in brackets under flipped sides, * "
    "where it is larger than that (adjusted p ≤ 0.05). Nodes of different studies are never matched. In the table are the pairs "
    "that overlap so in any study.",
}


def write_comparison(comparison: Comparison, folder: str | Path) -> None:
    """Write a comparison into a folder.

    Written: every table as Parquet and CSV, ``comparison.json`` (what the studies were configured with), ``figures/`` as
    SVG and PNG, and ``comparison.html``, which opens from disk. Files are made beside their places and then moved there.

    Raises
    ------
    ValueError
        The folder is a study, whose own tables would be overwritten.
    """
    folder = Path(folder)
    if (folder / "study.json").exists():
        raise ValueError(f"{folder} is a study, whose tables a comparison would overwrite; choose another folder.")
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".comparison-") as name:
        beside = Path(name)
        for table in _TABLES:
            getattr(comparison, table).to_parquet(beside / f"{table}.parquet", index=False)
            getattr(comparison, table).to_csv(beside / f"{table}.csv", index=False)
        (beside / "comparison.json").write_text(json.dumps(comparison.configurations, indent=1), encoding="utf-8")
        page = _render(comparison, _write_figures(comparison, beside / "figures"))
        (beside / "comparison.html").write_text(page, encoding="utf-8")
        made = [path.relative_to(beside) for path in beside.rglob("*") if path.is_file()]
        for path in made:
            os.replace(beside / path, folder / path)
    for old in (folder / "figures").iterdir():
        if old.suffix in {".png", ".svg"} and old.relative_to(folder) not in made:
            old.unlink()


def _render(comparison: Comparison, figures: dict[str, list[tuple[str, str, str]]]) -> str:
    tables = {
        "What is not the same": difference_table(comparison),
        "Studies": study_table(comparison),
        "Personas": persona_table(comparison),
        "Node sets": share_table(comparison),
    }
    sections = [(title, about, _to_html(tables.get(title)), figures.get(title, [])) for title, about in _ABOUT.items()]
    page = jinja2.Environment(autoescape=True).from_string(_PAGE)
    return page.render(names=comparison.studies, notes=list_notes(comparison), sections=sections)


def _to_html(table: pd.DataFrame | None) -> str:
    if table is None:
        return ""
    return table.to_html(index=False, border=0) if len(table) else "<p>None.</p>"


def _write_figures(comparison: Comparison, folder: Path) -> dict[str, list[tuple[str, str, str]]]:
    """Draw all figures; by section of the page, their names, captions and images."""
    folder.mkdir()
    written: dict[str, list[tuple[str, str, str]]] = {}
    # A fixed salt, so that the same comparison gives the same files.
    with matplotlib.rc_context(
        {"svg.hashsalt": "personascope", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    ):
        for section, name, caption, figure in _draw(comparison):
            save_figure(figure, folder / name)
            plt.close(figure)
            image = base64.b64encode((folder / f"{name}.png").read_bytes()).decode()
            written.setdefault(section, []).append((name, caption, image))
    return written


def _draw(comparison: Comparison) -> Iterator[tuple[str, str, str, Figure]]:
    """Section, name and caption of every figure that the comparison can show."""
    for metric, about in (
        ("silhouette", "0 is no clustering; dots: further apart than 95 % of flipped sides"),
        ("probe_auroc", "cross-validated AUROC of a linear probe; 0.5 is chance"),
    ):
        caption = f"The two sides of each persona over relative depth, test part, with 95 % intervals: {about}."
        axes = plot_depth_curves(comparison.curves, metric=metric, studies=comparison.studies)
        yield "Layers", f"depth_{metric}", caption, axes.flat[0].figure
    if comparison.thirds["d"].notna().any():
        mean = comparison.summary[["study", "d", "d_low", "d_high", "verdict"]].assign(persona="mean over personas")
        ax = plot_verdicts(pd.concat([comparison.thirds[mean.columns], mean], ignore_index=True))
        caption = (
            "Do the sides lie furthest apart in the last third of the layers? Right of 0 they do. The last row is the mean over "
            "the personas of each study."
        )
        yield "Layers", "verdicts", caption, _figure_of(ax)
    chance = ", ".join(f"{value:g}" for value in comparison.detection["chance"].dropna().unique())
    caption = (
        "At the scanned layer. Dots: adjusted p ≤ 0.05 within the study. AUROC and form accuracy: 0.5 is chance; a random choice "
        f"of records has precision {chance}. Where form alone goes as far as the probe, what is found may be form and not "
        "persona. Grey: missing."
    )
    yield "Personas", "detection", caption, _draw_detection(comparison)
    pairs = _choose_pairs(comparison.overlaps)
    if len(pairs):
        ax = plot_study_overlaps(pairs.merge(comparison.overlaps, on=["a", "b"]))
        caption = (
            "Do the same personas share nodes in every study? Of the pairs of personas that at least two studies hold, the "
            f"{len(pairs)} with the largest Jaccard index in any. Bars: what flipped sides give for sets of these sizes. Full "
            "markers: more than that (adjusted p ≤ 0.05). Crosses: no such persona, or empty sets."
        )
        yield "Node sets", "overlaps", caption, _figure_of(ax)


def _draw_detection(comparison: Comparison) -> Figure:
    table = comparison.detection
    optional = [name for name in ("auroc", "form_accuracy") if table[name].notna().any()]
    values = ["p_adjusted", "precision", "probe_auroc", *optional]
    size = (1.8 + len(values) * (0.3 + 0.45 * len(comparison.studies)), 1.8 + 0.3 * len(comparison.personas))
    figure, axes = plt.subplots(1, len(values), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for value, ax in zip(values, axes.flat, strict=True):
        plot_detection_map(table, value=value, ax=ax)
    return figure


def _choose_pairs(overlaps: pd.DataFrame) -> pd.DataFrame:
    """``a, b`` of the pairs to draw, the largest Jaccard index first; none that shares nothing in every study."""
    jaccard = overlaps.groupby(["a", "b"], sort=False)["jaccard"].agg(["max", "count"])
    chosen = jaccard[(jaccard["count"] >= 2) & (jaccard["max"] > 0)].nlargest(_MOST_PAIRS, "max")
    return chosen.reset_index()[["a", "b"]]


def _figure_of(ax: Axes) -> Figure:
    figure = ax.figure
    assert isinstance(figure, Figure)
    return figure
