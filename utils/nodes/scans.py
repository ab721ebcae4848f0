"""Everything about the nodes of one layer that a causal check needs, from statements that it is not measured on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from deepscan import ScanRuns, detect
from utils.nodes.controls import scanned_nodes, simple_sets
from utils.nodes.sets import NodeSet
from utils.statements.contrasts import Contrast


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
