"""Kernels that count the small cells of nodes and records, and select those with the highest counts.

``bins`` is (n_records, n_nodes): the index of the smallest threshold that the p-value of a cell does not exceed.
"""

from functools import lru_cache

import numpy as np

from deepscan.kernels import kernel


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


@kernel
def _tally_sorted(bins, records, network, table):
    """Add to ``table[c, a]`` how many nodes have their c-th smallest index at a.

    The indices of each node are put in order by a sorting network, whose comparisons run along the nodes and so take
    many nodes an instruction; the histogram of the c-th smallest then tells how many nodes have c small cells.
    """
    members, n_nodes = records.size, bins.shape[1]
    width = max(128, min(1024, (49152 // members) // 128 * 128))
    block = np.empty((members, width), bins.dtype)
    whole = members - members % 4
    none = np.full(1, table.shape[1] - 1).astype(bins.dtype)[0]
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
            least = none
            for q in range(count):
                least = min(least, row0[q])
            if least == none:
                # No node of the block has a small cell in this place of its order, nor in any later one.
                break
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


@kernel
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


@kernel
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


@kernel
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


@kernel
def select_top(counts, cut, size):
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


@kernel
def select_nodes(bins, records, k, cut, size):
    """The nodes of a candidate, ascending."""
    counts = np.zeros(bins.shape[1], np.uint32)
    # Compared in the type of the bins, which is the narrowest.
    edge = np.full(1, k).astype(bins.dtype)[0]
    for i in records:
        row = bins[i]
        for j in range(row.size):
            counts[j] += np.uint32(row[j] <= edge)
    return select_top(counts, cut, size)


@kernel
def select_records(bins, nodes, k, cut, size):
    """The records of a candidate, ascending."""
    counts = np.zeros(bins.shape[0], np.int32)
    for i in range(bins.shape[0]):
        row = bins[i]
        count = 0
        for j in nodes:
            count += row[j] <= k
        counts[i] = count
    return select_top(counts, cut, size)


def node_network(members: int) -> np.ndarray:
    """Sorting network for the members of a step over nodes; empty where a histogram of each node is cheaper."""
    return sorting_network(members) if members <= 512 else _NO_NETWORK


def record_network(n_records: int) -> np.ndarray:
    """Sorting network for the records themselves; empty where there are so many that it would take long to make."""
    return sorting_network(n_records) if n_records <= 2048 else _NO_NETWORK


_NO_NETWORK = np.empty((0, 2), np.int64)
