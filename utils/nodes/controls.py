"""Node sets to hold a scanned set against: as large, at the same layer, chosen by chance or by a simpler method."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Shaped

from deepscan import ScanRuns
from utils.nodes.selectors import SELECTORS, select_nodes
from utils.nodes.sets import NodeSet, node_sets, top_nodes

# A node's match in variance is drawn from this share of the nodes, those nearest to it.
_NEAREST = 0.05


def scanned_nodes(
    runs: ScanRuns, signs: Shaped[np.ndarray, " nodes"], *, size: int | None = None, threshold: float = 0.5
) -> NodeSet:
    """The node set of a persona's scan, every node with a side.

    Parameters
    ----------
    signs
        (nodes,) +1 or -1, for nodes whose selected records lie on both sides equally often.
    size
        The nodes that were selected most often, so many; by default the set of :func:`utils.nodes.node_sets`.

    Raises
    ------
    ValueError
        The set is empty, or the scan never selected as many nodes.
    """
    if size is None:
        held = node_sets({"": runs}, threshold=threshold)[""]
        if not held:
            raise ValueError(
                f"no node was selected by {threshold:.0%} of the runs and more often than under flipped sides: the node set "
                "is empty. Give a size, for the nodes that were selected most often."
            )
    else:
        held = top_nodes(runs.node_frequency(), runs.node_sign().astype(int), size)
        if size < 1 or len(held) < size:
            raise ValueError(
                f"{size} nodes were asked for and the scan selected {(runs.node_frequency() > 0).sum()} at least once; "
                "expected from 1 to that."
            )
    return frozenset((node, sign or int(signs[node])) for node, sign in held)


def random_sets(
    size: int, signs: Shaped[np.ndarray, " nodes"], n_sets: int, *, rng: int | np.random.Generator = 0
) -> list[NodeSet]:
    """Node sets drawn from all nodes with equal chances.

    Parameters
    ----------
    signs
        (nodes,) the side that each node is given where it is drawn. With those of the mean differences, only which nodes
        are in the set is left to chance, and a scanned set must do better than any nodes pushed the right way.
    """
    _check_size(size, len(signs))
    generator = np.random.default_rng(rng)
    return [_signed(generator.choice(len(signs), size, replace=False), signs) for _ in range(n_sets)]


def matched_sets(
    nodes: NodeSet,
    spread: Float[np.ndarray, " nodes"],
    signs: Shaped[np.ndarray, " nodes"],
    n_sets: int,
    *,
    rng: int | np.random.Generator = 0,
) -> list[NodeSet]:
    """Node sets drawn so that they vary as the given one does: for each of its nodes one of those nearest in spread.

    Nearest are a twentieth of all nodes, on both sides in the order of the spreads; no node is drawn twice for a set.
    """
    n = len(spread)
    _check_size(len(nodes), n)
    generator = np.random.default_rng(rng)
    order = np.argsort(spread, kind="stable")
    rank = np.empty(n, dtype=int)
    rank[order] = np.arange(n)
    half = max(1, round(_NEAREST * n / 2))
    wanted = np.array([rank[node] for node, _ in sorted(nodes)], dtype=int)
    sets = []
    for _ in range(n_sets):
        free = np.ones(n, dtype=bool)
        for place in generator.permutation(wanted):
            reach = half
            while not (near := np.flatnonzero(free[max(0, place - reach) : place + reach + 1])).size:
                reach *= 2
            free[max(0, place - reach) + generator.choice(near)] = False
        sets.append(_signed(order[~free], signs))
    return sets


def simple_sets(
    h0: Float[np.ndarray, "h0 nodes"],
    h1: Float[np.ndarray, "h1 nodes"],
    size: int,
    *,
    pairs: Sequence | np.ndarray | None = None,
) -> dict[str, NodeSet]:
    """Sets of the same size by every method of :func:`utils.nodes.select_nodes`, with the t-test's smallest p-values."""
    options = {"n": size, "pairs": pairs, "level": 1.0}
    return {method: select_nodes(h0, h1, method=method, **options) for method in SELECTORS}


def _signed(nodes: np.ndarray, signs: np.ndarray) -> NodeSet:
    return frozenset((int(node), int(signs[node])) for node in nodes)


def _check_size(size: int, n_nodes: int) -> None:
    if not 1 <= size <= n_nodes:
        raise ValueError(f"sets of {size} nodes were asked for and there are {n_nodes}; expected from 1 to that.")
