"""Whether scans of other statements find the same nodes: node sets of disjoint halves of a persona's pairs."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from joblib import Parallel, delayed
from scipy.stats import false_discovery_control
from tqdm.auto import tqdm

from deepscan import Labels, detect, label_records, permute_labels
from utils.nodes.scans import MIN_BACKGROUND
from utils.nodes.selectors import select_nodes
from utils.nodes.sets import NodeSet, compare_sets, top_nodes
from utils.options import SelectorName
from utils.statements.contrasts import Contrast

# In a half: the fewest statements to scan a side, and the usual number.
_MIN_SCANNED = 5
_SCANNED = 15

Half = tuple[np.ndarray, np.ndarray]


def node_stability(
    values: Float[np.ndarray, "statements nodes"],
    contrasts: Sequence[Contrast],
    *,
    method: SelectorName | Literal["scan"] = "scan",
    size: int | Mapping[str, int] = 20,
    n_splits: int = 5,
    n_flips: int = 99,
    n_runs: int = 20,
    rng: int | np.random.Generator = 0,
    n_jobs: int = 1,
    progress: bool = True,
    **options: Any,
) -> pd.DataFrame:
    """Compare the nodes that two disjoint halves of each persona's pairs give.

    The pairs (statements of each side where there are none) are halved at random, ``n_splits`` times; either half is
    scanned, and its set is the ``size`` nodes that most of its runs selected, ties drawn at random. Each flip swaps the
    sides of random pairs of the whole (permutes the labels where there are no pairs) and repeats everything with the
    same splits: splits of the same statements are not independent of each other, and no test of one split is a test of
    all.

    A half has half the statements, and what is found on it is less stable than what is found on all of them: where there
    is an effect, the numbers are a lower bound for the persona's own node set. They also hold the chance of the runs:
    a few runs of the very same statements, drawn with another seed, rank the nodes differently, too.

    Parameters
    ----------
    values
        Activations at one layer.
    contrasts
        What to scan, by default with 15 clean and 15 anomalous records a run; fewer where a half would not leave 10
        for the background.
    method
        ``scan``, or a method of :func:`utils.nodes.select_nodes` in its place, for comparison.
    size
        Nodes of a set, or by persona, such as the sizes of the node sets of the whole.
    n_splits, n_flips, n_runs
        Halvings, flips of the sides, and runs of a scan. In all ``2 * n_splits * n_runs * (1 + n_flips)`` runs a persona:
        with the defaults and 576 nodes about 11 seconds of one core.
    n_jobs
        Threads; the result does not depend on it.
    **options
        Further options of :func:`deepscan.detect`.

    Returns
    -------
    DataFrame
        One row a persona: ``persona, size, n_h0, n_h1`` (statements in the smaller half), ``jaccard`` over (node, sign),
        the mean over splits; ``low, median, high``, the lowest, middle and highest split (their spread, not a
        confidence interval: splits share statements); ``expected_jaccard`` and ``null_high``, mean and 95th percentile
        of ``jaccard`` under flips; ``p_value`` (``(1 + #{flipped >= observed}) / (1 + n_flips)``) and ``p_adjusted``
        (Benjamini–Hochberg over the personas). Of sets of size 0 ratios are NaN and the p-value is 1.

    Raises
    ------
    ValueError
        Too few statements for two halves, no size of a persona, and whatever :func:`deepscan.detect` refuses.
    """
    for name, count in {"n_splits": n_splits, "n_flips": n_flips}.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, not {count}.")
    sizes = {each.persona: _size_of(each.persona, size) for each in contrasts}
    seed = int(rng.integers(2**63)) if isinstance(rng, np.random.Generator) else rng
    halves, tasks = {}, []
    for contrast in contrasts:
        labels = label_records(len(contrast.h0), len(contrast.h1), _pairs(len(contrast.h0), contrast.paired))
        halves[contrast.persona] = _draw_halves(labels, n_splits, seed)
        scan = {**options, "n_runs": n_runs}
        if method == "scan" and not {"n_clean", "n_anomalous"} <= {*options}:
            scan = _sample_sizes(contrast, halves[contrast.persona][0][0]) | scan
        records = values[contrast.rows]
        for each in [labels, *(permute_labels(labels, seed, k) for k in range(n_flips))]:
            tasks.append((records, each, halves[contrast.persona], method, sizes[contrast.persona], seed, scan))
    calls = (delayed(_measure_splits)(*task) for task in tasks)
    done = Parallel(n_jobs=n_jobs, prefer="threads", return_as="generator")(calls)
    found = np.array(list(tqdm(done, total=len(tasks), desc="scanning", disable=not progress)))
    rows = []
    for contrast, splits in zip(contrasts, found.reshape(len(contrasts), 1 + n_flips, n_splits), strict=True):
        h0, h1 = halves[contrast.persona][0][0]
        row = {"persona": contrast.persona, "size": sizes[contrast.persona], "n_h0": len(h0), "n_h1": len(h1)}
        rows.append(row | _describe(splits))
    table = pd.DataFrame(rows)
    return table.assign(p_adjusted=false_discovery_control(table["p_value"])) if len(table) else table


def _describe(splits: np.ndarray) -> dict[str, float]:
    """Sum up Jaccard indices, (1 + flips, splits), the true sides first."""
    (observed, *null), (low, median, high) = splits.mean(axis=1), np.quantile(splits[0], [0, 0.5, 1])
    reached = 1.0 if np.isnan(observed) else np.mean(np.array([observed, *null]) >= observed)
    return {
        "jaccard": float(observed),
        "low": float(low),
        "median": float(median),
        "high": float(high),
        "expected_jaccard": float(np.mean(null)),
        "null_high": float(np.quantile(null, 0.95)),
        "p_value": float(reached),
    }


def _measure_splits(
    records: np.ndarray,
    labels: Labels,
    halves: list[tuple[Half, Half]],
    method: SelectorName | Literal["scan"],
    size: int,
    seed: int,
    scan: dict[str, Any],
) -> list[float]:
    """The Jaccard index of the two halves of every split."""
    if not size:
        return [float("nan")] * len(halves)
    found = []
    for split, both in enumerate(halves):
        a, b = (
            _select_half(records, labels, each, method, size, [seed, split, k], scan) for k, each in enumerate(both)
        )
        found.append(compare_sets(a, b)["jaccard"] if a or b else 0.0)
    return found


def _select_half(
    records: np.ndarray,
    labels: Labels,
    half: Half,
    method: SelectorName | Literal["scan"],
    size: int,
    seed: list[int],
    scan: dict[str, Any],
) -> NodeSet:
    h0, h1 = records[labels.h0[half[0]]], records[labels.h1[half[1]]]
    pairs = _pairs(len(h0), labels.paired)
    if method != "scan":
        return select_nodes(h0, h1, method=method, n=size, pairs=pairs, level=1.0)
    generator = np.random.default_rng(seed)
    runs = detect(h0, h1, pairs=pairs, n_permutations=0, rng=generator, **scan)
    frequency = runs.node_frequency()
    # Less than the distance of two frequencies. Ties by number would make any two halves share their low nodes.
    drawn = generator.random(len(frequency)) / (2 * scan["n_runs"])
    return top_nodes(np.where(frequency > 0, frequency + drawn, 0), runs.node_sign(), size)


def _draw_halves(labels: Labels, n_splits: int, seed: int) -> list[tuple[Half, Half]]:
    """Places in the two sides of ``labels``, the smaller half first."""
    generator = np.random.default_rng(seed)
    halves = []
    for _ in range(n_splits):
        order_0 = generator.permutation(len(labels.h0))
        order_1 = order_0 if labels.paired else generator.permutation(len(labels.h1))
        middle = len(order_0) // 2, len(order_1) // 2
        first = order_0[: middle[0]], order_1[: middle[1]]
        halves.append((first, (order_0[middle[0] :], order_1[middle[1] :])))
    return halves


def _sample_sizes(contrast: Contrast, half: Half) -> dict[str, int]:
    n0, n1 = len(half[0]), len(half[1])
    free = n0 - MIN_BACKGROUND
    n_clean, n_anomalous = (free // 2, free // 2) if contrast.paired else (free, n1)
    if min(n_clean, n_anomalous) < _MIN_SCANNED:
        needed = MIN_BACKGROUND + _MIN_SCANNED * (2 if contrast.paired else 1)
        raise ValueError(
            f"a half of persona {contrast.persona!r} has {n0} H0 and {n1} H1 statements; {needed} and "
            f"{needed if contrast.paired else _MIN_SCANNED} are needed: give more statements."
        )
    return {"n_clean": min(n_clean, _SCANNED), "n_anomalous": min(n_anomalous, _SCANNED)}


def _size_of(persona: str, size: int | Mapping[str, int]) -> int:
    if isinstance(size, Mapping) and persona not in size:
        raise ValueError(f"there is no size of the node set of {persona!r}; give one of every persona.")
    number = int(size[persona] if isinstance(size, Mapping) else size)
    if number < 0:
        raise ValueError(f"the size of the node set of {persona!r} is {number}; expected 0 or more nodes.")
    return number


def _pairs(n: int, paired: bool) -> np.ndarray | None:
    return np.arange(n) if paired else None
