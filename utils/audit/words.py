"""An audit in words: a sentence or two a source, and one a pair of sources."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from utils.intervals import FEWEST, LEVEL

_NULLS = {"clean": "clean runs", "flipped": "runs with flipped sides"}


def share_label(share: float) -> str:
    """A share of the runs as it is read."""
    return "any run" if share == 0 else f"{100 * share:g} % of runs"


def set_label(name: str, kind: str) -> str:
    """A set of a source as it is read."""
    return name if kind == "mixed" else f"{name}, {kind} runs"


def describe_source(row: Any, sets: pd.DataFrame) -> list[str]:
    """What one source shows, a sentence each.

    Parameters
    ----------
    row
        Of :func:`utils.audit.source_table`.
    sets
        The source's rows of :func:`utils.audit.set_table`.
    """
    sentences = [_describe_runs(row)]
    for kind, own in sets.groupby("kind", sort=False):
        counts = [f"{size:,} ({100 * part:.0f} %)" for size, part in zip(own["size"], own["size_share"], strict=True)]
        sizes = [f"{count} by {share_label(share)}" for count, share in zip(counts, own["share"], strict=True)]
        if len(set(counts)) == 1 < len(counts):
            sizes = [f"the same {counts[0]} at every threshold"]
        sentences.append(f"Of {row.n_nodes:,} nodes {kind} runs chose {', '.join(sizes)}.")
    if np.isfinite(row.recall):
        sentences.append(_describe_records(row))
    if row.n_null_runs and row.n_runs:
        sentences.append(_describe_scores(row))
    return sentences


def _describe_runs(row: Any) -> str:
    if not row.n_runs:
        return f"{_count(row.n_null_runs, 'clean run')} and no other ({_count(row.n_distinct_null, 'different node set')})."
    sample = "" if not row.n_anomalous else f" of {row.n_clean:.0f} clean and {row.n_anomalous:.0f} anomalous records"
    return (
        f"{_count(row.n_runs, 'mixed run')}{sample} ({_count(row.n_distinct, 'different node set')}); a run "
        f"chose {row.size:,.0f} nodes ({row.size_low:,.0f} to {row.size_high:,.0f}, 5–95 % of runs)."
    )


def _describe_records(row: Any) -> str:
    parts = []
    for name in ("precision", "recall"):
        value, low, high = (getattr(row, f"{name}{end}") for end in ("", "_low", "_high"))
        over = ""
        if name == "precision" and np.isfinite(row.pooled_precision_low):
            over = (
                f"; all runs together {row.pooled_precision:.2f}, 95 % interval over records {row.pooled_precision_low:.2f} to "
                f"{row.pooled_precision_high:.2f}"
            )
        parts.append(f"{name} {value:.2f} (5–95 % of runs {low:.2f} to {high:.2f}{over})")
    chance = f"; a random choice of records has precision {row.chance:.2f}" if np.isfinite(row.chance) else ""
    stated = ""
    if np.isfinite(row.n_otherwise):
        stated = (
            ", as the file states for every run"
            if not row.n_otherwise
            else f"; the file states something else for {row.n_otherwise:.0f} of {row.n_runs} runs (mean precision "
            f"{row.stated_precision:.2f}, recall {row.stated_recall:.2f})"
        )
    return f"Recomputed from the records: {' and '.join(parts)}{stated}{chance}."


def _describe_scores(row: Any) -> str:
    null, n_null = _NULLS[row.null], row.n_distinct_null
    first = f"Mixed runs score above {null} with AUROC {row.auroc:.2f}"
    means = f"mean score {row.score:.1f} against {row.null_score:.1f}"
    if np.isfinite(row.auroc_low):
        what = "over runs" if row.null == "clean" else "over runs and permutations"
        between = f"95 % {what} {row.auroc_low:.2f} to {row.auroc_high:.2f}"
        test = f"; the experiment's permutation p-value is {row.p_value:.3g}" if np.isfinite(row.p_value) else ""
        return f"{first} ({between}, {means}), which describes and tests nothing, as runs share their records{test}."
    if n_null == 1 and row.n_null_runs > 1:
        return (
            f"{first} ({means}), which says little: all {row.n_null_runs} {null} returned the same nodes, as "
            "of one and the same sample, so that there is one to compare with and no interval."
        )
    return f"{first} ({means}); fewer than {FEWEST} different runs of either kind give no interval."


def describe_pair(rows: pd.DataFrame) -> str:
    """Whether the overlap of two sets exceeds independence, in one sentence.

    Parameters
    ----------
    rows
        Of :func:`utils.audit.overlap_table` for one pair, a row a share.
    """
    first = rows.iloc[0]
    named = [set_label(first["a"], first["kind_a"]), set_label(first["b"], first["kind_b"])]
    parts = []
    for verdict, words in (("more", "more"), ("fewer", "fewer"), ("as many", "not told from as many")):
        own = rows[rows["verdict"] == verdict]
        if len(own):
            listed = _join([_describe_overlap(row, verdict) for row in own.to_dict("records")])
            parts.append(f"{words} among nodes chosen by {listed}")
    exceeds = (rows["verdict"] == "more").any()
    answer = "exceeds independence" if exceeds else "does not exceed independence"
    if exceeds and not (rows["verdict"] == "more").all():
        answer = "exceeds independence at some thresholds only"
    return f"The overlap of {named[0]} and {named[1]} {answer}: {'; '.join(parts)}{_describe_flipped(rows)}."


def _describe_overlap(row: Mapping[Any, Any], verdict: str) -> str:
    p_value = row["p_fewer_adjusted"] if verdict == "fewer" else row["p_more_adjusted"]
    return f"{share_label(row['share'])} ({row['shared']:,}, {_number(row['expected'])} expected, adjusted p {p_value:.2g})"


def _describe_flipped(rows: pd.DataFrame) -> str:
    tested = rows[rows["flipped_p_adjusted"].notna()]
    if tested.empty:
        return ""
    found = [share_label(share) for share in tested.loc[tested["flipped_p_adjusted"] <= LEVEL, "share"]]
    if not found:
        return f"; it does not exceed what flipped sides give (smallest adjusted p {tested['flipped_p_adjusted'].min():.2g})"
    return f"; it exceeds what flipped sides give among nodes chosen by {_join(found)}"


def describe_audit(summary: pd.DataFrame, overlaps: pd.DataFrame) -> list[str]:
    """How many pairs of sources share more than independence and than flipped sides give, and what that can mean.

    Parameters
    ----------
    summary, overlaps
        As of :func:`utils.audit.source_table` and :func:`utils.audit.overlap_table`.
    """
    sentences = []
    mixed = overlaps[(overlaps["kind_a"] == "mixed") & (overlaps["kind_b"] == "mixed")]
    for share, own in mixed.groupby("share", sort=False):
        counts = own["verdict"].value_counts()
        said = f"{counts.get('more', 0)} of {_count(len(own), 'pair')} more than independence gives"
        said += f", {counts.get('fewer', 0)} fewer"
        tested = own["flipped_p_adjusted"].dropna()
        said += f", {(tested <= LEVEL).sum()} of {tested.size} more than flipped sides give" if tested.size else ""
        sentences.append(f"Nodes chosen by {share_label(float(share))}: {said}.")  # pyright: ignore[reportArgumentType]
    if len(mixed) and mixed["flipped_p"].isna().all():
        sentences.append(
            "Independence is an easy null: nodes of a model are correlated, and where activations are not "
            "there, nothing here can tell a shared persona from shared correlation."
        )
    if (own := _describe_own_clean(overlaps)) is not None:
        sentences.append(own)
    if len(summary) == 1:
        sentences.append("One source has nothing to be compared with.")
    return sentences


def _describe_own_clean(overlaps: pd.DataFrame) -> str | None:
    """How much of what mixed runs keep choosing their clean runs choose, too."""
    own = overlaps[(overlaps["a"] == overlaps["b"]) & (overlaps["size_a"] > 0)]
    if own.empty:
        return None
    parts = [
        f"{row['shared']:,} of the {row['size_a']:,} of {row['a']} by {share_label(row['share'])} "
        f"({_number(row['expected'])} by independence)"
        for row in own.to_dict("records")
    ]
    chosen = "Of the nodes that mixed runs chose, clean runs of the same persona chose, without any anomalous record"
    return f"{chosen}: {_join(parts)}."


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _join(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
