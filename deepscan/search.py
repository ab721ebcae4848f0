"""Group scan: the subset of records and nodes whose p-values are jointly the most surprising.

References
----------
McFowland, Speakman and Neill (2013), *Fast generalized subset scan for anomalous pattern detection*, JMLR 14;
Cintas et al. (2020), *Detecting adversarial attacks via subset scanning of autoencoder activations*, IJCAI.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Integer, Shaped

from deepscan.checks import as_generator, check_groups, check_integer, check_matrix
from deepscan.pvalues import PValues
from deepscan.scores import ScoreFunction, ScoreName, score_kind
from deepscan.thresholds import Alphas, bin_pvalues, exact_alphas, given_alphas


@dataclass(frozen=True)
class ScanResult:
    """A highest-scoring subset.

    Attributes
    ----------
    score : float
        0 where no subset scores above 0; the subset is then empty.
    alpha : float
        The threshold at which it scores; NaN where the subset is empty.
    records, nodes : sorted int arrays
    """

    score: float
    alpha: float
    records: Integer[np.ndarray, " selected_records"]
    nodes: Integer[np.ndarray, " selected_nodes"]


def upper_pvalues(p: PValues | np.ndarray) -> np.ndarray:
    """Matrix of the upper p-values, checked."""
    return check_matrix(p.upper if isinstance(p, PValues) else p, "p")


def check_size(low: int, high: int | None, available: int, what: str) -> tuple[int, int]:
    """Bounds on the number of selected elements of an axis."""
    low = check_integer(low, f"min_{what}", minimum=1)
    high = available if high is None else min(available, check_integer(high, f"max_{what}", minimum=1))
    if low > high:
        raise ValueError(f"min_{what} is {low}, but at most {high} {what} can be selected; lower it")
    return low, high


def scan(
    p: PValues | Float[np.ndarray, "records nodes"],
    *,
    score: ScoreName | ScoreFunction = "bj",
    alpha_max: float = 0.5,
    alphas: Alphas = 50,
    restarts: int = 2,
    groups: Shaped[np.ndarray, " records"] | Sequence | None = None,
    min_records: int = 1,
    max_records: int | None = None,
    min_nodes: int = 1,
    max_nodes: int | None = None,
    rng: int | np.random.Generator = 0,
) -> ScanResult:
    """Search for the subset of records and nodes with the highest score, over all thresholds.

    Alternates between the best nodes for fixed records and the best records for fixed nodes (each exact, by the LTSS
    property) until the score no longer rises. The result is a local optimum; restarts help.

    Parameters
    ----------
    p : PValues or (n_records, n_nodes) array
        P-values; of ranges, the upper ends.
    score : "bj" | "hc" | "ks" | callable
        Berk-Jones, Higher Criticism, Kolmogorov-Smirnov, or a function ``(n_alpha, n, alpha) -> scores`` of arrays.
        For a function without the LTSS property the search is a heuristic.
    alpha_max : float
        Largest threshold, in (0, 1).
    alphas : int | array | "exact"
        Number of thresholds of an even grid up to ``alpha_max``; the thresholds; or every distinct p-value up to
        ``alpha_max``. A p-value counts as small where ``p <= alpha + 1e-12``.
    restarts : int
        Ascents: the first from all records, the second from all nodes, later ones from random subsets of whichever
        are fewer, records or nodes.
    groups : (n_records,), optional
        Labels of the records: only subsets whose records share one label are allowed. ``restarts`` then counts per
        group.
    min_records, max_records, min_nodes, max_nodes : int, optional
        Bounds on the size of the subset. Where a bound cuts through equally good elements, the first are taken.
    rng : int or Generator
        Source of the random starts.

    Returns
    -------
    ScanResult

    Raises
    ------
    ValueError
        P-values outside [0, 1] or NaN, thresholds outside (0, 1), an unknown score, bounds that nothing satisfies.
    """
    from deepscan.ascent import Bounds, Landscape, climb_all, draw_starts

    p = upper_pvalues(p)
    n_records, n_nodes = p.shape
    score_kind(score)
    restarts = check_integer(restarts, "restarts", minimum=1)
    if not isinstance(rng, np.random.Generator):
        rng = check_integer(rng, "rng", minimum=0)
    # Two restarts draw nothing; making a generator would take a tenth of a small scan.
    generator = as_generator(rng) if restarts > 2 else None
    nodes_low, nodes_high = check_size(min_nodes, max_nodes, n_nodes, "nodes")
    records_low, records_high = check_size(min_records, max_records, n_records, "records")
    grid = given_alphas(alphas, alpha_max)
    if grid is None:
        grid = exact_alphas(p, alpha_max)
    if grid.size == 0:
        return ScanResult(0.0, float("nan"), np.empty(0, np.int64), np.empty(0, np.int64))
    bins = bin_pvalues(p, grid)
    if groups is None:
        parts = [np.arange(n_records)]
    else:
        labels = check_groups(groups, "groups", n_records=n_records)
        parts = [rows for rows in (np.flatnonzero(labels == g) for g in np.unique(labels)) if rows.size >= records_low]
        if not parts:
            raise ValueError(f"min_records is {records_low}, but no group has as many records; lower it")
    best = ScanResult(0.0, float("nan"), np.empty(0, np.int64), np.empty(0, np.int64))
    for rows in parts:
        bounds = Bounds(records_low, min(records_high, rows.size), nodes_low, nodes_high)
        part = bins if groups is None else bins[rows]
        found = climb_all(Landscape(part, grid, score, bounds), draw_starts(rows.size, n_nodes, restarts, generator))
        if found.score > best.score:
            best = ScanResult(float(found.score), float(grid[found.k]), rows[found.records], found.nodes)
    return best
