"""An audit in a folder: tables, figures, and one page that opens from disk."""

import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from utils.audit.run import TABLES, Audit, pair_label
from utils.folders import hold_folder
from utils.records import REMAINS, digest_of, replace_text, write_beside, write_frame
from utils.viz.audit import plot_excess, plot_union_sizes
from utils.viz.nodes import plot_scores
from utils.viz.pages import NUMBERS, Section, drawing_style, render_page, table_html, write_figures

RECORD = "audit.json"
PAGE = "report.html"
# Counts of nodes have four digits.
_NUMBERS = NUMBERS | {"float_format": "{:,.4g}".format}
# Pairs in the figure of overlaps.
_MOST_PAIRS = 30

_SCORES, _SETS, _RECORDS, _PAIRS = "Scores", "Node sets", "Records", "Pairs"
_ABOUT = {
    _SCORES: "Scores of the runs, and the chance that a mixed run scores above a null run (AUROC). Runs of one "
    "experiment draw from the same records, so that neither the AUROC nor its interval over runs is a test: "
    "1.00 can come from one unusual record.",
    _SETS: "How many nodes at least a share of the runs chose. The union over all runs grows with every run, "
    "whatever is scanned; in the table is also what runs of these sizes would give if each drew its nodes "
    "anew (expected_size), and, where there are clean runs, what the scan chooses without any anomalous "
    "record.",
    _RECORDS: "Precision and recall of the anomalous records, recomputed from the records that the runs returned. Low "
    "and high are the 5th and 95th percentile of the runs: a spread, and no interval of anything. Pooled: "
    "over all runs together, with a 95 % bootstrap interval over the records, scans kept as they were; only "
    "where records can be told apart over runs.",
    _PAIRS: "Nodes that two sets share, beside those that two sets of equal size drawn from all nodes share on "
    "average (expected), and the exact chance of at least so many (p_more, hypergeometric). Nodes of a model "
    "are correlated, so this null is easy to exceed; with clean runs their nodes stand beside, and where "
    "sides can be flipped, what flipped sides give (flipped).",
}
_GLOSSARY = {
    "mixed run": "a scan of clean and anomalous records together",
    "clean run": "the same without anomalous records",
    "any run": "the union of the nodes over all runs",
    "independence": "two sets of the same sizes, drawn from all nodes with equal chances",
    "excess": "shared nodes less expected ones, as a share of the smaller set",
    "adjusted": "after Benjamini–Hochberg over the pairs at one share of the runs",
}


def write_audit(audit: Audit, folder: str | Path, *, config: Mapping[str, Any] | None = None) -> Path:
    """Write an audit into a folder, and return its page.

    Written: every table of the audit as Parquet and CSV, ``figures/`` as PNG and SVG, ``report.html``, and
    ``audit.json``: ``config``, versions and a digest of every file. Each is made beside its place and then moved
    there, the record last.

    Raises
    ------
    ValueError
        The folder holds a run of another kind.
    OSError
        It cannot be written to.
    """
    folder = Path(folder)
    with hold_folder(folder, record=RECORD):
        (folder / RECORD).unlink(missing_ok=True)
        for remains in folder.rglob(REMAINS):  # of a run that was killed
            remains.unlink(missing_ok=True)
        files = []
        for name in TABLES:
            table: pd.DataFrame = getattr(audit, name)
            write_frame(folder / f"{name}.parquet", table)
            with write_beside(folder / f"{name}.csv") as beside:
                table.to_csv(beside, index=False)
            files += [f"{name}.parquet", f"{name}.csv"]
        figures = folder / "figures"
        with drawing_style():
            drawn = draw_audit(audit)
        write_figures([(name, ax) for name, (ax, _) in drawn.items()], figures)
        for name in {"scores", "unions", "overlaps"} - set(drawn):  # of an audit of other files
            for old in figures.glob(f"{name}.*"):
                old.unlink()
        captions = {name: caption for name, (_, caption) in drawn.items()}
        record = {"config": dict(config or {}), "shares": audit.shares, "notes": audit.notes}
        record["versions"] = {
            name: importlib.metadata.version(name) for name in ("personascope", "numpy", "scipy", "pandas")
        }
        replace_text(folder / PAGE, _render(audit, folder, captions, json.dumps(record, indent=1, default=str)))
        record["files"] = {name: digest_of(folder / name) for name in (*files, PAGE)}
        replace_text(folder / RECORD, json.dumps(record, indent=1, default=str))
    return folder / PAGE


