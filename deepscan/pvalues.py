"""Empirical p-values of activations against a background, with ties."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Integer, Shaped

from deepscan.checks import check_activations, check_choice, check_groups
from deepscan.tails import TAILS, Tail, node_blocks, tail_pvalues


@dataclass(frozen=True)
class PValues:
    """Range of the empirical p-value of every cell; the width of a range is the share of ties.

    Attributes
    ----------
    lower, upper : (n_records, n_nodes) float64
        Ends of the range. ``upper`` is never 0 and is a valid p-value; the scan uses it.
    """

    lower: Float[np.ndarray, "records nodes"]
    upper: Float[np.ndarray, "records nodes"]

    @property
    def shape(self) -> tuple[int, int]:
        """``(n_records, n_nodes)``."""
        return self.upper.shape


class Background:
    """Activations under H0, sorted once, that others are compared with.

    Parameters
    ----------
    h0 : (n_background, n_nodes) float16, float32 or float64
        Activations of the background records. They are copied, in their own dtype, and sorted per node.
    groups : (n_background,), optional
        A label a record: a record under test is then compared only with the background of its own group
        (conditional p-values).

    Raises
    ------
    ValueError
        ``h0`` is empty, not two-dimensional or holds NaN or inf; ``groups`` has another length.
    """

    def __init__(
        self,
        h0: Shaped[np.ndarray, "background nodes"],
        *,
        groups: Shaped[np.ndarray, " background"] | Sequence | None = None,
    ):
        h0 = check_activations(h0, "h0")
        if h0.shape[0] == 0:
            raise ValueError("h0 is an empty background; expected at least one record")
        self.n_background, self.n_nodes = h0.shape
        self.grouped = groups is not None
        if groups is None:
            self._sorted: dict = {None: _sort_by_node(h0, None)}
        else:
            labels = check_groups(groups, "groups", n_records=h0.shape[0])
            self._sorted = {
                label: _sort_by_node(h0, np.flatnonzero(labels == label)) for label in np.unique(labels).tolist()
            }

    @property
    def sizes(self) -> dict:
        """Number of background records of each group; the only key is ``None`` where there are no groups."""
        return {label: by_node.shape[1] for label, by_node in self._sorted.items()}

    def pvalues(
        self,
        x: Shaped[np.ndarray, "records nodes"],
        *,
        tail: Tail = "right",
        groups: Shaped[np.ndarray, " records"] | Sequence | None = None,
    ) -> PValues:
        """Empirical p-values of ``x``.

        With ``n`` background values ``b`` of a node (of the record's group), the right tail has
        ``upper = (#{b >= x} + 1)/(n + 1)`` and ``lower = #{b > x}/(n + 1)``; the left tail mirrors it; two-sided is
        twice the smaller tail, clipped to 1. Under H0, with ``x`` exchangeable with the background,
        ``P(upper <= a) <= a`` for every ``a`` in all three.

        Parameters
        ----------
        x : (n_records, n_nodes) float16, float32 or float64
            Activations under test.
        tail : "right" | "left" | "two-sided"
            Which values count as extreme: large, small, or both.
        groups : (n_records,), optional
            Labels of the records; required exactly where the background has groups.

        Returns
        -------
        PValues

        Raises
        ------
        ValueError
            Another number of nodes, NaN or inf, an unknown tail or group.
        """
        check_choice(tail, "tail", Tail)
        x = check_activations(x, "x", n_nodes=self.n_nodes)
        lower, upper = np.empty(x.shape), np.empty(x.shape)
        for label, rows in self._rows(x.shape[0], groups):
            by_node = self._sorted[label]
            n = by_node.shape[1]
            more_extreme = np.arange(n + 1) / (n + 1.0)
            lower_of = np.minimum(2.0 * more_extreme, 1.0) if tail == "two-sided" else more_extreme
            _fill(by_node, x, rows, tail, False, lower_of, lower)
            _fill(by_node, x, rows, tail, True, tail_pvalues(np.arange(n + 1), n, tail), upper)
        return PValues(lower=lower, upper=upper)

    def bins(
        self,
        x: Shaped[np.ndarray, "records nodes"],
        alphas: Float[np.ndarray, " thresholds"],
        *,
        tail: Tail = "right",
        groups: Shaped[np.ndarray, " records"] | Sequence | None = None,
    ) -> Integer[np.ndarray, "records nodes"]:
        """Index of the smallest threshold that the upper p-value of each cell does not exceed.

        What :func:`deepscan.thresholds.bin_pvalues` gives for :meth:`pvalues`, without holding these.

        Parameters
        ----------
        x, tail, groups
            As for :meth:`pvalues`.
        alphas : (n_thresholds,)
            Ascending.

        Returns
        -------
        (n_records, n_nodes) unsigned integers
            ``len(alphas)`` where a p-value exceeds all.

        Raises
        ------
        ValueError
            As :meth:`pvalues`.
        """
        from deepscan.thresholds import bin_counts, bin_dtype

        check_choice(tail, "tail", Tail)
        x = check_activations(x, "x", n_nodes=self.n_nodes)
        bins = np.empty(x.shape, bin_dtype(alphas.size))
        for label, rows in self._rows(x.shape[0], groups):
            by_node = self._sorted[label]
            _fill(by_node, x, rows, tail, True, bin_counts(alphas, by_node.shape[1], tail), bins)
        return bins

    def sides(
        self,
        x: Shaped[np.ndarray, "records nodes"],
        *,
        groups: Shaped[np.ndarray, " records"] | Sequence | None = None,
    ) -> Shaped[np.ndarray, "records nodes"]:
        """Side of the background's median on which each value lies.

        Returns
        -------
        (n_records, n_nodes) int8
            +1 above the median, -1 below it, 0 on it. With an even background every point between the two middle
            values is a median.
        """
        x = check_activations(x, "x", n_nodes=self.n_nodes)
        sides = np.empty(x.shape, np.int8)
        for label, rows in self._rows(x.shape[0], groups):
            by_node = self._sorted[label]
            n = by_node.shape[1]
            low, high = by_node[:, (n - 1) // 2].copy(), by_node[:, n // 2].copy()
            for row in rows:
                sides[row] = (x[row] > high).astype(np.int8) - (x[row] < low)
        return sides

    def _rows(self, n_records: int, groups) -> Iterator[tuple[object, np.ndarray]]:
        if not self.grouped:
            if groups is not None:
                raise ValueError("groups was given, but the background has none; build it with Background(h0, groups=)")
            yield None, np.arange(n_records)
            return
        if groups is None:
            raise ValueError("groups is missing; the background has groups, so every record needs the label of its own")
        labels = check_groups(groups, "groups", n_records=n_records)
        for label in np.unique(labels).tolist():
            if label not in self._sorted:
                known = ", ".join(map(repr, list(self._sorted)[:8]))
                raise ValueError(f"groups holds {label!r}, of which the background has no record; it has {known}")
            yield label, np.flatnonzero(labels == label)


def _sort_by_node(h0: np.ndarray, rows: np.ndarray | None) -> np.ndarray:
    """(n_nodes, n_background), each node's values ascending."""
    n = h0.shape[0] if rows is None else rows.size
    by_node = np.empty((h0.shape[1], n), h0.dtype)
    for block in node_blocks(h0.shape[1], n * h0.itemsize):
        values = h0[:, block] if rows is None else h0[rows, block]
        by_node[block] = values.T
        by_node[block].sort(axis=1)
    return by_node


def _fill(by_node, x, rows, tail: Tail, with_ties: bool, table: np.ndarray, out: np.ndarray) -> None:
    from deepscan.tail_kernels import fill_tails

    choice = TAILS[tail], with_ties, table, out
    wide = by_node.dtype == np.float64 or x.dtype == np.float64
    common = np.dtype(np.float64 if wide else np.float32)
    if by_node.dtype == x.dtype == common and x.flags.c_contiguous:
        fill_tails(by_node, x, 0, rows, rows, *choice, 0)
        return
    for block in node_blocks(by_node.shape[0], (by_node.shape[1] + x.shape[0]) * common.itemsize):
        values = np.ascontiguousarray(x[rows, block], dtype=common)
        fill_tails(by_node[block].astype(common), values, 0, np.arange(rows.size), rows, *choice, block.start)
