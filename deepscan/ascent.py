"""The alternating ascent of the group search on threshold indices, and its step: count, list candidates, score, select."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

from deepscan import candidates, counting
from deepscan.candidates import best_candidate, list_records, list_tallied, start_state, sweep
from deepscan.counting import count_records, select_nodes, select_top, tally_nodes
from deepscan.kernels import kernel
from deepscan.scores import CALLABLE, ScoreFunction, ScoreName, evaluate, score_kind

Axis = Literal["records", "nodes"]

# Above this many thresholds a sweep over the sorted cells is cheaper than counting at each threshold.
MAX_COUNTED = 1024
_ROOM = 1 << 16


class Subset(NamedTuple):
    """A scored subset; ``k`` is the index of its threshold, -1 where it is empty."""

    score: float
    k: int
    records: np.ndarray
    nodes: np.ndarray


class Start(NamedTuple):
    """Where an ascent begins: a subset of one axis."""

    axis: Axis
    indices: np.ndarray


class Bounds(NamedTuple):
    """Least and largest numbers of selected records and nodes."""

    min_records: int
    max_records: int
    min_nodes: int
    max_nodes: int

    def hold(self, start: Start) -> bool:
        """Whether a start is itself within the bounds of its axis."""
        low, high = self[:2] if start.axis == "records" else self[2:]
        return low <= start.indices.size <= high


EMPTY = Subset(0.0, -1, np.empty(0, np.int64), np.empty(0, np.int64))


@dataclass(frozen=True)
class Landscape:
    """What an ascent climbs.

    Attributes
    ----------
    bins : (n_records, n_nodes) unsigned integers
        Index of the smallest threshold that the p-value does not exceed; ``len(alphas)`` where it exceeds all.
    alphas : (n_thresholds,)
        Ascending.
    score : name or function
    bounds : Bounds
    """

    bins: np.ndarray
    alphas: np.ndarray
    score: ScoreName | ScoreFunction
    bounds: Bounds

    @property
    def kind(self) -> int:
        """Number of the score in the kernels."""
        return score_kind(self.score)

    @cached_property
    def cells(self) -> np.ndarray:
        """Flat indices of the cells under the largest threshold, by ascending p-value."""
        flat = self.bins.ravel()
        small = np.flatnonzero(flat < self.alphas.size)
        return small[np.argsort(flat[small], kind="stable")]

    def climb(self, start: Start) -> Subset:
        """Local optimum that alternating optimisation reaches from a start."""
        best = EMPTY
        axis, fixed = start
        # The first step fixes a set that the bounds may not allow; its score then does not count.
        counts = self.bounds.hold(start)
        while True:
            score, k, chosen = self._optimise("nodes" if axis == "records" else "records", fixed)
            if k < 0 or (counts and not score > best.score):
                return best
            if counts:
                best = Subset(score, k, *((fixed, chosen) if axis == "records" else (chosen, fixed)))
            counts = True
            axis, fixed = ("nodes" if axis == "records" else "records"), chosen

    def _optimise(self, axis: Axis, fixed: np.ndarray) -> tuple[float, int, np.ndarray]:
        """Best subset of an axis with the other fixed."""
        low, high = self.bounds[2:] if axis == "nodes" else self.bounds[:2]
        if self.kind != CALLABLE and self.alphas.size <= MAX_COUNTED:
            if axis == "records":
                network = counting.record_network(self.bins.shape[0])
                return best_records(self.kind, self.bins, fixed, network, self.alphas, low, high)
            network = counting.node_network(fixed.size)
            return best_nodes(self.kind, self.bins, fixed, network, self.alphas, low, high)
        top, k, cut, size = 0.0, -1, 0, 0
        for n_alpha, n, ks, sizes, cuts, count in self._candidates(axis, fixed, low, high):
            score, c = self._best(n_alpha, n, ks, count)
            if c >= 0 and score > top:
                top, k, cut, size = score, int(ks[c]), int(cuts[c]), int(sizes[c])
        if k < 0:
            return 0.0, -1, np.empty(0, np.int64)
        select = counting.select_nodes if axis == "nodes" else counting.select_records
        return top, k, select(self.bins, fixed, k, cut, size)

    def _candidates(self, axis: Axis, fixed: np.ndarray, low: int, high: int) -> Iterator[tuple]:
        prune = self.kind != CALLABLE
        n_records, n_nodes = self.bins.shape
        if self.alphas.size <= MAX_COUNTED:
            if axis == "records":
                counts = counting.count_records(self.bins, fixed, self.alphas.size)
                network = counting.record_network(n_records)
                yield candidates.list_records(counts, network, fixed.size, self.alphas, low, high, prune)
            else:
                network = counting.node_network(fixed.size)
                exactly = counting.tally_nodes(self.bins, fixed, network, self.alphas.size)
                yield candidates.list_tallied(exactly, n_nodes, self.alphas, low, high, prune)
            return
        elements, others = (n_nodes, n_records) if axis == "nodes" else (n_records, n_nodes)
        is_member = np.zeros(others, np.bool_)
        is_member[fixed] = True
        state = start_state(elements, fixed.size)
        room = max(_ROOM, 2 * (min(fixed.size + 1, elements) + 2))
        while state[-1][0] < self.cells.size:
            yield sweep(
                self.bins.reshape(-1),
                self.cells,
                axis == "nodes",
                is_member,
                self.alphas,
                low,
                high,
                prune,
                state,
                room,
            )

    def _best(self, n_alpha, n, k, count) -> tuple[float, int]:
        if not callable(self.score):
            return candidates.best_candidate(self.kind, n_alpha, n, k, self.alphas, count)
        if count == 0:
            return 0.0, -1
        scores = evaluate(self.score, n_alpha[:count], n[:count], self.alphas[k[:count]])
        c = int(np.argmax(scores))
        return float(scores[c]), c


def climb_all(landscape: Landscape, starts: list[Start]) -> Subset:
    """Best of the ascents from several starts; the first of equals."""
    best = EMPTY
    for start in starts:
        found = landscape.climb(start)
        if found.score > best.score:
            best = found
    return best


def draw_starts(n_records: int, n_nodes: int, restarts: int, rng: np.random.Generator | None) -> list[Start]:
    """All records, all nodes, then random subsets of the axis with fewer elements, in turn small and of any size.

    The sizes are drawn evenly on a logarithmic and on a linear scale. Few elements lead to other optima than all of
    them do, the more so the longer the other axis is; from random subsets of that one nearly all ascents end the same.
    """
    starts = [Start("records", np.arange(n_records)), Start("nodes", np.arange(n_nodes))][:restarts]
    axis, size = ("records", n_records) if n_records <= n_nodes else ("nodes", n_nodes)
    for r in range(2, restarts):
        assert rng is not None
        order = rng.permutation(size)
        count = int((size + 1) ** rng.random()) if r % 2 == 0 else rng.integers(1, size, endpoint=True)
        starts.append(Start(axis, np.sort(order[:count])))
    return starts


@kernel
def best_nodes(kind, bins, records, network, alphas, low, high):
    """Highest score, its threshold index and its nodes, the records being fixed; nothing where no score is above 0."""
    n_alpha, n, k, size, cut, count = list_tallied(
        tally_nodes(bins, records, network, alphas.size), bins.shape[1], alphas, low, high, True
    )
    score, c = best_candidate(kind, n_alpha, n, k, alphas, count)
    if c < 0:
        return 0.0, -1, np.empty(0, np.int64)
    return score, k[c], select_nodes(bins, records, k[c], cut[c], size[c])


@kernel
def best_records(kind, bins, nodes, network, alphas, low, high):
    """Highest score, its threshold index and its records, the nodes being fixed; nothing where no score is above 0."""
    counts = count_records(bins, nodes, alphas.size)
    n_alpha, n, k, size, cut, count = list_records(counts, network, nodes.size, alphas, low, high, True)
    score, c = best_candidate(kind, n_alpha, n, k, alphas, count)
    if c < 0:
        return 0.0, -1, np.empty(0, np.int64)
    return score, k[c], select_top(counts[:, k[c]], cut[c], size[c])
