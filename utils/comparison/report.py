"""A comparison of studies in a folder: its tables, figures, and one page that opens from disk."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from utils.comparison.compare import TESTS, Comparison, compare_studies
from utils.comparison.tables import difference_table, list_notes, persona_table, share_table, study_table
from utils.study.results import open_study
from utils.viz.comparison import plot_depth_curves, plot_detection_map, plot_study_overlaps, plot_verdicts
from utils.viz.pages import Section, figure_of, render_page, table_html, write_figures

_TABLES = ("curves", "thirds", "detection", "overlaps", "summary", "differences")
# Pairs of personas in the figure of overlaps.
_MOST_PAIRS = 12

_ABOUT = {
    "What is not the same": "Only what is the same can tell models, or statements, apart.",
    "Studies": "Layers were chosen, and personas found, in each study by itself. Finds: adjusted p ≤ 0.05, by the separation "
    "test, which belongs to pair accuracy, by the calibrated scan, and by the subset scan. Shared: of the personas that all "
    "studies hold. Last third: is the pair accuracy largest in the last third of the layers (mean over the personas of the "
    "study)? d: last third minus the larger of the other two. Told apart earlier: personas whose sides are told apart in the "
    "first two thirds already.",
    "Personas": "At the layer that each study scanned; p-values are adjusted within the study. Pair accuracy: the share of pairs "
    "of which a rule fitted to all other pairs knows which statement is the persona's; 0.5 is chance. Separation p: its test. "
    "Onset: relative depth of the first layer with 90 % of the largest gain over chance, where the persona is told apart over "
    "the layers together. Form accuracy: what the form of the statements alone gives. Node set: its size, and in brackets its "
    "mean size under flipped sides. Earlier p: are the sides told apart in the first two thirds of the layers already?",
    "Layers": "Layer k of L is drawn at relative depth k/L.",
    "Node sets": "Overlap of the node sets of two personas within each study: Jaccard index, in brackets under flipped sides, * "
    "where it is larger than that (adjusted p ≤ 0.05). Nodes of different studies are never matched. In the table are the pairs "
    "that overlap so in any study.",
}


def run_compare(folders: Sequence[str | Path], out: str | Path | None = None) -> Comparison:
    """Compare study folders, and write the comparison into ``out`` where it is given.

    Studies are named after their folders, with as much of the path before it as tells them apart.

    Raises
    ------
    ValueError
        As :func:`compare_studies` and :func:`write_comparison`, and a folder that is named twice.
    FileNotFoundError
        A folder holds no finished study.
    """
    paths = [Path(folder).resolve() for folder in folders]
    for i, path in enumerate(paths):
        if path in paths[:i]:
            raise ValueError(f"{folders[i]} is named twice; name every study folder once.")
    comparison = compare_studies({_name(path, paths): open_study(path) for path in paths})
    if out is not None:
        write_comparison(comparison, out)
    return comparison


def _name(path: Path, paths: Sequence[Path]) -> str:
    """The shortest end of a path that no other path ends with."""
    for length in range(1, len(path.parts) + 1):
        if sum(other.parts[-length:] == path.parts[-length:] for other in paths) == 1:
            return Path(*path.parts[-length:]).as_posix()
    # The whole path of one study may be the end of another's.
    return path.as_posix()


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
        figures: dict[str, tuple[str, str]] = {}
        write_figures(_name_figures(comparison, figures), beside / "figures")
        page = _render(comparison, figures, beside / "figures")
        (beside / "comparison.html").write_text(page, encoding="utf-8")
        made = [path.relative_to(beside) for path in beside.rglob("*") if path.is_file()]
        for path in made:
            os.replace(beside / path, folder / path)
    for old in (folder / "figures").iterdir():
        if old.suffix in {".png", ".svg"} and old.relative_to(folder) not in made:
            old.unlink()


def _render(comparison: Comparison, figures: Mapping[str, tuple[str, str]], folder: Path) -> str:
    tables = {
        "What is not the same": difference_table(comparison),
        "Studies": study_table(comparison),
        "Personas": persona_table(comparison),
        "Node sets": share_table(comparison),
    }
    sections = []
    for title, about in _ABOUT.items():
        drawn = [(folder / f"{name}.png", caption) for name, (section, caption) in figures.items() if section == title]
        notes = [] if sections else list_notes(comparison)
        sections.append(Section(title, about, _to_html(tables.get(title)), drawn, notes, unfolded=True))
    names = ", ".join(comparison.studies)
    return render_page(names, f"Studies side by side: {names}", sections, folder=folder.parent, wrap=True)


def _to_html(table: pd.DataFrame | None) -> str:
    if table is None:
        return ""
    return table_html(table) if len(table) else "<p>None.</p>"


def _name_figures(comparison: Comparison, listed: dict[str, tuple[str, str]]) -> Iterator[tuple[str, Figure]]:
    """Draw figure by figure, and list section and caption of each under its name."""
    for section, name, caption, figure in _draw(comparison):
        listed[name] = section, caption
        yield name, figure


def _draw(comparison: Comparison) -> Iterator[tuple[str, str, str, Figure]]:
    """Section, name and caption of every figure that the comparison can show."""
    for metric, about in (
        (
            "accuracy",
            "pair accuracy, leave-one-out; 0.5 is chance; dots: above chance (p ≤ 0.05, adjusted over layers)",
        ),
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
            "Is the pair accuracy largest in the last third of the layers? Right of 0 it is. The last row is the mean over the "
            "personas of each study."
        )
        yield "Layers", "verdicts", caption, figure_of(ax)
    chance = ", ".join(f"{value:g}" for value in comparison.detection["chance"].dropna().unique())
    caption = (
        "At the scanned layer; p-values are adjusted within the study. Dots: p ≤ 0.05. Accuracies and AUROC: 0.5 is chance; a "
        f"random choice of records has precision {chance}. Where form alone goes as far as the pair accuracy, what is found may "
        "be form and not persona. Grey: missing."
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
        yield "Node sets", "overlaps", caption, figure_of(ax)


def _draw_detection(comparison: Comparison) -> Figure:
    table = comparison.detection
    values = ["accuracy", "form_accuracy", *TESTS.values(), "precision", "auroc", "probe_auroc"]
    values = [name for name in values if table[name].notna().any()]
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
