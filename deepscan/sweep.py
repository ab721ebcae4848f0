"""Kernel of one step of the group search with many thresholds: a sweep over the cells in the order of their p-values.

Where every distinct p-value is a threshold, counting at each of them would cost thresholds times elements. The sweep
admits the cells one threshold after the other instead and keeps the elements ordered by their counts as these grow,
which takes constant time a cell; at each threshold only the distinct counts are listed as candidates.
"""

import numpy as np

from deepscan.candidates import emit
from deepscan.kernels import kernel


@kernel
def sweep(bins, cells, over_nodes, is_member, alphas, low, high, prune, state, room):
    """List candidates from where the last call stopped, until ``room`` would not hold those of another threshold.

    Parameters
    ----------
    bins : (n_records * n_nodes,)
    cells : (n_cells,)
        Flat indices of the cells under the largest threshold, by ascending bin.
    over_nodes : bool
        The elements are nodes and the members records; else the other way round.
    is_member : bool array
    state : tuple of counts, ranked, place, first, cursor
        Count of each element; elements by descending count; the place of each in that order; for each count, the
        first place that holds no higher one; and the next cell.
    """
    counts, ranked, place, first, cursor = state
    n_elements, members = counts.size, first.size - 2
    n_nodes = n_elements if over_nodes else is_member.size
    n_alpha, n = np.empty(room, np.int64), np.empty(room, np.int64)
    k, size, cut = np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room, np.int64)
    worst = min(members + 1, n_elements) + 2
    at = 0
    q = cursor[0]
    while q < cells.size and at + worst <= room:
        threshold = bins[cells[q]]
        changed = False
        while q < cells.size and bins[cells[q]] == threshold:
            record, node = cells[q] // n_nodes, cells[q] % n_nodes
            q += 1
            element, member = (node, record) if over_nodes else (record, node)
            if not is_member[member]:
                continue
            changed = True
            count = counts[element]
            head = first[count]
            other = ranked[head]
            ranked[place[element]] = other
            place[other] = place[element]
            ranked[head] = element
            place[element] = head
            first[count] = head + 1
            counts[element] = count + 1
        if not changed:
            continue
        before = total = 0
        while before < n_elements:
            count = counts[ranked[before]]
            tied = (first[count - 1] if count > 0 else n_elements) - before
            if before >= low and (count == 0 or before >= high or (prune and count <= members * alphas[threshold])):
                break
            at = emit(n_alpha, n, k, size, cut, at, threshold, count, tied, before, total, members, low, high)
            before += tied
            total += tied * count
    cursor[0] = q
    return n_alpha, n, k, size, cut, at


def start_state(n_elements: int, members: int) -> tuple[np.ndarray, ...]:
    """State of a sweep before the first cell."""
    first = np.full(members + 2, 0, np.int64)
    return np.zeros(n_elements, np.int64), np.arange(n_elements), np.arange(n_elements), first, np.zeros(1, np.int64)
