"""A comparison of studies in words: tables to read, and what to keep in mind with them."""

from textwrap import fill

import numpy as np
import pandas as pd

from utils.comparison.compare import TESTS, Comparison
from utils.study.summary import LEVEL
from utils.viz.style import short_name


def comparison_table(comparison: Comparison) -> str:
    """A comparison as plain text: what was not the same, notes, studies, personas, and node sets that overlap."""
    shared = share_table(comparison)
    tables = {
        "Studies": study_table(comparison),
        "Personas": persona_table(comparison),
        "Jaccard of node sets that overlap more than under flipped sides (in brackets) in any study": shared,
    }
    blocks = [_write_differences(comparison.differences), *list_notes(comparison)]
    blocks += [f"{title}\n{_write(table)}" for title, table in tables.items()]
    return "\n\n".join(blocks)


def list_notes(comparison: Comparison) -> list[str]:
    """Sentences on what is missing and on what numbers cannot say."""
    notes = []
    lacking = comparison.thirds[comparison.thirds["status"] == "not judged"]
    for name, rows in lacking.groupby("study", sort=False):
        notes.append(
            f"{name} has no verdict on the thirds for {', '.join(map(short_name, rows['persona']))}: not every layer was "
            "extracted, or there are fewer than three."
        )
    given = comparison.detection[comparison.detection["gives_away"].fillna(False).astype(bool)]
    for name, rows in given.groupby("study", sort=False):
        personas = ", ".join(map(short_name, rows["persona"]))
        notes.append(
            f"In {name} the form of the statements alone tells the sides apart for {personas}: what is found there may be "
            "form and not persona."
        )
    for tests, smallest, draws in (
        ("the scan", "smallest_p_alone", "permutations"),
        ("the separation test and the calibrated scan", "smallest_p_alone_flips", "flips"),
    ):
        table = comparison.summary[comparison.summary[smallest] > LEVEL]
        for name, least, count in zip(table["study"], table[smallest], table[draws], strict=True):
            notes.append(
                f"In {name} a persona that is alone in being found cannot have an adjusted p below {least:.2g} by {tests} "
                f"({count} {draws})."
            )
    notes.append(
        "p-values are corrected within each study, not over studies. That a persona is found in one study and not in another "
        "does not show that the two differ."
    )
    return notes


def study_table(comparison: Comparison) -> pd.DataFrame:
    """One row a study: what was scanned, how many personas each test finds, and the two answers about the last third."""
    table = comparison.summary
    found = {f"{test} finds": _count(table, test) for test in TESTS}
    return pd.DataFrame(
        {
            "study": table["study"],
            "model": table["model"],
            "scanned layer": [
                f"{row.best_layer} of {row.n_layers} ({row.best_depth:.0%})" for row in table.itertuples()
            ],
            **found,
            "last third": _name_verdicts(table["verdict"]),
            "d (95 %)": _intervals(table, "d", ".4f"),
            "told apart earlier": [
                "–" if np.isnan(early) else f"{early:.0f} of {n}"
                for early, n in zip(table["n_early"], table["n_personas"], strict=True)
            ],
        }
    )


