"""Kernels of one step of the group search with few thresholds: count, list the subsets worth scoring, score, select.

``bins`` is (n_records, n_nodes): the index of the smallest threshold that the p-value of a cell does not exceed.
A step keeps one axis fixed (its ``members``) and looks for the best subset of the other axis' *elements*. For a fixed
threshold the best subset of any size holds the elements with the highest counts of cells under the threshold (LTSS),
and elements with equal counts enter together, so there is one candidate per distinct count and threshold.
"""

import math
from functools import lru_cache

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
def best_candidate(kind, n_alpha, n, k, alphas, n_candidates):
    """Highest score and the first candidate that has it; -1 where none scores above 0."""
    best, where = 0.0, -1
    for c in range(n_candidates):
        score = phi(kind, n_alpha[c], n[c], alphas[k[c]])
        if score > best:
            best, where = score, c
    return best, where


@njit(cache=True, nogil=True)
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


@lru_cache(maxsize=256)
def sorting_network(size: int) -> np.ndarray:
    """Comparisons (n_comparisons, 2) of Batcher's odd-even merge sort (Knuth, TAOCP 3, algorithm 5.2.2M)."""
    pairs = []
    top = 1 << max(0, (size - 1).bit_length() - 1)
    p = top
    while p > 0:
        q, r, d = top, 0, p
        while True:
            pairs.extend((i, i + d) for i in range(size - d) if i & p == r)
            if q == p:
                break
            d, q, r = q - p, q // 2, p
        p //= 2
    return np.array(pairs, np.int64).reshape(-1, 2)


