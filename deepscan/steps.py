"""Kernels of one step of the group search with few thresholds: count, list the candidates, score, select."""

import numpy as np

from deepscan.candidates import best_candidate, list_records, list_tallied
from deepscan.counting import count_records, select_nodes, select_top, tally_nodes
from deepscan.kernels import kernel


@kernel
def best_nodes(kind, bins, records, network, alphas, low, high):
    """Highest score, its threshold index and its nodes, the records being fixed; nothing where no score is above 0."""
    n_alpha, n, k, size, cut, count = list_tallied(
        tally_nodes(bins, records, network, alphas.size), bins.shape[1], alphas, low, high, True
    )
    score, c = best_candidate(kind, n_alpha, n, k, alphas, count)
    if c < 0:
        return 0.0, -1, np.empty(0, np.int64)
    return score, k[c], select_nodes(bins, records, k[c], cut[c], size[c])


@kernel
def best_records(kind, bins, nodes, network, alphas, low, high):
    """Highest score, its threshold index and its records, the nodes being fixed; nothing where no score is above 0."""
    counts = count_records(bins, nodes, alphas.size)
    n_alpha, n, k, size, cut, count = list_records(counts, network, nodes.size, alphas, low, high, True)
    score, c = best_candidate(kind, n_alpha, n, k, alphas, count)
    if c < 0:
        return 0.0, -1, np.empty(0, np.int64)
    return score, k[c], select_top(counts[:, k[c]], cut[c], size[c])