def persona_table(comparison: Comparison) -> pd.DataFrame:
    """One row a persona and study: pair accuracy, its test and its onset first, then the two scans and the last third."""
    thirds = comparison.thirds[["study", "persona", "d", "d_low", "d_high", "verdict", "early_p_adjusted"]]
    table = comparison.detection.merge(thirds, on=["study", "persona"])
    order = {persona: i for i, persona in enumerate(comparison.personas)}
    table = table.sort_values("persona", key=lambda names: names.map(order), kind="stable", ignore_index=True)
    missing = table["status"] != "scanned"
    # Without a difference there is no layer at which it begins.
    onset = table.assign(onset_depth=table["onset_depth"].where(table["onset_p_adjusted"] <= LEVEL))
    return pd.DataFrame(
        {
            "persona": table["persona"].map(short_name),
            "study": table["study"],
            "pair accuracy (95 %)": _intervals(table, "accuracy", ".2f"),
            "separation p": _numbers(table["separation_p_adjusted"], ".3f"),
            "onset, depth (95 %)": _intervals(onset, "onset_depth", ".2f"),
            "form accuracy": _numbers(table["form_accuracy"], ".2f"),
            "calibrated p": _numbers(table["calibrated_p_adjusted"], ".3f"),
            "scan p": _numbers(table["p_adjusted"], ".3f"),
            "precision": _numbers(table["precision"], ".2f"),
            "node set (flipped)": [
                "–" if np.isnan(own) else f"{own:.0f} ({null:.0f})"
                for own, null in zip(table["node_set"], table["null_node_set"], strict=True)
            ],
            "probe AUROC (95 %)": _intervals(table, "probe_auroc", ".2f"),
            "last third": _name_verdicts(table["verdict"]).mask(missing, "no such persona"),
            "d (95 %)": _intervals(table, "d", ".4f"),
            "earlier p": _numbers(table["early_p_adjusted"], ".3f"),
        }
    )


def share_table(comparison: Comparison) -> pd.DataFrame:
    """One row a pair of personas whose node sets overlap in any study (adjusted p ≤ 0.05), one column a study."""
    table = comparison.overlaps
    found = table[table["p_adjusted"] <= LEVEL][["a", "b"]].drop_duplicates()
    rows = []
    for a, b in found.itertuples(index=False):
        own = table[(table["a"] == a) & (table["b"] == b)].set_index("study")
        row = {"pair": f"{short_name(a)} – {short_name(b)}"}
        for name in comparison.studies:
            jaccard, expected, p_value = own.loc[name, ["jaccard", "expected_jaccard", "p_adjusted"]].astype(float)
            sign = " *" if p_value <= LEVEL else ""
            row[name] = "–" if np.isnan(jaccard) else f"{jaccard:.2f} ({expected:.2f}){sign}"
        rows.append(row)
    return pd.DataFrame(rows, columns=["pair", *comparison.studies])


def difference_table(comparison: Comparison) -> pd.DataFrame:
    """One row an option that was not the same, one column a study."""
    table = comparison.differences
    wide = table.pivot(index="option", columns="study", values="value").reindex(columns=comparison.studies)
    matters = table.drop_duplicates("option").set_index("option")["matters"]
    wide = wide.loc[matters.index].rename_axis(columns=None)
    return wide.assign(matters=matters).rename_axis("option").reset_index()


def _write_differences(table: pd.DataFrame) -> str:
    if table.empty:
        return "All options that are compared are the same."
    lines = ["Not the same in all studies"]
    for option, rows in table.groupby("option", sort=False):
        lines.append(f"{option}: {rows['matters'].iloc[0]}")
        for name, value in zip(rows["study"], rows["value"], strict=True):
            lines.append(fill(f"{name}: {value}", 110, initial_indent="    ", subsequent_indent="      "))
    return "\n".join(lines)


def _write(table: pd.DataFrame) -> str:
    return "none" if table.empty else table.to_string(index=False)


def _count(summary: pd.DataFrame, test: str) -> list[str]:
    """How many personas a test finds in each study, and how many of the shared ones where those are fewer."""
    columns = (summary[f"n_{test}"], summary["n_personas"], summary[f"n_shared_{test}"], summary["n_shared"])
    return [
        f"{found} of {n}" + (f" ({found_shared} of {n_shared} shared)" if n_shared < n else "")
        for found, n, found_shared, n_shared in zip(*columns, strict=True)
    ]


def _numbers(values: pd.Series, form: str) -> list[str]:
    return ["–" if np.isnan(value) else format(value, form) for value in values]


def _intervals(table: pd.DataFrame, name: str, form: str) -> list[str]:
    columns = (table[name], table[f"{name}_low"], table[f"{name}_high"])
    return [
        "–" if np.isnan(value) else f"{value:{form}} ({low:{form}} to {high:{form}})"
        for value, low, high in zip(*columns, strict=True)
    ]


def _name_verdicts(verdicts: pd.Series) -> pd.Series:
    return verdicts.astype(object).where(verdicts.notna(), "not judged")
