"""Individual scan: the exact best set of nodes of every record by itself."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float

from deepscan.checks import check_probabilities
from deepscan.pvalues import PValues
from deepscan.scores import ScoreFunction, ScoreName, evaluate, score_kind
from deepscan.search import ScanResult, upper_pvalues
from deepscan.thresholds import TOLERANCE, given_alphas


def scan_individual(
    p: PValues | Float[np.ndarray, "records nodes"],
    *,
    score: ScoreName | ScoreFunction = "bj",
    alpha_max: float = 0.5,
) -> list[ScanResult]:
    """Best nodes of each record, scanned alone; exact, with every distinct p-value as a threshold.

    For one record the best set at a threshold is all the nodes with p-values up to it, so sorting the p-values lists
    every set worth scoring: O(J log J) a record. The records are scanned in parallel.

    Parameters
    ----------
    p : PValues or (n_records, n_nodes) array
        P-values; of ranges, the upper ends.
    score : "bj" | "hc" | "ks" | callable
        As for :func:`deepscan.scan`.
    alpha_max : float
        Largest threshold, in (0, 1).

    Returns
    -------
    list of ScanResult
        One a record, in order; ``records`` holds its index. A record without a p-value up to ``alpha_max`` has
        score 0, alpha NaN and no records or nodes.

    Raises
    ------
    ValueError
        P-values outside [0, 1] or NaN, ``alpha_max`` outside (0, 1), an unknown score.
    """
    from deepscan.singles import best_prefixes, list_prefixes

    p = upper_pvalues(p)
    check_probabilities(p, "p")
    kind = score_kind(score)
    given_alphas("exact", alpha_max)
    empty = np.empty(0, np.int64)
    if callable(score):
        scores, alphas = np.zeros(p.shape[0]), np.full(p.shape[0], np.nan)
        for i in range(p.shape[0]):
            sizes, levels = list_prefixes(np.ascontiguousarray(p[i]), alpha_max)
            if sizes.size:
                values = evaluate(score, sizes, sizes, levels)
                c = int(np.argmax(values))
                if values[c] > 0.0:
                    scores[i], alphas[i] = values[c], levels[c]
    else:
        # Threads and not a parallel kernel: numba's fallback threading layer aborts when two threads enter one.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            parts = np.array_split(p, min(p.shape[0], 4 * (os.cpu_count() or 1)))
            found = list(pool.map(lambda part: best_prefixes(kind, part, alpha_max), parts))
        scores, alphas = (np.concatenate(values) for values in zip(*found, strict=True))
    return [
        ScanResult(float(s), float(a), np.array([i]), np.flatnonzero(p[i] <= a + TOLERANCE))
        if s > 0.0
        else ScanResult(0.0, float("nan"), empty, empty)
        for i, (s, a) in enumerate(zip(scores, alphas, strict=True))
    ]
