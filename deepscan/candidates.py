"""Kernels that list the subsets worth scoring in one step of the group search, and score them.

A step keeps one axis fixed (its ``members``) and looks for the best subset of the other axis' *elements*. For a fixed
threshold the best subset of any size holds the elements with the highest counts of cells under the threshold (LTSS),
and elements with equal counts enter together, so there is one candidate per distinct count and threshold.

Where every distinct p-value is a threshold, counting at each of them would cost thresholds times elements. A sweep then
admits the cells in the order of their p-values, one threshold after the other, and keeps the elements ordered by their
counts as these grow, which takes constant time a cell; at each threshold only the distinct counts become candidates.
"""

import math

import numpy as np

from deepscan.kernels import kernel


@kernel
def phi(kind, n_alpha, n, alpha):
    """Score of one subset: kind 0 Berk-Jones, 1 Higher Criticism, 2 Kolmogorov-Smirnov."""
    excess = n_alpha - n * alpha
    if excess <= 0.0:
        return 0.0
    if kind == 0:
        if n_alpha >= n:
            return -n * math.log(alpha)
        rest = n - n_alpha
        return max(0.0, n_alpha * math.log(n_alpha / (n * alpha)) + rest * math.log(rest / (n * (1.0 - alpha))))
    if kind == 1:
        return excess / math.sqrt(n * alpha * (1.0 - alpha))
    return excess / math.sqrt(n)


@kernel
def best_candidate(kind, n_alpha, n, k, alphas, n_candidates):
    """Highest score and the first candidate that has it; -1 where none scores above 0."""
    best, where = 0.0, -1
    for c in range(n_candidates):
        score = phi(kind, n_alpha[c], n[c], alphas[k[c]])
        if score > best:
            best, where = score, c
    return best, where


@kernel
def emit(n_alpha, n, k, size, cut, at, threshold, count, tied, before, total, members, low, high):
    """Append the candidates that end within one group of tied elements.

    ``before`` elements with ``total`` small cells rank ahead of the ``tied`` ones, each with ``count``. A score has no
    inner maximum along a group of ties, so only its end and the bounds ``low`` and ``high`` on the size are candidates.
    """
    end = before + tied
    inner = before < low < end or before < high < end
    for bound in range(0 if inner else 2, 3):
        here = low if bound == 0 else (high if bound == 1 else end)
        wanted = low <= end <= high if bound == 2 else before < here < end and not (bound == 1 and low == high)
        if wanted:
            n_alpha[at] = total + (here - before) * count
            n[at] = here * members
            k[at] = threshold
            size[at] = here
            cut[at] = count
            at += 1
    return at


@kernel
def list_tallied(exactly, n_elements, alphas, low, high, prune):
    """Candidates from a tally of how many elements have exactly c cells up to each threshold."""
    n_alphas, members = alphas.size, exactly.shape[1] - 1
    room = n_alphas * (min(members + 1, n_elements) + 2)
    n_alpha, n = np.empty(room, np.int64), np.empty(room, np.int64)
    k, size, cut = np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room, np.int64)
    at = 0
    for a in range(n_alphas):
        before = total = 0
        for count in range(members, -1, -1):
            tied = exactly[a, count]
            if tied == 0:
                continue
            if before >= low and (count == 0 or before >= high or (prune and count <= members * alphas[a])):
                break
            at = emit(n_alpha, n, k, size, cut, at, a, count, tied, before, total, members, low, high)
            before += tied
            total += tied * count
    return n_alpha, n, k, size, cut, at


@kernel
def sort_columns(counts, network):
    """Columns in ascending order, by a sorting network along all of them at once; without one, each by itself."""
    ascending = counts.copy()
    for s in range(network.shape[0]):
        low, high = ascending[network[s, 0]], ascending[network[s, 1]]
        for a in range(low.size):
            one, other = low[a], high[a]
            low[a] = min(one, other)
            high[a] = max(one, other)
    if network.shape[0] == 0 and counts.shape[0] > 1:
        for a in range(counts.shape[1]):
            ascending[:, a] = np.sort(counts[:, a].copy())
    return ascending


@kernel
def list_records(counts, network, members, alphas, low, high, prune):
    """Candidates for the best records from :func:`count_records` of ``members`` nodes."""
    n_records, n_alphas = counts.shape
    if members <= 4 * n_records:
        exactly = np.zeros((n_alphas, members + 1), np.int32)
        for i in range(n_records):
            for a in range(n_alphas):
                exactly[a, counts[i, a]] += 1
        return list_tallied(exactly, n_records, alphas, low, high, prune)
    room = n_alphas * (min(members + 1, n_records) + 2)
    n_alpha, n = np.empty(room, np.int64), np.empty(room, np.int64)
    k, size, cut = np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room, np.int64)
    at = 0
    ascending = sort_columns(counts, network)
    for a in range(n_alphas):
        before = total = 0
        while before < n_records:
            count = np.int64(ascending[n_records - 1 - before, a])
            tied = 1
            while before + tied < n_records and ascending[n_records - 1 - before - tied, a] == count:
                tied += 1
            if before >= low and (count == 0 or before >= high or (prune and count <= members * alphas[a])):
                break
            at = emit(n_alpha, n, k, size, cut, at, a, count, tied, before, total, members, low, high)
            before += tied
            total += tied * count
    return n_alpha, n, k, size, cut, at


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
