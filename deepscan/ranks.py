"""Ranks of all records on every node, from which the p-values of any split follow without sorting again."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Integer, Shaped

from deepscan.tails import TAILS, Tail, node_blocks


@dataclass(frozen=True)
class Ranks:
    """Order of the records on every node.

    Attributes
    ----------
    order : (n_nodes, n_records)
        Records by ascending value.
    start, stop : (n_nodes, n_records)
        Where in ``order`` the records that tie with a record begin and end.
    """

    order: Integer[np.ndarray, "nodes records"]
    start: Integer[np.ndarray, "nodes records"]
    stop: Integer[np.ndarray, "nodes records"]

    def bins(
        self,
        background: Integer[np.ndarray, " background"],
        scanned: Integer[np.ndarray, " scanned"],
        bin_of_count: Integer[np.ndarray, " counts"],
        tail: Tail,
    ) -> Integer[np.ndarray, "scanned nodes"]:
        """Threshold index of every scanned record against a background, both given as indices of records."""
        from deepscan.ranking import fill_split_bins

        bins = np.empty((scanned.size, self.order.shape[0]), bin_of_count.dtype)
        is_background = self._mask(background)
        fill_split_bins(self.order, self.start, self.stop, is_background, scanned, TAILS[tail], bin_of_count, bins)
        return bins

    def signs(
        self,
        background: Integer[np.ndarray, " background"],
        records: Integer[np.ndarray, " selected"],
        nodes: Integer[np.ndarray, " chosen"],
    ) -> Integer[np.ndarray, " chosen"]:
        """Side of the background's median on which most of the records lie, on the given nodes: +1, -1 or 0."""
        from deepscan.ranking import fill_split_signs

        signs = np.empty(nodes.size, np.int8)
        fill_split_signs(
            self.order, self.start, self.stop, self._mask(background), background.size, records, nodes, signs
        )
        return signs

    def mean_sides(
        self,
        background: Integer[np.ndarray, " background"],
        records: Integer[np.ndarray, " selected"],
        nodes: Integer[np.ndarray, " chosen"],
    ) -> Integer[np.ndarray, " chosen"]:
        """Whether the mean rank of the records is above (+1) or below (-1) that of the background; 0 if they are equal."""
        middle = self.start[nodes].astype(np.int64) + self.stop[nodes]
        own, other = middle[:, records].sum(axis=1), middle[:, background].sum(axis=1)
        return np.sign(own * background.size - other * records.size).astype(np.int8)

    def _mask(self, background: np.ndarray) -> np.ndarray:
        mask = np.zeros(self.order.shape[1], np.uint8)
        mask[background] = 1
        return mask


def rank_records(h0: Shaped[np.ndarray, "h0 nodes"], h1: Shaped[np.ndarray, "h1 nodes"]) -> Ranks:
    """Ranks of the records of ``[h0; h1]`` on every node; blocks of nodes are sorted one after the other."""
    from deepscan.ranking import fill_ties

    n_records, n_nodes = h0.shape[0] + h1.shape[0], h0.shape[1]
    dtype = np.uint16 if n_records <= 65535 else np.uint32
    order, start, stop = (np.empty((n_nodes, n_records), dtype) for _ in range(3))
    common = np.float32 if {h0.dtype, h1.dtype} <= {np.dtype(np.float16), np.dtype(np.float32)} else np.float64
    for block in node_blocks(n_nodes, 24 * n_records):
        values = np.concatenate([h0[:, block], h1[:, block]]).astype(common, copy=False)
        order[block] = np.argsort(values.T, axis=1)
        fill_ties(values, order[block], start[block], stop[block])
    return Ranks(order=order, start=start, stop=stop)
