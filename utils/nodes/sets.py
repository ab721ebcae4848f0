"""Node sets: which units the scan returned for each persona, on which side, and how far personas share them.

A node set is a frozenset of ``(node, sign)``; the sign tells on which side of the background the persona's statements
lie. Two personas that move one node in opposite directions do not share it.
"""

from collections.abc import Mapping
from itertools import combinations

import numpy as np
import pandas as pd
from jaxtyping import Float, Integer
from scipy.stats import false_discovery_control

from deepscan import ScanRuns

NodeSet = frozenset[tuple[int, int]]


def node_frequencies(runs: Mapping[str, ScanRuns]) -> pd.DataFrame:
    """How often the scan selected each node, per persona.

    Returns
    -------
    DataFrame
        One row a persona and node that was selected at least once: ``persona, node, sign, frequency`` (share of the
        mixed runs), ``null_frequency`` (mean share over the permuted runs) and ``p_value`` (see :func:`node_p_values`);
        the last two are NaN without permutations.
    """
    frames = []
    for persona, persona_runs in runs.items():
        frequency = persona_runs.node_frequency()
        node = np.flatnonzero(frequency > 0)
        permuted = bool(_n_permutations(persona_runs))
        frames.append(
            pd.DataFrame(
                {
                    "persona": persona,
                    "node": node,
                    "sign": persona_runs.node_sign()[node].astype(int),
                    "frequency": frequency[node],
                    "null_frequency": persona_runs.permuted_frequency().mean(axis=0)[node] if permuted else np.nan,
                    "p_value": node_p_values(persona_runs)[node] if permuted else np.nan,
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def node_profiles(runs: Mapping[str, ScanRuns]) -> pd.DataFrame:
    """The selection frequencies of each persona from the highest down, beside those under flipped sides.

    Returns
    -------
    DataFrame
        One row a persona and rank: ``persona, rank`` (from 1), ``frequency``, and ``null_low, null_high``, the 5th and 95th
        percentile over permutations of the frequency at that rank (NaN without permutations).
    """
    frames = []
    for persona, persona_runs in runs.items():
        ranked = np.sort(persona_runs.node_frequency())[::-1]
        low = high = np.full(len(ranked), np.nan)
        if _n_permutations(persona_runs):
            low, high = np.quantile(np.sort(persona_runs.permuted_frequency(), axis=1)[:, ::-1], [0.05, 0.95], axis=0)
        ranks = np.arange(1, len(ranked) + 1)
        columns = {"persona": persona, "rank": ranks, "frequency": ranked, "null_low": low, "null_high": high}
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def node_sets(
    runs: Mapping[str, ScanRuns], *, threshold: float = 0.5, level: float | None = 0.05
) -> dict[str, NodeSet]:
    """The nodes that the scans keep selecting, with their signs, per persona.

    Parameters
    ----------
    runs
        Scans by persona.
    threshold
        A node must have been selected by at least this share of the mixed runs.
    level
        It must also have been selected more often than under flipped sides, at this level, node by node (see
        :func:`node_p_values`; not corrected over nodes: :func:`null_sets` says what the rule gives without an effect). Nodes are
        correlated and some are easily moved, so that frequency alone also fills sets where there is no effect. None, or
        scans without permutations: frequency alone.

    A node whose side is undecided (0) is in no set.

    Raises
    ------
    ValueError
        A threshold outside (0, 1].
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be in (0, 1], not {threshold}: it is a share of the runs.")
    sets = {}
    for persona, persona_runs in runs.items():
        signs = persona_runs.node_sign()
        chosen = (persona_runs.node_frequency() >= threshold) & (signs != 0)
        if level is not None and _n_permutations(persona_runs):
            chosen &= node_p_values(persona_runs) <= level
        sets[persona] = frozenset((int(node), int(signs[node])) for node in np.flatnonzero(chosen))
    return sets


def node_p_values(runs: ScanRuns) -> Float[np.ndarray, " nodes"]:
    """How often flipped sides select a node at least as often as the true sides do, ``(1 + #) / (1 + permutations)``.

    One test a node, not corrected over nodes.
    """
    permuted = runs.permuted_frequency()
    return (1 + (permuted >= runs.node_frequency()).sum(axis=0)) / (1 + len(permuted))


def null_sets(runs: ScanRuns, *, threshold: float = 0.5, level: float | None = 0.05) -> list[NodeSet]:
    """The node sets under flipped sides: each permutation takes the place of the truth and is judged like it."""
    permuted, signs = runs.permuted_frequency(), runs.permuted_sign()
    chosen = (permuted >= threshold) & (signs != 0)
    if level is not None:
        # The permutation itself is among all of them, which is the "1 +" of its p-value.
        everyone = np.vstack([runs.node_frequency(), permuted])
        chosen &= np.stack([(everyone >= row).mean(axis=0) for row in permuted]) <= level
    return [
        frozenset((int(node), int(sign[node])) for node in np.flatnonzero(row))
        for row, sign in zip(chosen, signs, strict=True)
    ]


def null_set_size(runs: ScanRuns, *, threshold: float = 0.5, level: float | None = 0.05) -> float:
    """Mean size of the node set under flipped sides, see :func:`null_sets`."""
    return float(np.mean([len(held) for held in null_sets(runs, threshold=threshold, level=level)]))


def membership(sets: Mapping[str, NodeSet]) -> pd.DataFrame:
    """Which persona holds which node: bool, one row a (node, sign) in any set, one column a persona."""
    nodes = sorted(frozenset().union(*sets.values()))
    index = pd.MultiIndex.from_tuples(nodes, names=["node", "sign"])
    return pd.DataFrame(
        {persona: [node in held for node in nodes] for persona, held in sets.items()}, index=index, dtype=bool
    )


def top_nodes(strength: Float[np.ndarray, " nodes"], sign: Integer[np.ndarray, " nodes"], size: int) -> NodeSet:
    """The ``size`` nodes of greatest strength with their signs; ties go to the lower node, strength 0 is never taken."""
    order = np.argsort(-strength, kind="stable")[:size]
    return frozenset((int(node), int(sign[node])) for node in order if strength[node] > 0)


def compare_sets(a: NodeSet, b: NodeSet) -> dict[str, float]:
    """The columns ``size_a`` to ``overlap_coefficient`` of :func:`overlap`, for one pair of sets."""
    shared = len(a & b)
    opposite = len(a & frozenset((node, -sign) for node, sign in b if sign))
    union, smaller = len(a | b), min(len(a), len(b))
    return {
        "size_a": len(a),
        "size_b": len(b),
        "shared": shared,
        "opposite": opposite,
        "jaccard": shared / union if union else float("nan"),
        "overlap_coefficient": shared / smaller if smaller else float("nan"),
    }


def overlap(
    sets: Mapping[str, NodeSet],
    runs: Mapping[str, ScanRuns] | None = None,
    *,
    threshold: float = 0.5,
    level: float | None = 0.05,
) -> pd.DataFrame:
    """Compare every two personas' node sets.

    Parameters
    ----------
    sets
        As :func:`node_sets` returns them.
    runs
        The scans that the sets come from. With them, the overlap is compared with what both scans give after flipping sides:
        for each permutation the node sets by the same rule (:func:`null_sets`). Nodes are correlated, so drawing nodes at
        random would be too easy a null.
    threshold, level
        Of the node sets, as they were given to :func:`node_sets`.

    Returns
    -------
    DataFrame
        One row a pair: ``a, b, size_a, size_b, shared, opposite`` (same node, other sign), ``jaccard,
        overlap_coefficient`` (share of the smaller set), ``hypergeometric`` (expected ``shared`` were nodes independent;
        a reference, not a test), and with runs ``expected_jaccard`` and ``p_value`` from the flips and
        ``p_adjusted`` (Benjamini–Hochberg over the pairs). Empty sets have NaN ratios and a p-value of 1.
    """
    rows = []
    rule = {"threshold": threshold, "level": level}
    null = {name: null_sets(runs[name], **rule) if _n_permutations(runs[name]) else [] for name in sets} if runs else {}
    for a, b in combinations(sets, 2):
        row = compare_sets(sets[a], sets[b])
        if runs:
            n_nodes = min(runs[a].n_nodes, runs[b].n_nodes)
            row["hypergeometric"] = len(sets[a]) * len(sets[b]) / (2 * n_nodes)
            row |= _test(row["jaccard"], null[a], null[b])
        rows.append({"a": a, "b": b, **row})
    table = pd.DataFrame(rows)
    if runs and len(table):
        table["p_adjusted"] = false_discovery_control(table["p_value"])
    return table


def _test(observed: float, null_a: list[NodeSet], null_b: list[NodeSet]) -> dict[str, float]:
    n = min(len(null_a), len(null_b))
    if n == 0 or np.isnan(observed):
        return {"expected_jaccard": float("nan"), "p_value": 1.0}
    null = np.nan_to_num([compare_sets(a, b)["jaccard"] for a, b in zip(null_a, null_b, strict=False)])
    return {"expected_jaccard": float(null.mean()), "p_value": float((1 + (null >= observed).sum()) / (1 + n))}


def _n_permutations(runs: ScanRuns) -> int:
    return int(runs.config.get("n_permutations", 0))
