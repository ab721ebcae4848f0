"""Kernels of the individual scan."""

import numpy as np

from deepscan.candidates import phi
from deepscan.kernels import kernel

TOLERANCE = 1e-12


@kernel
def list_prefixes(row, alpha_max):
    """Sizes and thresholds of every set of nodes worth scoring, for the p-values of one record."""
    small = row[row <= alpha_max + TOLERANCE].astype(np.float64)
    small.sort()
    sizes, levels = np.empty(small.size, np.int64), np.empty(small.size, np.float64)
    at = end = 0
    for q in range(small.size):
        # The p-values within the tolerance of 0 cannot be told apart; the threshold that holds them is the tolerance.
        level = max(small[q], TOLERANCE)
        if at > 0 and level == levels[at - 1]:
            continue
        while end < small.size and small[end] <= level + TOLERANCE:
            end += 1
        sizes[at], levels[at] = end, level
        at += 1
    return sizes[:at], levels[:at]


@kernel
def best_prefix(kind, row, alpha_max):
    """Highest score and its threshold for one record; 0 and NaN where there is none."""
    sizes, levels = list_prefixes(row, alpha_max)
    best, alpha = 0.0, np.nan
    for c in range(sizes.size):
        score = phi(kind, sizes[c], sizes[c], levels[c])
        if score > best:
            best, alpha = score, levels[c]
    return best, alpha


@kernel
def best_prefixes(kind, p, alpha_max):
    """The same for every record."""
    n_records = p.shape[0]
    scores, alphas = np.empty(n_records), np.empty(n_records)
    for i in range(n_records):
        scores[i], alphas[i] = best_prefix(kind, p[i], alpha_max)
    return scores, alphas


@kernel
def best_thresholds(kind, counts, alphas):
    """Highest score and the index of its threshold for every record, from its counts at each threshold."""
    n_records, n_alphas = counts.shape
    scores, where = np.zeros(n_records), np.zeros(n_records, np.int64)
    for i in range(n_records):
        for a in range(n_alphas):
            score = phi(kind, counts[i, a], counts[i, a], alphas[a])
            if score > scores[i]:
                scores[i], where[i] = score, a
    return scores, where


@kernel
def count_selections(bins, records, k):
    """By how many of the records, each at its own threshold, every node is selected."""
    counts = np.zeros(bins.shape[1], np.int64)
    for r in range(records.size):
        row = bins[records[r]]
        for j in range(row.size):
            counts[j] += np.int64(row[j]) <= k[r]
    return counts
