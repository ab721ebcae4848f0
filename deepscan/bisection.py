"""Kernels that look up a value in an ascending row."""

import numpy as np

from deepscan.kernels import kernel


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
