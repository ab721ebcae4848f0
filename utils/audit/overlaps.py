"""What node sets share: against sets of equal size drawn at random, and against what flipped sides give.

The first is exact and easy to pass: nodes of a model are correlated, and some are easily moved by anything, so that
the sets of two personas may share more than chance without having anything in common. Where a source has clean runs,
the overlap with their nodes stands beside it for that reason.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control, hypergeom

from utils.audit.measures import held_kinds, least_count, node_counts
from utils.audit.sources import Source
from utils.intervals import LEVEL
from utils.nodes.sets import node_sets, overlap

# A share of the runs that one run is enough for.
_ANY = 1e-9


def independence(size_a: int, size_b: int, shared: int, n_nodes: int) -> dict[str, float]:
    """Compare an overlap with that of two sets of these sizes drawn from all nodes, every set of a size with equal chances.

    Returns
    -------
    dict
        ``expected`` nodes in common; ``p_more``, the chance of at least so many, and ``p_fewer``, of at most so many
        (hypergeometric tails, exact); and ``excess``, what is shared beyond the expected as a share of the smaller set,
        from -1 to 1. NaN where that is empty.
    """
    expected, smaller = size_a * size_b / n_nodes, min(size_a, size_b)
    return {
        "expected": expected,
        "p_more": min(1.0, float(hypergeom.sf(shared - 1, n_nodes, size_a, size_b))),
        "p_fewer": min(1.0, float(hypergeom.cdf(shared, n_nodes, size_a, size_b))),
        "excess": (shared - expected) / smaller if smaller else float("nan"),
    }


def overlap_table(sources: Sequence[Source], shares: Sequence[float]) -> pd.DataFrame:
    """Compare the node sets of every two sources at every share of the runs.

    Sets hold nodes without sides, which files of the original lack. Of a source with clean runs, their nodes are a
    set, too: what the scan returns where no record is anomalous. Sources whose nodes are of different models, layers
    or numbers are not compared.

    Parameters
    ----------
    shares
        Least share of the runs that chose a node; 0 is any run.

    Returns
    -------
    DataFrame
        One row a pair of sets and share: ``a, kind_a, b, kind_b`` (kinds ``mixed`` and ``clean``), ``share, n_nodes,
        size_a, size_b, shared, jaccard`` (NaN for two empty sets), the columns of :func:`independence`, and
        ``p_more_adjusted, p_fewer_adjusted`` (Benjamini–Hochberg over the pairs of one share; pairs of mixed sets
        apart from those with a clean one); ``verdict``: ``more``, ``fewer`` or ``as many`` as independence gives,
        each by its own tail at adjusted p ≤ 0.05. Where both sources have permuted runs, as of
        :func:`utils.nodes.overlap` without its level, over (node, side): ``side_jaccard``, ``flipped_jaccard``
        (expected under flipped sides), ``flipped_p`` and ``flipped_p_adjusted`` (over the pairs of one share); else
        NaN.
    """
    held: list[tuple[Source, Literal["mixed", "null"], str]] = [
        (source, kind, label) for source in sources for kind, label in held_kinds(source)
    ]
    rows = []
    for share in shares:
        chosen = {}
        for source, kind, label in held:
            counts = node_counts(source, kind)
            chosen[source.name, label] = counts >= least_count(share, source.rows(kind).size)
        flipped = _compare_flipped(sources, share)
        for (a, _, kind_a), (b, _, kind_b) in combinations(held, 2):
            if not comparable(a, b):
                continue
            one, other = chosen[a.name, kind_a], chosen[b.name, kind_b]
            sizes = int(one.sum()), int(other.sum())
            shared, union = int((one & other).sum()), int((one | other).sum())
            row: dict[str, Any] = {"a": a.name, "kind_a": kind_a, "b": b.name, "kind_b": kind_b, "share": share}
            row |= {"n_nodes": a.n_nodes, "size_a": sizes[0], "size_b": sizes[1], "shared": shared}
            row |= {"jaccard": shared / union if union else np.nan} | independence(*sizes, shared, a.n_nodes)
            both = kind_a == kind_b == "mixed"
            rows.append(row | (flipped.get((a.name, b.name), _NOT_FLIPPED) if both else _NOT_FLIPPED))
    return _adjust(pd.DataFrame(rows, columns=_COLUMNS))


_NOT_FLIPPED = dict.fromkeys(("side_jaccard", "flipped_jaccard", "flipped_p"), np.nan)
_COLUMNS = [
    "a", "kind_a", "b", "kind_b", "share", "n_nodes", "size_a", "size_b", "shared", "jaccard", "expected", "p_more",
    "p_fewer",    "excess", "side_jaccard", "flipped_jaccard", "flipped_p",
]  # fmt: skip


def comparable(a: Source, b: Source) -> bool:
    """Whether the nodes of two sources are of one place in one model, as far as is known."""
    if a.space is not None and b.space is not None and a.space != b.space:
        return False
    return a.n_nodes == b.n_nodes


def _compare_flipped(sources: Sequence[Source], share: float) -> Mapping[tuple[str, str], dict[str, float]]:
    runs = {source.name: source.runs for source in sources if source.null == "flipped"}
    if len(runs) < 2:
        return {}
    rule: dict[str, Any] = {"threshold": max(share, _ANY), "level": None}
    table = overlap(node_sets(runs, **rule), runs, **rule)
    columns = table["a"], table["b"], table["jaccard"], table["expected_jaccard"], table["p_value"]
    return {
        (a, b): dict(zip(_NOT_FLIPPED, (jaccard, expected, p_value), strict=True))
        for a, b, jaccard, expected, p_value in zip(*columns, strict=True)
    }


def _adjust(table: pd.DataFrame) -> pd.DataFrame:
    with_clean = (table["kind_a"] == "clean") | (table["kind_b"] == "clean")
    families = [table["share"], with_clean]
    for name in ("p_more", "p_fewer", "flipped_p"):
        p_values = table[name].astype(float)
        table[f"{name}_adjusted"] = p_values.groupby(families).transform(_control)
    more, fewer = (table[f"p_{name}_adjusted"] <= LEVEL for name in ("more", "fewer"))
    return table.assign(verdict=np.select([more, fewer], ["more", "fewer"], "as many"))


def _control(p_values: pd.Series) -> pd.Series:
    tested = p_values.notna()
    adjusted = pd.Series(np.nan, index=p_values.index)
    if tested.any():
        adjusted[tested] = false_discovery_control(p_values[tested])
    return adjusted
