"""Kernels that find the index of each p-value among the thresholds."""

import numpy as np

from deepscan.kernels import kernel
from deepscan.tail_kernels import count_below

TOLERANCE = 1e-12
PARTS = 4096
# Bits of the place of a value within a part, in units of 2**-52.
PART_BITS = 40


@kernel
def even_width(alphas):
    """Distance of the thresholds where all but the last are evenly spaced, from at most twice that on; else 0."""
    spaces = alphas.size - 2
    width = (alphas[spaces] - alphas[0]) / spaces if spaces > 0 else 1.0
    if width < 1e-8 or alphas[0] > 2.0 * width:
        return 0.0
    for k in range(spaces):
        if abs(alphas[k] - alphas[0] - k * width) > 1e-15:
            return 0.0
    return width


@kernel
def fill_even_bins(p, first, width, last, n_alphas, bins):
    """Index of the smallest of the thresholds ``first, first + width, ..., last`` with p <= alpha + TOLERANCE.

    The width is that of :func:`even_width`. Returns how many values are no probabilities; their bins mean nothing. The
    loop has no table and no branch, so that it takes several cells an instruction.
    """
    wrong = 0
    scale = 1.0 / width
    before, edge = first + TOLERANCE - width, last + TOLERANCE
    none = np.float64(n_alphas)
    for i in range(p.shape[0]):
        source, target = p[i], bins[i]
        for j in range(source.size):
            value = source[j]
            wrong += np.int64(not value >= 0.0) + np.int64(not value <= 1.0)
            place = min((value - before) * scale, none - 1.0)
            target[j] = np.int32(place if value <= edge else none)
    return wrong


@kernel
def fill_bins(p, edges, starts, words, bins):
    """The same for any thresholds.

    Parameters
    ----------
    p : (n_records, n_nodes)
    edges : (n_alphas,)
        The thresholds plus the tolerance.
    starts : (2 * PARTS + 1,)
        How many of them are below each of the equal parts of [0, 1]; past 1 to keep wrong values inside the table.
    words : (2 * PARTS,) uint64
        For each part what, added to the place of a value in the part in units of 2**-52, carries into the index in the
        bits from ``PART_BITS`` on; the highest bit alone where that cannot be, as the part has several thresholds.
    bins : (n_records, n_nodes)
        Filled.
    """
    wrong = 0
    shift, top = np.uint64(PART_BITS), np.uint64(63)
    last, within = np.uint64(words.size - 1), np.uint64((1 << PART_BITS) - 1)
    width = 512
    part, place = np.empty(width, np.uint16), np.empty(width, np.uint64)
    for i in range(p.shape[0]):
        for start in range(0, p.shape[1], width):
            count = min(width, p.shape[1] - start)
            source, target = p[i, start : start + count], bins[i, start : start + count]
            # Apart from the look-up, each loop is simple enough to take several cells an instruction.
            for j in range(count):
                units = np.uint64(np.int64(source[j] * 2.0**52))
                part[j] = np.uint16((units >> shift) & last)
                place[j] = units & within
                wrong += np.int64(not source[j] >= 0.0) + np.int64(not source[j] <= 1.0)
            flags = np.uint64(0)
            for j in range(count):
                word = words[part[j]]
                flags |= word
                place[j] += word
            for j in range(count):
                target[j] = place[j] >> shift
            if flags >> top == 0:
                continue
            for j in range(count):
                if words[part[j]] >> top:
                    begin, end = starts[part[j]], starts[part[j] + np.uint16(1)]
                    target[j] = begin + (count_below(edges[begin:end], source[j]) if end > begin else 0)
    return wrong
