"""A scan for few or many nodes that are high on one side, its scores calibrated by relabelling."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Integer, Shaped

from deepscan.checks import check_integer
from deepscan.relabellings import (
    TOLERANCE,
    Relabellings,
    centre_and_scale,
    read_layers,
    relabel,
    standardise,
    sums_by_labelling,
)
from deepscan.trials import run_parallel

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False, repr=False)
class CalibratedScan:
    """What :func:`calibrated_scan` found. Fields "by layer" are lists over layers exactly where the activations have them.

    Attributes
    ----------
    p_value : float
        Of all layers and sizes together.
    size : int, or by layer an array
        Number of nodes at which the observed sides stand out most.
    nodes : sorted int array, by layer
        Those ``size`` nodes. There is a best size without any effect, too: a set means something where the p-value does.
    signs : int8 array, by layer, aligned with ``nodes``
        +1 where h1 is higher, -1 where it is lower; never 0.
    statistic : int, or by layer an array
        T of the observed sides, the best rank over sizes: 1 where no permuted labelling reaches it at some size.
    null : by layer (..., n_permutations)
        T of the permuted sides.
    sizes, size_p_value : (n_sizes,) arrays, by layer
        The sizes that were tried, and the p-value of each by itself, not adjusted: which effects, sparse or dense.
    layer_p_value, layer_p_adjusted : by layer
        p-value of each layer by itself, and adjusted over the layers (family-wise).
    n, paired : int, bool
        Number of pairs, or of records without pairs.
    """

    p_value: float
    size: Integer[np.ndarray, " layers"] | int
    nodes: list[np.ndarray] | Integer[np.ndarray, " chosen"]
    signs: list[np.ndarray] | Integer[np.ndarray, " chosen"]
    statistic: Integer[np.ndarray, " layers"] | int
    null: Integer[np.ndarray, "*axis permutations"]
    sizes: list[np.ndarray] | Integer[np.ndarray, " sizes"]
    size_p_value: list[np.ndarray] | Float[np.ndarray, " sizes"]
    layer_p_value: Float[np.ndarray, " layers"] | float
    layer_p_adjusted: Float[np.ndarray, " layers"] | float
    n: int
    paired: bool

    @property
    def table(self) -> "pandas.DataFrame":
        """One row a layer: ``layer, statistic, p_value, p_adjusted, size``."""
        import pandas as pd

        size = np.atleast_1d(self.size)
        columns = {
            "layer": np.arange(size.size),
            "statistic": np.atleast_1d(self.statistic),
            "p_value": np.atleast_1d(self.layer_p_value),
            "p_adjusted": np.atleast_1d(self.layer_p_adjusted),
            "size": size,
        }
        return pd.DataFrame(columns)

    def __repr__(self) -> str:
        found = f"{np.size(self.size)} layers" if np.ndim(self.size) else f"{self.size} nodes"
        units = f"{self.n} {'pairs' if self.paired else 'records'}"
        return f"CalibratedScan(p_value={self.p_value:.4g}, {found}, {units})"


def calibrated_scan(
    h0: Shaped[np.ndarray, "h0 nodes"] | Shaped[np.ndarray, "layers h0 nodes"] | Sequence[np.ndarray],
    h1: Shaped[np.ndarray, "h1 nodes"] | Shaped[np.ndarray, "layers h1 nodes"] | Sequence[np.ndarray],
    *,
    pairs: Shaped[np.ndarray, " records"] | Sequence | None = None,
    n_sizes: int = 24,
    n_permutations: int = 999,
    rng: int | np.random.Generator = 0,
    n_jobs: int = 1,
) -> CalibratedScan:
    """Test whether the sides differ in any number of nodes, one to all, and find these nodes.

    With Z as for :func:`deepscan.separation_test`, ``z(e) = Z^T e`` and ``C_k(e)`` the sum of the k largest ``z_j^2``,
    for k on a log grid of sizes. ``R_k(e)`` is the rank of ``C_k(e)`` among all labellings, the observed one included
    (1 = largest, ties count against), and ``T(e) = min_k R_k(e)``. The p-value is the share of labellings with
    ``T <= T(observed)``, ties broken by the largest ``C_k`` about its mean and over its standard deviation over labellings.
    It is exact, and takes the correlation of the nodes from the relabelling itself, where a Berk–Jones scan assumes
    independent cells; ranks put sums over few and over many nodes on one scale. Of the family of higher criticism (Donoho
    & Jin 2004), calibrated as in Westfall & Young 1993.

    Parameters
    ----------
    h0, h1 : (n, n_nodes), or (layers, n, n_nodes) or a sequence of layers
        As for :func:`deepscan.separation_test`. Over several layers, T is the minimum over layers, too.
    pairs : optional
        As for :func:`deepscan.detect`; the same seed and pairs give the same flips.
    n_sizes : int
        Sizes to try, from 1 to all nodes, fewer where the grid would repeat itself.
    n_permutations : int
        Random flips; with 0 the p-value is 1.
    rng : int or Generator
    n_jobs : int
        Threads over layers; the result does not depend on it.

    Returns
    -------
    CalibratedScan

    Raises
    ------
    ValueError
        Different nodes or layers, NaN or inf, incomplete pairs, fewer than two pairs, or an ``n_sizes`` below 1.
    """
    n_sizes = check_integer(n_sizes, "n_sizes", minimum=1)
    sides, several = read_layers(h0, h1, smallest=1)
    relabellings = relabel(sides, pairs, n_permutations, rng)
    layers = run_parallel(
        _scan_layer, [(*both, relabellings, n_sizes) for both in sides], n_jobs=n_jobs, progress=False
    )
    rank, tie = np.stack([layer.rank for layer in layers]), np.stack([layer.tie for layer in layers])
    joint = rank.min(axis=0), tie.max(axis=0)
    by_layer = {
        "size": np.array([layer.nodes.size for layer in layers]),
        "nodes": [layer.nodes for layer in layers],
        "signs": [layer.signs for layer in layers],
        "statistic": rank[:, 0],
        "null": rank[:, 1:],
        "sizes": [layer.sizes for layer in layers],
        "size_p_value": [layer.size_p_value for layer in layers],
        "layer_p_value": _share_as_good(rank, tie, rank[:, 0], tie[:, 0]),
        "layer_p_adjusted": _share_as_good(*joint, rank[:, 0], tie[:, 0]),
    }
    if not several:
        by_layer = {name: x[0].item() if np.ndim(x[0]) == 0 else x[0] for name, x in by_layer.items()}
    p_value = float(_share_as_good(*joint, joint[0][0], joint[1][0]))
    return CalibratedScan(p_value=p_value, **by_layer, n=len(relabellings.signs), paired=relabellings.paired)


@dataclass(frozen=True)
class _Layer:
    """T and its tie breaker of every labelling; sizes, their p-values, and the nodes of the observed one."""

    rank: np.ndarray
    tie: np.ndarray
    sizes: np.ndarray
    size_p_value: np.ndarray
    nodes: np.ndarray
    signs: np.ndarray


def _scan_layer(h0: np.ndarray, h1: np.ndarray, relabellings: Relabellings, n_sizes: int) -> _Layer:
    z = standardise(h0, h1, relabellings.labels)
    sizes = np.unique(np.round(np.geomspace(1, z.shape[1], n_sizes)).astype(np.int64))
    signs = relabellings.centred
    top = np.empty((sizes.size, signs.shape[1]))
    for block, sums in sums_by_labelling(z, signs):
        top[:, block] = top_sums(np.square(sums, out=sums), sizes)
    rank = rank_from_top(top)
    standard = centre_and_scale(top)
    best = np.lexsort((-standard[:, 0], rank[:, 0]))[0]
    observed = signs[:, 0] @ z
    nodes = np.sort(np.argsort(-np.abs(observed), kind="stable")[: sizes[best]])
    nodes = nodes[observed[nodes] != 0.0]
    return _Layer(
        rank=rank.min(axis=0),
        tie=standard.max(axis=0),
        sizes=sizes,
        size_p_value=rank[:, 0] / rank.shape[1],
        nodes=nodes,
        signs=np.sign(observed[nodes]).astype(np.int8),
    )


def top_sums(squares: Float[np.ndarray, "labellings nodes"], sizes: Integer[np.ndarray, " sizes"]) -> np.ndarray:
    """(sizes, labellings): sums of the largest squares, of as many as each size says; ``squares`` is left sorted."""
    n = squares.shape[1]
    # Faster than a partition at two dozen places, which goes over the row once a place.
    squares.sort(axis=1)
    # From the largest size to the smallest: the parts between these places.
    parts = np.add.reduceat(squares, n - sizes[::-1], axis=1)
    return np.cumsum(parts[:, ::-1], axis=1).T


def rank_from_top(values: Float[np.ndarray, "sizes labellings"]) -> Integer[np.ndarray, "sizes labellings"]:
    """How many labellings have a value at least as large, each itself included, row by row."""
    n = values.shape[1]
    rank = np.empty(values.shape, np.int64)
    for row, ranked in zip(values, rank, strict=True):
        ranked[:] = n - np.searchsorted(np.sort(row), row - TOLERANCE * np.abs(row))
    return rank


def _share_as_good(
    rank: np.ndarray, tie: np.ndarray, own_rank: np.ndarray | np.integer, own_tie: np.ndarray | np.floating
) -> np.ndarray | np.floating:
    """Share of the labellings (last axis) that come before one with this rank and tie breaker, or tie with it."""
    own_rank, own_tie = np.asarray(own_rank)[..., None], np.asarray(own_tie)[..., None]
    tied = (rank == own_rank) & (tie >= own_tie - TOLERANCE * np.abs(own_tie))
    return np.mean((rank < own_rank) | tied, axis=-1)
