"""Everything about the nodes of one layer that a causal check needs, from statements that it is not measured on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import false_discovery_control

from deepscan import ScanRuns, detect
from utils.intervals import LEVEL
from utils.nodes.controls import scanned_nodes, simple_sets
from utils.nodes.sets import NodeSet, node_q_values, node_sets, null_set_size
from utils.nodes.significance import compare_sides, rule_sets
from utils.statements.contrasts import Contrast

# With fewer background records p-values are too coarse to rank anything: none is below 1/11.
MIN_BACKGROUND = 10
# Node sets by tests that use all pairs, in their own sizes.
TESTED = ("node test", "calibrated scan")


@dataclass(frozen=True)
class LayerNodes:
    """The two sides of a persona at one layer, and a scan of them.

    Attributes
    ----------
    h0, h1
        (n, nodes) activations.
    paired
        Whether they are so row by row.
    runs
        The scan.
    """

    layer: int
    h0: Float[np.ndarray, "h0 nodes"]
    h1: Float[np.ndarray, "h1 nodes"]
    paired: bool
    runs: ScanRuns

    @property
    def difference(self) -> Float[np.ndarray, " nodes"]:
        """Mean of H1 minus mean of H0."""
        return self.h1.mean(axis=0) - self.h0.mean(axis=0)

    @property
    def signs(self) -> np.ndarray:
        """(nodes,) the side on which H1 lies in the mean, +1 or -1."""
        return np.where(self.difference >= 0, 1, -1)

    @property
    def spread(self) -> Float[np.ndarray, " nodes"]:
        """Standard deviation of each node over the background."""
        return self.h0.std(axis=0)

    @property
    def norm(self) -> float:
        """Mean length of the residual stream over the background."""
        return float(np.linalg.norm(self.h0, axis=1).mean())

    @property
    def n_selected(self) -> int:
        """How many nodes any run of the scan selected."""
        return int((self.runs.node_frequency() > 0).sum())

    def choose(self, size: int | None, *, threshold: float = 0.5) -> dict[str, NodeSet]:
        """Node sets of one size: the scan's, and those of simpler methods. ``None``: the size of the scan's node set."""
        scanned = scanned_nodes(self.runs, self.signs, size=size, threshold=threshold)
        pairs = np.arange(len(self.h0)) if self.paired else None
        return {"scan": scanned, **simple_sets(self.h0, self.h1, len(scanned), pairs=pairs)}

    def tested(self, *, n_permutations: int = 999, level: float = LEVEL, rng: int = 0) -> dict[str, NodeSet]:
        """Node sets of the tests, each as large as its rule makes it, without empty ones.

        Those of :func:`deepscan.node_test` after Benjamini–Hochberg, and those of :func:`deepscan.calibrated_scan` where its
        p-value is at most ``level``; names in :data:`TESTED`.
        """
        n = len(self.h0)
        contrast = Contrast("", "", np.arange(n), np.arange(n, n + len(self.h1)), self.paired)
        options = {"n_permutations": n_permutations, "rng": rng, "progress": False}
        found, nodes = compare_sides(np.concatenate([self.h0, self.h1]), [contrast], **options)
        sets = {TESTED[0]: rule_sets(nodes, "bh", level=level)[""]}
        if found["calibrated_p"].iloc[0] <= level:
            sets[TESTED[1]] = rule_sets(nodes, "calibrated")[""]
        return {name: held for name, held in sets.items() if held}


def scan_layer(
    layer: int, values: Float[np.ndarray, "statements nodes"], contrast: Contrast, options: Mapping[str, Any]
) -> LayerNodes:
    """Scan a persona's statements at one layer.

    Parameters
    ----------
    values
        Activations at the layer.
    contrast
        Which statements.
    options
        Of :func:`deepscan.detect`.
    """
    h0, h1 = values[contrast.h0].astype(np.float64), values[contrast.h1].astype(np.float64)
    pairs = np.arange(len(h0)) if contrast.paired else None
    return LayerNodes(layer, h0, h1, contrast.paired, detect(h0, h1, pairs=pairs, **options))


def summarise(runs: Mapping[int, Mapping[str, ScanRuns]], *, threshold: float) -> pd.DataFrame:
    """Sum up the scans of every persona and layer.

    Parameters
    ----------
    runs
        By layer, then by persona.
    threshold
        Share of the runs from which a node counts as selected.

    Returns
    -------
    DataFrame
        One row a persona and layer. ``p_value`` is the permutation p-value of the experiment, ``p_adjusted`` the same
        after Benjamini–Hochberg over all rows. ``score``, ``precision`` and ``recall`` are means over the mixed runs with
        the 5th and 95th percentile of the runs as ``_low`` and ``_high``; ``null_score`` is the mean under flipped sides.
        ``chance`` is the precision of a random choice of records. ``node_set`` is the size of the node set,
        ``null_node_set`` its mean size under flipped sides, ``node_set_corrected`` how many of its nodes have a q-value up to
        0.05 (:func:`utils.nodes.sets.node_q_values`). ``alpha`` is the median threshold,
        ``n_records`` and ``n_nodes`` are mean sizes of the subset that a run returned.
    """
    rows = []
    for layer, by_persona in runs.items():
        for persona, scanned in by_persona.items():
            mixed = scanned.table[scanned.table["kind"] == "mixed"]
            null = scanned.table[scanned.table["kind"] == "null"]
            config = scanned.config
            row = {"persona": persona, "layer": layer, "p_value": scanned.p_value, "p_adjusted": np.nan}
            for name in ("score", "precision", "recall"):
                low, high = mixed[name].quantile([0.05, 0.95])
                row |= {name: mixed[name].mean(), f"{name}_low": low, f"{name}_high": high}
            row |= {
                "null_score": null["score"].mean(),
                "chance": config["n_anomalous"] / (config["n_clean"] + config["n_anomalous"]),
                "auroc": mixed["auroc"].mean(),
                "alpha": mixed["alpha"].median(),
                "n_records": mixed["n_records"].mean(),
                "n_nodes": mixed["n_nodes"].mean(),
                "node_set": len(held := node_sets({persona: scanned}, threshold=threshold)[persona]),
                "null_node_set": null_set_size(scanned, threshold=threshold) if config["n_permutations"] else np.nan,
                "node_set_corrected": _count_corrected(held, scanned, threshold)
                if config["n_permutations"]
                else np.nan,
                "n_background": config["n_background"],
                "n_clean": config["n_clean"],
                "n_anomalous": config["n_anomalous"],
            }
            rows.append(row)
    table = pd.DataFrame(rows)
    return table.assign(p_adjusted=false_discovery_control(table["p_value"]))


def _count_corrected(held: NodeSet, runs: ScanRuns, threshold: float) -> int:
    q_values = node_q_values(runs, threshold=threshold)
    return int(sum(q_values[node] <= LEVEL for node, _ in held))
