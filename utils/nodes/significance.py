"""Tests of the two sides that use all statements at once: which personas are told apart, and in which nodes.

Three rules for a node set beside the scan's: ``family`` (no false node in 95 % of the cases, by flips), ``bh`` (5 % false
nodes among those found, Benjamini–Hochberg), and ``calibrated`` (the k most different nodes, k where they stand out most
from flipped sides). All three rank nodes by the paired t (Welch's without pairs) and differ in where they stop.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import false_discovery_control
from tqdm.auto import tqdm

from deepscan import calibrated_scan, node_test, separation_test
from utils.nodes.sets import NodeSet
from utils.options import NodeRule
from utils.statements.contrasts import Contrast

NODE_RULES: tuple[NodeRule, ...] = ("family", "bh", "calibrated")


def compare_sides(
    values: Float[np.ndarray, "statements nodes"],
    contrasts: Sequence[Contrast],
    *,
    n_permutations: int = 999,
    rng: int = 0,
    n_jobs: int = 1,
    progress: bool = True,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Test every persona's sides at one layer, as a whole and node by node.

    Parameters
    ----------
    values
        Activations at one layer.
    contrasts
        What to compare.
    n_permutations
        Flips of the sides within pairs, permuted labels without pairs.

    Returns
    -------
    personas : DataFrame
        One row a persona: ``persona``; ``accuracy`` of the pairs (leave-one-out) with its interval ``accuracy_low,
        accuracy_high``; ``separation_p`` (dense effects, :func:`deepscan.separation_test`) and ``calibrated_p`` (few or many
        nodes, :func:`deepscan.calibrated_scan`), each with ``_adjusted`` (Benjamini–Hochberg over the personas); and how
        many nodes each rule finds, ``n_family, n_bh, n_calibrated``.
    nodes : DataFrame
        One row a persona and node: ``persona, node, sign, effect`` (mean difference over the spread within sides), its
        interval ``low, high``, ``t, p_value``, ``p_family`` and ``p_bh`` (adjusted over the nodes), and
        ``calibrated``, whether the node is among those of the calibrated scan.
    """
    rows, frames = [], []
    for contrast in tqdm(contrasts, desc="tests", unit="persona", disable=not progress):
        h0, h1 = values[contrast.h0], values[contrast.h1]
        pairs = np.arange(len(h0)) if contrast.paired else None
        options = {"pairs": pairs, "n_permutations": n_permutations, "rng": rng}
        separation = separation_test(h0, h1, **options)
        calibrated = calibrated_scan(h0, h1, **options, n_jobs=n_jobs)
        nodes = node_test(h0, h1, **options, n_jobs=n_jobs).rename(columns={"p_adjusted": "p_family"})
        nodes.insert(0, "persona", contrast.persona)
        nodes["p_bh"] = false_discovery_control(nodes["p_value"])
        nodes["calibrated"] = np.isin(nodes["node"], calibrated.nodes)
        frames.append(nodes)
        low, high = np.asarray(separation.accuracy_interval).tolist()
        row = {"persona": contrast.persona, "accuracy": separation.accuracy}
        row |= {"accuracy_low": low, "accuracy_high": high, "separation_p": separation.p_value}
        row |= {"calibrated_p": calibrated.p_value, "n_family": int((nodes["p_family"] <= 0.05).sum())}
        rows.append(row | {"n_bh": int((nodes["p_bh"] <= 0.05).sum()), "n_calibrated": int(calibrated.size)})
    table = pd.DataFrame(rows)
    for name in ("separation", "calibrated"):
        at = list(table.columns).index(f"{name}_p") + 1
        table.insert(at, f"{name}_p_adjusted", false_discovery_control(table[f"{name}_p"]))
    columns = ["persona", "node", "sign", "effect", "low", "high", "t", "p_value", "p_family", "p_bh", "calibrated"]
    return table, pd.concat(frames, ignore_index=True)[columns]


def rule_sets(nodes: pd.DataFrame, rule: NodeRule, *, level: float = 0.05) -> dict[str, NodeSet]:
    """The node set of every persona by one rule, from what :func:`compare_sides` returns of the nodes.

    Raises
    ------
    ValueError
        An unknown rule.
    """
    if rule not in NODE_RULES:
        raise ValueError(f"unknown rule {rule!r}; expected one of {', '.join(NODE_RULES)}.")
    chosen = nodes["calibrated"] if rule == "calibrated" else nodes[f"p_{rule}"] <= level
    held = nodes[chosen & (nodes["sign"] != 0)]
    by_persona = {name: frozenset(zip(own["node"], own["sign"], strict=True)) for name, own in held.groupby("persona")}
    return {
        name: frozenset((int(node), int(sign)) for node, sign in by_persona.get(name, ()))
        for name in nodes["persona"].unique()
    }