@njit(cache=True, nogil=True)
def _tally_sorted(bins, records, network, table):
    """Add to ``table[c, a]`` how many nodes have their c-th smallest index at a.

    The indices of each node are put in order by a sorting network, whose comparisons run along the nodes and so take
    many nodes an instruction; the histogram of the c-th smallest then tells how many nodes have c small cells.
    """
    members, n_nodes = records.size, bins.shape[1]
    width = max(128, min(1024, (49152 // members) // 128 * 128))
    block = np.empty((members, width), bins.dtype)
    whole = members - members % 4
    for first in range(0, n_nodes, width):
        count = min(width, n_nodes - first)
        for m in range(members):
            source, target = bins[records[m], first : first + count], block[m]
            for q in range(count):
                target[q] = source[q]
        for s in range(network.shape[0]):
            low, high = block[network[s, 0]], block[network[s, 1]]
            for q in range(width):
                a, b = low[q], high[q]
                low[q] = min(a, b)
                high[q] = max(a, b)
        # Four rows at once: neighbours in a row often fall into one bin, and would wait for each other's store.
        for m in range(0, whole, 4):
            row0, row1, row2, row3 = block[m], block[m + 1], block[m + 2], block[m + 3]
            table0, table1, table2, table3 = table[m], table[m + 1], table[m + 2], table[m + 3]
            for q in range(count):
                table0[row0[q]] += 1
                table1[row1[q]] += 1
                table2[row2[q]] += 1
                table3[row3[q]] += 1
        for m in range(whole, members):
            row, tally = block[m], table[m]
            for q in range(count):
                tally[row[q]] += 1


@njit(cache=True, nogil=True)
def _tally_counted(bins, records, exactly):
    """Add to ``exactly[a, c]`` how many nodes have c cells up to threshold a, by a histogram of each node."""
    n_nodes, n_alphas = bins.shape[1], exactly.shape[0]
    width = 256
    tally = np.zeros((width, n_alphas + 1), np.int32)
    for first in range(0, n_nodes, width):
        count = min(width, n_nodes - first)
        for i in records:
            row = bins[i, first : first + count]
            for q in range(count):
                tally[q, row[q]] += 1
        for q in range(count):
            cells = 0
            for a in range(n_alphas):
                cells += tally[q, a]
                exactly[a, cells] += 1
        tally[:] = 0


@njit(cache=True, nogil=True)
def tally_nodes(bins, records, network, n_alphas):
    """(n_alphas, n_members + 1): how many nodes have exactly c of the records' cells up to each threshold."""
    members = records.size
    exactly = np.zeros((n_alphas, members + 1), np.int32)
    if network.shape[0] == 0 and members > 1:
        _tally_counted(bins, records, exactly)
        return exactly
    table = np.zeros((members, n_alphas + 1), np.int32)
    _tally_sorted(bins, records, network, table)
    exactly[:, 0] = bins.shape[1]
    for m in range(members):
        total = 0
        for a in range(n_alphas):
            total += table[m, a]
            exactly[a, m + 1] += total
            exactly[a, m] -= total
    return exactly


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
def count_records(bins, nodes, n_alphas):
    """(n_records, n_alphas): how many of the nodes have p <= each threshold."""
    n_records = bins.shape[0]
    counts = np.zeros((n_records, n_alphas + 1), np.int32)
    whole = n_records - n_records % 4
    for i in range(0, whole, 4):
        row0, row1, row2, row3 = bins[i], bins[i + 1], bins[i + 2], bins[i + 3]
        counts0, counts1, counts2, counts3 = counts[i], counts[i + 1], counts[i + 2], counts[i + 3]
        for j in nodes:
            counts0[row0[j]] += 1
            counts1[row1[j]] += 1
            counts2[row2[j]] += 1
            counts3[row3[j]] += 1
    for i in range(whole, n_records):
        row = bins[i]
        for j in nodes:
            counts[i, row[j]] += 1
    for i in range(n_records):
        for a in range(1, n_alphas):
            counts[i, a] += counts[i, a - 1]
    return counts[:, :n_alphas]


@njit(cache=True, nogil=True)
def list_records(counts, members, alphas, low, high, prune):
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
    descending = np.empty(n_records, np.int64)
    ranked = np.arange(n_records)
    for a in range(n_alphas):
        rank_descending(counts, a, ranked, descending)
        before = total = 0
        while before < n_records:
            count = descending[before]
            tied = 1
            while before + tied < n_records and descending[before + tied] == count:
                tied += 1
            if before >= low and (count == 0 or before >= high or (prune and count <= members * alphas[a])):
                break
            at = emit(n_alpha, n, k, size, cut, at, a, count, tied, before, total, members, low, high)
            before += tied
            total += tied * count
    return n_alpha, n, k, size, cut, at


@njit(cache=True, nogil=True)
def rank_descending(counts, a, ranked, descending):
    """Put the records in the order of their counts at threshold a.

    ``ranked`` holds their order at the last threshold. Few records change places from one to the next, which an
    insertion sort does cheaply; where they are many, it gives up and sorts.
    """
    n_records = ranked.size
    for i in range(n_records):
        descending[i] = counts[ranked[i], a]
    moves, most = 0, 16 * n_records
    for i in range(1, n_records):
        value, record = descending[i], ranked[i]
        place = i
        while place > 0 and descending[place - 1] < value:
            descending[place] = descending[place - 1]
            ranked[place] = ranked[place - 1]
            place -= 1
        descending[place] = value
        ranked[place] = record
        moves += i - place
        if moves > most:
            break
    if moves > most:
        order = np.argsort(-counts[:, a])
        for i in range(n_records):
            ranked[i] = order[i]
            descending[i] = counts[order[i], a]


@njit(cache=True, nogil=True)
def _top(counts, cut, size):
    """Elements with more than ``cut`` cells, and the first of those with exactly ``cut`` that make up the size."""
    above = 0
    for e in range(counts.size):
        above += counts[e] > cut
    ties = size - above
    chosen = np.empty(size, np.int64)
    at = 0
    for e in range(counts.size):
        if counts[e] > cut or (counts[e] == cut and ties > 0):
            ties -= counts[e] == cut
            chosen[at] = e
            at += 1
    return chosen


@njit(cache=True, nogil=True)
def select_nodes(bins, records, k, cut, size):
    """The nodes of a candidate, ascending."""
    counts = np.zeros(bins.shape[1], np.int32)
    for i in records:
        row = bins[i]
        for j in range(row.size):
            counts[j] += row[j] <= k
    return _top(counts, cut, size)


@njit(cache=True, nogil=True)
def select_records(bins, nodes, k, cut, size):
    """The records of a candidate, ascending."""
    counts = np.zeros(bins.shape[0], np.int32)
    for i in range(bins.shape[0]):
        row = bins[i]
        count = 0
        for j in nodes:
            count += row[j] <= k
        counts[i] = count
    return _top(counts, cut, size)


@njit(cache=True, nogil=True)
def best_nodes(kind, bins, records, network, alphas, low, high):
    """Highest score, its threshold index and its nodes, the records being fixed; nothing where no score is above 0."""
    n_alpha, n, k, size, cut, count = list_tallied(
        tally_nodes(bins, records, network, alphas.size), bins.shape[1], alphas, low, high, True
    )
    score, c = best_candidate(kind, n_alpha, n, k, alphas, count)
    if c < 0:
        return 0.0, -1, np.empty(0, np.int64)
    return score, k[c], select_nodes(bins, records, k[c], cut[c], size[c])


@njit(cache=True, nogil=True)
def best_records(kind, bins, nodes, alphas, low, high):
    """Highest score, its threshold index and its records, the nodes being fixed; nothing where no score is above 0."""
    counts = count_records(bins, nodes, alphas.size)
    n_alpha, n, k, size, cut, count = list_records(counts, nodes.size, alphas, low, high, True)
    score, c = best_candidate(kind, n_alpha, n, k, alphas, count)
    if c < 0:
        return 0.0, -1, np.empty(0, np.int64)
    return score, k[c], _top(counts[:, k[c]], cut[c], size[c])


def node_network(members: int) -> np.ndarray:
    """Sorting network for the members of a step over nodes; empty where a histogram of each node is cheaper."""
    return sorting_network(members) if members <= 512 else _NO_NETWORK


_NO_NETWORK = np.empty((0, 2), np.int64)