def draw_audit(audit: Audit) -> dict[str, tuple[Axes, str]]:
    """The figures of an audit by name, each with a sentence of reading: scores, unions, and overlaps if there are any."""
    nulls = {"clean": "clean runs", "flipped": "sides flipped"}
    held = [nulls[null] for null in audit.summary["null"].dropna().unique()]
    runs = audit.runs.rename(columns={"source": "persona"})
    runs["kind"] = runs["kind"].where(runs["kind"] == "mixed", "null")
    labels = ("mixed runs", " or ".join(held) or "null runs")
    made = {
        "scores": (
            plot_scores(runs, labels=labels),
            f"Scores of mixed runs{' and of ' + labels[1] if held else ''}. Those of runs with another score function, other "
            "sizes or another background are not comparable.",
        ),
        "unions": (
            plot_union_sizes(audit.profiles, shares=list(audit.shares)),
            "Nodes that at least a share of the runs chose; the left end is the union over all runs. Grey "
            "lines: the shares of the table.",
        ),
    }
    if len(audit.overlaps):
        chosen, cut = _choose_pairs(audit.overlaps)
        made["overlaps"] = (
            plot_excess(chosen),
            "Shared nodes less those that independence gives, as a share of the smaller set, on a scale from −1 to 1. In the "
            f"cells: shared, and in brackets expected. Dots: adjusted p ≤ 0.05; grey: an empty set{cut}.",
        )
    return made


def _choose_pairs(overlaps: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The pairs to draw, those furthest from independence where there are too many, and a remark on that."""
    table = overlaps.assign(pair=[pair_label(row) for row in overlaps.to_dict("records")])
    furthest = table.assign(excess=table["excess"].abs()).groupby("pair", sort=False)["excess"].max()
    if len(furthest) <= _MOST_PAIRS:
        return table, ""
    kept = furthest.nlargest(_MOST_PAIRS).index
    rank = {pair: i for i, pair in enumerate(kept)}
    shown = table[table["pair"].isin(kept)].sort_values("pair", key=lambda names: names.map(rank), kind="stable")
    return shown, f". Drawn are the {_MOST_PAIRS} of {len(furthest)} pairs furthest from independence at any share"


def _render(audit: Audit, folder: Path, captions: Mapping[str, str], configuration: str) -> str:
    summary, place = audit.summary, folder / "figures"
    ends = ("", "_low", "_high")
    scores = ["source", "null", "n_runs", "n_distinct", "n_null_runs", "n_distinct_null"]
    scores += [f"{name}{end}" for name in ("score", "null_score", "auroc") for end in ends] + ["p_value"]
    records = ["source", "n_clean", "n_anomalous", "chance"]
    records += [f"{name}{end}" for name in ("precision", "recall", "pooled_precision") for end in ends]
    records += ["stated_precision", "stated_recall", "n_otherwise"]
    tables = {
        _SCORES: (summary[scores], ["summary.csv", "runs.csv"]),
        _SETS: (audit.sets.round({"expected_size": 1}), ["sets.csv", "profiles.csv"]),
        _RECORDS: (summary[records], ["summary.csv", "runs.csv"]),
        _PAIRS: (_pair_table(audit), ["overlaps.csv", "pairs.csv"]),
    }
    figures = {_SCORES: "scores", _SETS: "unions", _PAIRS: "overlaps"}
    sections = []
    for title, about in _ABOUT.items():
        table, files = tables[title]
        drawn = [(place / f"{name}.png", captions[name]) for name in [figures.get(title, "")] if name in captions]
        shown = table_html(table.dropna(axis="columns", how="all"), **_NUMBERS) if len(table) else ""
        sections.append(Section(title, about, shown, drawn, files=files, unfolded=len(table) <= 20))
    names = ", ".join(summary["source"])
    return render_page(
        f"audit of {names}",
        "Audit of scan runs",
        sections,
        folder=folder,
        lead=[f"{len(summary)} source{'s' if len(summary) > 1 else ''}: {names}.", *audit.findings],
        findings=[(source, " ".join(sentences)) for source, sentences in audit.sentences.items()],
        warnings=audit.notes,
        glossary=_GLOSSARY,
        configuration=configuration,
        wrap=True,
    )


def _pair_table(audit: Audit) -> pd.DataFrame:
    sentences = {pair_label(row): row["sentence"] for row in audit.pairs.to_dict("records")}
    return pd.DataFrame(
        {"pair": list(sentences), "does the overlap exceed independence?": np.array(list(sentences.values()), object)}
    )
