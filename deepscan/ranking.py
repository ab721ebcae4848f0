"""Kernels that turn activations and ranks into p-values and threshold indices."""

import numpy as np

from deepscan.kernels import kernel

TOLERANCE = 1e-12


@kernel
def _count_below(row, value):
    """How many entries of an ascending row are smaller than the value."""
    # Unsigned, for no index can be negative; a product and not a branch, for the comparison cannot be predicted.
    base, length, one = np.uint64(0), np.uint64(row.size), np.uint64(1)
    while length > one:
        half = length >> one
        base += half * np.uint64(row[base + half - one] < value)
        length -= half
    return np.int64(base + np.uint64(row[base] < value))


@kernel
def _count_upto(row, value):
    """How many entries of an ascending row are at most the value."""
    low, high = 0, row.size
    while low < high:
        middle = (low + high) // 2
        if row[middle] <= value:
            low = middle + 1
        else:
            high = middle
    return low


@kernel
def _part_of(value, half_low, scale, last):
    """Which of equal parts of a node's range a value is in; never decreases with the value.

    Halves, for the difference of two large numbers may overflow.
    """
    return np.uint32(min(max((0.5 * value - half_low) * scale, 0.0), last))


@kernel
def fill_pvalues(by_node, x, x_offset, x_rows, out_rows, tail, lower_of, upper_of, lower, upper, offset):
    """P-value ranges of the nodes ``offset ...`` for the given rows; tail 0 right, 1 left, 2 two-sided.

    ``lower_of`` and ``upper_of`` hold the ends of the range for each number of background values that are more
    extreme, and at least as extreme. The background of a node is cut into equal parts of its range, so that only the
    few values in the part of the value under test need comparing.
    """
    n_nodes, n = by_node.shape
    size = np.uint32(n)
    n_parts = 2 * n
    last = np.float64(n_parts - 1)
    first_in = np.empty((8, n_parts + 1), np.uint32)
    # Past its end a row goes on with inf, which is more than any value.
    rows = np.empty((8, n + 4), by_node.dtype)
    rows[:, n:] = np.inf
    half_lows, scales = np.empty(8), np.empty(8)
    # Eight nodes at a time, so that the cache lines of x and of the results are used whole.
    for first in range(0, n_nodes, 8):
        count = min(8, n_nodes - first)
        for q in range(count):
            row, starts = rows[q], first_in[q]
            row[:n] = by_node[first + q]
            half_lows[q] = 0.5 * np.float64(row[0])
            half_span = 0.5 * np.float64(row[n - 1]) - half_lows[q]
            scales[q] = n_parts / half_span if half_span > 1e-300 else 0.0
            starts[:] = 0
            for i in range(n):
                starts[_part_of(row[i], half_lows[q], scales[q], last) + np.uint32(1)] += np.uint32(1)
            for part in range(n_parts):
                starts[part + 1] += starts[part]
        for r in range(x_rows.size):
            for q in range(count):
                row, value = rows[q], x[x_rows[r], x_offset + first + q]
                part = _part_of(value, half_lows[q], scales[q], last)
                begin, end = first_in[q, part], first_in[q, part + np.uint32(1)]
                below = upto = begin
                # Always four, without a branch; those beyond the part are larger and do not count.
                for i in range(4):
                    other = row[begin + np.uint32(i)]
                    below += np.uint32(other < value)
                    upto += np.uint32(other <= value)
                if end > begin + np.uint32(4):
                    below = begin + np.uint32(_count_below(row[begin:end], value))
                    upto = begin + np.uint32(_count_upto(row[begin:end], value))
                if tail == 0:
                    outside, inside = size - upto, size - below
                elif tail == 1:
                    outside, inside = below, upto
                else:
                    outside, inside = min(size - upto, below), min(size - below, upto)
                lower[out_rows[r], offset + first + q] = lower_of[outside]
                upper[out_rows[r], offset + first + q] = upper_of[inside]


@kernel
def fill_even_bins(p, width, n_alphas, bins):
    """Index of the smallest of the thresholds ``width, 2 width, ...`` with p <= alpha + TOLERANCE.

    Returns how many values are no probabilities; their bins mean nothing. The loops have no table and no branch, so
    that they take several cells an instruction.
    """
    wrong = 0
    scale = 1.0 / width
    top = np.int32(n_alphas)
    for i in range(p.shape[0]):
        source, target = p[i], bins[i]
        for j in range(source.size):
            value = source[j]
            wrong += np.int64(not value >= 0.0) + np.int64(not value <= 1.0)
            target[j] = min(np.int32((value - TOLERANCE) * scale), top)
    return wrong


@kernel
def fill_bins(p, padded, first, bins):
    """The same for any thresholds of which no two fall into one of the equal parts of [0, 1].

    Parameters
    ----------
    p : (n_records, n_nodes)
    padded : (n_alphas + 1,)
        The alphas plus the tolerance, then inf.
    first : (2 * n_parts,)
        How many of them are below each part; past 1 to keep wrong values inside the table.
    bins : (n_records, n_nodes)
        Filled.
    """
    wrong = 0
    parts = first.size // 2
    mask = np.uint16(first.size - 1)
    width = 1024
    part, edge = np.empty(width, np.uint16), np.empty(width)
    for i in range(p.shape[0]):
        for start in range(0, p.shape[1], width):
            count = min(width, p.shape[1] - start)
            source, target = p[i, start : start + count], bins[i, start : start + count]
            for j in range(count):
                part[j] = np.uint16(np.int32(source[j] * parts)) & mask
            for j in range(count):
                k = first[part[j]]
                edge[j] = padded[k]
                target[j] = k
            # Apart from the look-up above, each loop is simple enough to take several cells an instruction.
            for j in range(count):
                target[j] += np.uint8(source[j] > edge[j])
            bad = 0
            for j in range(count):
                bad += np.int64(not source[j] >= 0.0) + np.int64(not source[j] <= 1.0)
            wrong += bad
    return wrong


@kernel
def fill_bins_by_search(p, padded, bins):
    """The same by bisection, for any thresholds."""
    wrong = 0
    edges = padded[:-1]
    for i in range(p.shape[0]):
        for j in range(p.shape[1]):
            wrong += not 0.0 <= p[i, j] <= 1.0
            bins[i, j] = _count_below(edges, p[i, j])
    return wrong


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
