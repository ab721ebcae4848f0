"""What the runs of each source show by themselves: scores, the records they returned, and the nodes they keep choosing.

The runs of one experiment draw from the same records again and again. A spread over such runs says how much one run
differs from the next, and not how well anything is known.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float, Integer

from utils.audit.sources import Source
from utils.intervals import FEWEST, interval, resample_weights

_SPREAD = (0.05, 0.95)
_N_BOOTSTRAP = 2000
# Stated and recomputed shares of records are the same up to here.
_SAME = 1e-6


def score_table(sources: Sequence[Source]) -> pd.DataFrame:
    """Every run, with precision and recall from the records that it returned.

    Returns
    -------
    DataFrame
        One row a run: ``source, kind`` (mixed, clean or flipped), ``run, score, alpha, n_records, n_nodes``,
        ``stated_precision, stated_recall`` as the file has them, and ``precision, recall`` recomputed: records from
        ``Source.first_anomalous`` on are anomalous. NaN for null runs, where pools are not known, and precision of a run
        without records.
    """
    frames = []
    for source in sources:
        table = source.runs.table
        mixed = (table["kind"] == "mixed").to_numpy()
        precision, recall = _judge_records(source, mixed)
        frames.append(
            pd.DataFrame(
                {
                    "source": source.name,
                    # Not as "null", which readers of CSV take for nothing.
                    "kind": np.where(mixed, "mixed", source.null or ""),
                    **{name: table[name] for name in ("run", "score", "alpha", "n_records", "n_nodes")},
                    "stated_precision": table["precision"],
                    "stated_recall": table["recall"],
                    "precision": precision,
                    "recall": recall,
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def _judge_records(source: Source, mixed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    nothing = np.full(len(mixed), np.nan)
    if source.first_anomalous is None or not source.n_anomalous:
        return nothing, nothing
    hits = np.array([(held >= source.first_anomalous).sum() for held in source.runs.records], dtype=float)
    size = np.array([held.size for held in source.runs.records], dtype=float)
    precision = np.divide(hits, size, out=nothing.copy(), where=mixed & (size > 0))
    return precision, np.where(mixed, hits / source.n_anomalous, np.nan)


def source_table(sources: Sequence[Source], *, rng: int = 0) -> pd.DataFrame:
    """Sum up every source.

    Parameters
    ----------
    rng
        Seed of the resamples.

    Returns
    -------
    DataFrame
        One row a source: ``source, form, null, n_nodes, n_clean, n_anomalous``;

        - ``n_runs, n_null_runs``, and ``n_distinct, n_distinct_null``: different node sets among them. Null runs that
          are all the same are one sample, however often it is listed.
        - ``score, score_low, score_high`` and ``null_score, null_score_low, null_score_high``, and so ``precision``,
          ``recall``, ``size`` (nodes of a run): the mean, and the 5th and 95th percentile over runs, which is a
          spread and no interval.
        - ``chance``: precision of a random choice of records. ``n_otherwise``: runs whose stated precision or recall
          is not what their records give.
        - ``pooled_precision`` over all runs together with ``_low`` and ``_high``: 95 % bootstrap interval over the
          records of both pools, with the scans as they were. Only where a record's index names it in all runs (not in
          text files, whose indices are places in a run's sample), and at least five of either pool were returned.
        - ``auroc``: chance that a mixed run scores above a null run. ``auroc_low, auroc_high``: 95 % bootstrap
          interval over mixed runs and null runs (permutations, of flipped sides). Descriptive, as runs share their
          records: the interval is of another draw of runs from the same records. NaN with fewer than five distinct
          runs of either kind.
        - ``p_value``: permutation p-value of the experiment (:func:`deepscan.detect` only).
    """
    runs = score_table(sources)
    return pd.DataFrame([_summarise(source, runs[runs["source"] == source.name], rng) for source in sources])


def _summarise(source: Source, runs: pd.DataFrame, rng: int) -> dict[str, Any]:
    mixed, null = runs[runs["kind"] == "mixed"], runs[runs["kind"] != "mixed"]
    row: dict[str, Any] = {"source": source.name, "form": source.form, "null": source.null, "n_nodes": source.n_nodes}
    row |= {
        "n_clean": source.n_clean,
        "n_anomalous": source.n_anomalous,
        "n_runs": len(mixed),
        "n_null_runs": len(null),
    }
    row |= {"n_distinct": count_distinct(source, "mixed"), "n_distinct_null": count_distinct(source, "null")}
    row |= _spread("score", mixed["score"]) | _spread("null_score", null["score"])
    row |= _spread("precision", mixed["precision"]) | _spread("recall", mixed["recall"])
    row |= _spread("stated_precision", mixed["stated_precision"]) | _spread("stated_recall", mixed["stated_recall"])
    row |= _spread("size", mixed["n_nodes"]) | _spread("null_size", null["n_nodes"])
    sample = (source.n_clean or 0) + (source.n_anomalous or 0)
    row["chance"] = source.n_anomalous / sample if source.n_anomalous and sample else np.nan
    apart = mixed[["precision", "recall"]].to_numpy() - mixed[["stated_precision", "stated_recall"]].to_numpy()
    known = np.isfinite(apart).all(axis=1)
    row["n_otherwise"] = int((np.abs(apart[known]) > _SAME).any(axis=1).sum()) if known.any() else np.nan
    row |= _pool_records(source, rng) | _compare_scores(source, rng)
    return row | {"p_value": np.nan if source.runs.p_value is None else source.runs.p_value}


def _spread(name: str, values: pd.Series) -> dict[str, float]:
    held = values.dropna().to_numpy(dtype=float)
    low, high = np.quantile(held, _SPREAD) if held.size else (np.nan, np.nan)
    return {name: held.mean() if held.size else np.nan, f"{name}_low": low, f"{name}_high": high}


def count_distinct(source: Source, kind: Literal["mixed", "null"]) -> int:
    """How many runs of a kind there are with a node set of their own."""
    return len({source.runs.nodes[row].tobytes() for row in source.rows(kind)})


def _pool_records(source: Source, rng: int) -> dict[str, float]:
    """Precision over all mixed runs together, with the interval over records where these have names.

    There is no such interval of recall: which records a run was given is not stored, only which it returned.
    """
    row = dict.fromkeys((f"pooled_precision{end}" for end in ("", "_low", "_high")), np.nan)
    rows = source.rows("mixed")
    if source.first_anomalous is None or not rows.size:
        return row
    chosen = np.concatenate([source.runs.records[i] for i in rows])
    row["pooled_precision"] = (chosen >= source.first_anomalous).mean() if chosen.size else np.nan
    if source.form == "text":
        return row
    counts = np.bincount(chosen, minlength=sum(source.runs.config["sizes"])).astype(float)
    parts = np.split(counts, [source.first_anomalous])
    if min((part > 0).sum() for part in parts) < FEWEST:
        return row
    generator = np.random.default_rng(rng)
    wrong, right = (resample_weights(part.size, _N_BOOTSTRAP, generator) @ part for part in parts)
    # A resample of a large pool may leave out the few records that were returned.
    held = right + wrong > 0
    row["pooled_precision_low"], row["pooled_precision_high"] = interval(right[held] / (right + wrong)[held])
    return row


def _compare_scores(source: Source, rng: int) -> dict[str, float]:
    row = {"auroc": source.runs.auroc(), "auroc_low": np.nan, "auroc_high": np.nan}
    if min(count_distinct(source, kind) for kind in ("mixed", "null")) < FEWEST:
        return row
    table = source.runs.table
    mixed, null = (source.rows(kind) for kind in ("mixed", "null"))
    wins = _win_shares(table["score"].to_numpy()[mixed], table["score"].to_numpy()[null], _null_units(source))
    generator = np.random.default_rng(rng)
    if min(wins.shape) < FEWEST:
        return row
    drawn = [resample_weights(n, _N_BOOTSTRAP, generator) for n in wins.shape]
    row["auroc_low"], row["auroc_high"] = interval(
        np.einsum("bm,mn,bn->b", *(drawn[0], wins, drawn[1]), optimize=True) / wins.size
    )
    return row


def _null_units(source: Source) -> np.ndarray:
    """Which null runs were drawn together: those of a permutation; clean runs one by one."""
    rows = source.rows("null")
    permutation = source.runs.table["permutation"].to_numpy()[rows]
    return permutation if source.null == "flipped" else np.arange(rows.size)


def _win_shares(
    mixed: Float[np.ndarray, " mixed"], null: Float[np.ndarray, " null"], units: Integer[np.ndarray, " null"]
) -> Float[np.ndarray, "mixed units"]:
    """Share of the null runs of each unit that a mixed run scores above, ties counting half."""
    held = [np.sort(null[units == unit]) for unit in np.unique(units)]
    below = [np.searchsorted(own, mixed, side="left") + np.searchsorted(own, mixed, side="right") for own in held]
    return np.stack([counts / (2 * own.size) for counts, own in zip(below, held, strict=True)], axis=1)


def node_counts(source: Source, kind: Literal["mixed", "null"]) -> Integer[np.ndarray, " nodes"]:
    """How many runs of a kind chose each node."""
    chosen = [source.runs.nodes[row] for row in source.rows(kind)]
    return np.bincount(np.concatenate([np.empty(0, np.int64), *chosen]), minlength=source.n_nodes)


def least_count(share: float, n_runs: int) -> int:
    """How many runs a share of them is, at least one: 0 stands for any run."""
    # 0.1 · 30 is a little more than 3 in floating point.
    return max(1, int(np.ceil(share * n_runs - 1e-9)))


def expected_sizes(
    sizes: Integer[np.ndarray, " runs"], n_nodes: int, counts: Sequence[int]
) -> Float[np.ndarray, " counts"]:
    """Nodes that at least so many runs would choose on average, if every run drew its nodes anew.

    Exact: a node is then chosen by a number of runs that is Poisson-binomial with chances ``sizes / n_nodes``.
    """
    chances = np.ones(1)
    for share in np.asarray(sizes) / n_nodes:
        chances = np.convolve(chances, [1 - share, share])
    upper = chances[::-1].cumsum()[::-1]
    return np.array([n_nodes * (upper[count] if count < upper.size else 0.0) for count in counts])


def set_table(sources: Sequence[Source], shares: Sequence[float]) -> pd.DataFrame:
    """How many nodes at least a share of the runs chose.

    Parameters
    ----------
    shares
        0 is any run: the union.

    Returns
    -------
    DataFrame
        One row a source, kind of runs (``mixed``, and ``clean`` where there are clean runs) and share: ``source,
        kind, share, n_runs, least_runs`` (the share as a number of runs), ``size, size_share`` (of all nodes) and
        ``expected_size``, see :func:`expected_sizes`.
    """
    rows = []
    for source in sources:
        for kind, label in held_kinds(source):
            counts, runs = node_counts(source, kind), source.rows(kind)
            least = [least_count(share, runs.size) for share in shares]
            expected = expected_sizes(
                np.array([source.runs.nodes[i].size for i in runs], dtype=int), source.n_nodes, least
            )
            for share, number, mean in zip(shares, least, expected, strict=True):
                size = int((counts >= number).sum())
                row = {"source": source.name, "kind": label, "share": share, "n_runs": runs.size, "least_runs": number}
                rows.append(row | {"size": size, "size_share": size / source.n_nodes, "expected_size": mean})
    return pd.DataFrame(rows)


def profile_table(sources: Sequence[Source]) -> pd.DataFrame:
    """Nodes by the share of runs that chose them, from the most frequent down.

    Returns
    -------
    DataFrame
        One row a source, kind of runs and number of runs from 1 to all: ``source, kind, share`` (of the runs),
        ``size`` (nodes that at least so many chose) and ``n_nodes``.
    """
    frames = []
    for source in sources:
        for kind, label in held_kinds(source):
            n_runs = source.rows(kind).size
            by_count = np.bincount(node_counts(source, kind), minlength=n_runs + 1)
            size = by_count[::-1].cumsum()[::-1][1:]
            columns = {"source": source.name, "kind": label, "share": np.arange(1, n_runs + 1) / n_runs, "size": size}
            frames.append(pd.DataFrame({**columns, "n_nodes": source.n_nodes}))
    return pd.concat(frames, ignore_index=True)


def held_kinds(source: Source) -> list[tuple[Literal["mixed", "null"], str]]:
    """The kinds of runs whose nodes make sets; those of flipped sides are compared otherwise, permutation by permutation."""
    kinds: list[tuple[Literal["mixed", "null"], str]] = [("mixed", "mixed")] if source.rows("mixed").size else []
    return [*kinds, ("null", "clean")] if source.null == "clean" else kinds
