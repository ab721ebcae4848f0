"""Kernels that turn the ranks of records into threshold indices and signs."""

import numpy as np

from deepscan.kernels import kernel


@kernel
def fill_split_bins(order, start, stop, is_background, scanned, tail, bin_of_count, bins):
    """Threshold indices of one split, from the ranks of all records.

    Parameters
    ----------
    order : (n_nodes, n_records)
        Records by ascending value.
    start, stop : (n_nodes, n_records)
        Where in ``order`` the ties of a record begin and end.
    is_background : (n_records,) uint8
    scanned : (n_scanned,)
        Records under test.
    bin_of_count : (n_background + 1,)
        Threshold index for each number of background values at least as extreme.
    bins : (n_scanned, n_nodes)
        Filled.
    """
    n_nodes, n_records = order.shape
    n = 0
    for i in range(n_records):
        n += is_background[i]
    seen = np.empty(n_records + 1, np.int32)
    # Written through a small block: rows of a wide matrix lie so that they would evict one another from the cache.
    width = 64
    block = np.empty((scanned.size, width), bins.dtype)
    for first in range(0, n_nodes, width):
        nodes = min(width, n_nodes - first)
        for q in range(nodes):
            here, begin, end = order[first + q], start[first + q], stop[first + q]
            count = np.int32(0)
            for place in range(n_records):
                seen[place] = count
                count += np.int32(is_background[here[place]])
            seen[n_records] = count
            for s in range(scanned.size):
                record = scanned[s]
                if tail == 0:
                    extreme = n - seen[begin[record]]
                elif tail == 1:
                    extreme = seen[end[record]]
                else:
                    extreme = min(n - seen[begin[record]], seen[end[record]])
                block[s, q] = bin_of_count[extreme]
        for s in range(scanned.size):
            source, target = block[s], bins[s, first : first + nodes]
            for q in range(nodes):
                target[q] = source[q]


@kernel
def fill_split_signs(order, start, stop, is_background, n, chosen, nodes, signs):
    """Side of the background's median on which most of the chosen records lie, for the given nodes."""
    n_records = order.shape[1]
    for a in range(nodes.size):
        j = nodes[a]
        seen = 0
        low = high = 0
        for q in range(n_records):
            if is_background[order[j, q]]:
                seen += 1
                if seen == (n - 1) // 2 + 1:
                    low = q
                if seen == n // 2 + 1:
                    high = q
                    break
        above_from = stop[j, order[j, high]]
        below_upto = start[j, order[j, low]]
        side = 0
        for c in range(chosen.size):
            place = start[j, chosen[c]]
            if place >= above_from:
                side += 1
            elif place < below_upto:
                side -= 1
        signs[a] = np.int8(1 if side > 0 else (-1 if side < 0 else 0))


@kernel
def fill_ties(values, order, start, stop):
    """Where the ties of each record begin and end in its node's order; values are (records, nodes)."""
    n_nodes, n_records = order.shape
    for j in range(n_nodes):
        first = 0
        while first < n_records:
            last = first + 1
            value = values[order[j, first], j]
            while last < n_records and values[order[j, last], j] == value:
                last += 1
            for q in range(first, last):
                start[j, order[j, q]] = first
                stop[j, order[j, q]] = last
            first = last


@kernel
def sum_sides(sides, records, nodes):
    """Sign of the sum over the records of the sides (n_records, n_nodes) on which they lie, for the given nodes."""
    total = np.zeros(sides.shape[1], np.int32)
    for i in records:
        row = sides[i]
        for j in range(row.size):
            total[j] += row[j]
    signs = np.empty(nodes.size, np.int8)
    for a in range(nodes.size):
        side = total[nodes[a]]
        signs[a] = 1 if side > 0 else (-1 if side < 0 else 0)
    return signs
