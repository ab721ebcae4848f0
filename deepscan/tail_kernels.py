"""Kernels that look values up in ascending rows, and so count how many background values lie beyond each activation."""

import numpy as np

from deepscan.kernels import kernel

# Nodes and rows that are worked on together, so that what they read and write stays in the cache.
_NODES = 64
_ROWS = 512
_NEAR = 4


@kernel
def _part_of(value, half_low, scale, last):
    """Which of equal parts of a node's range a value is in; never decreases with the value.

    Halves, for the difference of two large numbers may overflow.
    """
    return np.uint32(min(max((0.5 * value - half_low) * scale, 0.0), last))


@kernel
def _cut_row(row, n, n_parts, starts):
    """Fill in how many of a node's n ascending values lie before each part of their range; return its low and scale."""
    half_low = 0.5 * np.float64(row[0])
    half_span = 0.5 * np.float64(row[n - 1]) - half_low
    scale = n_parts / half_span if half_span > 1e-300 else 0.0
    last = np.float64(n_parts - 1)
    starts[:] = 0
    for i in range(n):
        starts[_part_of(row[i], half_low, scale, last) + np.uint32(1)] += np.uint32(1)
    total = np.uint32(0)
    for part in range(n_parts + 1):
        total += starts[part]
        starts[part] = total
    return half_low, scale


@kernel
def _fill_ranks(row, starts, part, values, with_ties, ranks):
    """How many entries of a row are smaller than each value, or at most as large, given the part each value is in."""
    most = np.uint32(0)
    for r in range(values.size):
        begin, value = starts[part[r]], values[r]
        most = max(most, starts[part[r] + np.uint32(1)] - begin)
        rank = begin
        # Always four, without a branch; those beyond the part are larger and do not count.
        if with_ties:
            for i in range(_NEAR):
                rank += np.uint32(row[begin + np.uint32(i)] <= value)
        else:
            for i in range(_NEAR):
                rank += np.uint32(row[begin + np.uint32(i)] < value)
        ranks[r] = rank
    if most <= _NEAR:
        return
    for r in range(values.size):
        begin, end = starts[part[r]], starts[part[r] + np.uint32(1)]
        if end - begin > np.uint32(_NEAR):
            within = count_upto(row[begin:end], values[r]) if with_ties else count_below(row[begin:end], values[r])
            ranks[r] = begin + np.uint32(within)


@kernel
def fill_tails(by_node, x, x_offset, x_rows, out_rows, tail, with_ties, table, out, offset):
    """Entry of a table for the number of background values that are more extreme; tail 0 right, 1 left, 2 the smaller.

    The background of a node is cut into equal parts of its range, so that only the few values in the part of the value
    under test need comparing.

    Parameters
    ----------
    by_node : (n_nodes, n)
        Background of the nodes ``offset ...``, ascending.
    x, x_offset, x_rows
        Values under test, the column of the first of these nodes in them, and the rows wanted.
    with_ties : bool
        Whether values as extreme count.
    table : (n + 1,)
    out, out_rows
        Filled at these rows.
    """
    n_nodes, n = by_node.shape
    size = np.uint32(n)
    n_parts = 2 * n
    last = np.float64(n_parts - 1)
    starts = np.empty(n_parts + 1, np.uint32)
    # Past its end the row goes on with inf, which is more than any value.
    row = np.empty(n + _NEAR, by_node.dtype)
    row[n:] = np.inf
    most = min(_ROWS, x_rows.size)
    columns, block = np.empty((_NODES, most), x.dtype), np.empty((most, _NODES), out.dtype)
    part, below, upto = np.empty(most, np.uint32), np.empty(most, np.uint32), np.empty(most, np.uint32)
    for top in range(0, x_rows.size, _ROWS):
        rows = min(_ROWS, x_rows.size - top)
        for first in range(0, n_nodes, _NODES):
            nodes = min(_NODES, n_nodes - first)
            for r in range(rows):
                source = x[x_rows[top + r], x_offset + first : x_offset + first + nodes]
                for q in range(nodes):
                    columns[q, r] = source[q]
            for q in range(nodes):
                values = columns[q, :rows]
                row[:n] = by_node[first + q]
                half_low, scale = _cut_row(row, n, n_parts, starts)
                for r in range(rows):
                    part[r] = _part_of(values[r], half_low, scale, last)
                # Beyond on the right are those that are not below, or not up to, the value.
                if tail != 1:
                    _fill_ranks(row, starts, part, values, not with_ties, below)
                if tail != 0:
                    _fill_ranks(row, starts, part, values, with_ties, upto)
                for r in range(rows):
                    if tail == 0:
                        beyond = size - below[r]
                    elif tail == 1:
                        beyond = upto[r]
                    else:
                        beyond = min(size - below[r], upto[r])
                    block[r, q] = table[beyond]
            for r in range(rows):
                source, target = block[r], out[out_rows[top + r], offset + first : offset + first + nodes]
                for q in range(nodes):
                    target[q] = source[q]


@kernel
def count_below(row, value):
    """How many entries of an ascending row are smaller than the value."""
    # Unsigned, for no index can be negative; a product and not a branch, for the comparison cannot be predicted.
    base, length, one = np.uint64(0), np.uint64(row.size), np.uint64(1)
    while length > one:
        half = length >> one
        base += half * np.uint64(row[base + half - one] < value)
        length -= half
    return np.int64(base + np.uint64(row[base] < value))


@kernel
def count_upto(row, value):
    """How many entries of an ascending row are at most the value."""
    low, high = 0, row.size
    while low < high:
        middle = (low + high) // 2
        if row[middle] <= value:
            low = middle + 1
        else:
            high = middle
    return low
