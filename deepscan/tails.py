"""Tails of the background, and the p-value of a rank in them."""

from collections.abc import Iterator
from typing import Literal

import numpy as np

Tail = Literal["right", "left", "two-sided"]
TAILS = {"right": 0, "left": 1, "two-sided": 2}
_BLOCK_BYTES = 1 << 25


def tail_pvalues(counts: np.ndarray, n: int, tail: Tail) -> np.ndarray:
    """Upper p-value of a cell from the number of background values at least as extreme (the smaller, if two-sided)."""
    p = (np.asarray(counts) + 1.0) / (n + 1.0)
    return np.minimum(2.0 * p, 1.0) if tail == "two-sided" else p


def node_blocks(n_nodes: int, bytes_per_node: int) -> Iterator[slice]:
    """Slices of nodes that take about 32 MB each."""
    step = max(1, _BLOCK_BYTES // max(1, bytes_per_node))
    for start in range(0, n_nodes, step):
        yield slice(start, min(start + step, n_nodes))
