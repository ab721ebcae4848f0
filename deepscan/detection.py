"""Test of whether two sets of activations differ: fresh splits, and a permutation p-value."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Shaped

from deepscan.checks import check_activations, check_choice, check_integer
from deepscan.ranks import Ranks, rank_records
from deepscan.relabellings import differences
from deepscan.runs import ScanRuns, make_runs
from deepscan.scores import ScoreFunction, ScoreName, score_kind, score_name
from deepscan.splits import Labels, Split, draw_splits, label_records, permute_labels, seed_sequence
from deepscan.tails import Tail
from deepscan.thresholds import Alphas, bin_counts, split_alphas
from deepscan.trials import Protocol, ScanKind, Trial, check_samples, describe_alphas, run_parallel, table_row

DetectTail = Literal["auto", "right", "left", "two-sided", "signed"]
Center = Literal["auto", "pairs"] | None


def detect(
    h0: Shaped[np.ndarray, "h0 nodes"],
    h1: Shaped[np.ndarray, "h1 nodes"],
    *,
    pairs: Shaped[np.ndarray, " records"] | Sequence | None = None,
    n_background: int | None = None,
    n_clean: int = 15,
    n_anomalous: int = 15,
    n_runs: int = 100,
    n_permutations: int = 99,
    center: Center = "auto",
    tail: DetectTail = "auto",
    score: ScoreName | ScoreFunction = "bj",
    alpha_max: float = 0.5,
    alphas: Alphas = 50,
    restarts: int = 2,
    scan: ScanKind = "group",
    rng: int | np.random.Generator = 0,
    n_jobs: int = 1,
    progress: bool | str = False,
) -> ScanRuns:
    """Test whether two sets of activations differ, with fresh splits and a permutation p-value.

    Every run draws distinct pairs for its clean records (from ``h0``), its anomalous records (from ``h1``) and its
    background (from ``h0``), so background and scanned records never share a pair. The statistic is the mean score of
    the mixed runs. A permutation flips the sides within random pairs, over all records (without pairs: permutes the
    labels), and repeats everything with the same splits; the p-value is
    ``(1 + #{permuted >= observed}) / (1 + n_permutations)``, valid for any data and score.

    Partners in a pair share a subject, which moves a node more than the side does. With pairs, a record is therefore
    scanned as its activations minus the mean of its pair, ``(x0 - x1) / 2`` or ``(x1 - x0) / 2``: the mean stays where it is
    when the sides are flipped, so that the test stays exact. Precision and recall are then *given the partner*.

    Parameters
    ----------
    h0, h1 : (n, n_nodes) float16, float32 or float64
        Activations under H0 and under the alternative.
    pairs : optional
        Labels of the pairs: of the rows, where ``h0`` and ``h1`` are aligned row by row, or of all records of
        ``[h0; h1]``. Every pair needs one record on each side.
    n_background : int, optional
        Background records of a run; by default every pair (without pairs: every ``h0`` record) left over after the
        scanned ones.
    n_clean, n_anomalous : int
        Scanned records of a run.
    n_runs, n_permutations : int
        Runs of each labelling, and permuted labellings.
    center : "auto" | "pairs" | None
        ``"pairs"`` subtracts the mean of the pair, ``None`` scans activations as they are; ``"auto"`` is ``"pairs"`` where
        there are pairs. All ranks are taken once, over all records.
    tail : "auto" | "right" | "left" | "two-sided" | "signed"
        ``"signed"`` is the right tail over ``[x, -x]``, two columns a node, so that a node is high, or low, in all the
        records of a run; under ``"two-sided"`` it may be high in some and low in others. ``"auto"`` is ``"two-sided"`` with
        pairs and ``"signed"`` without. Nodes that come back are numbered 0 ... n_nodes - 1 in any case. A run that
        selected both columns of a node holds the node once, with the side whose p-values are the smaller ones over the
        selected records (sums of the indices of their thresholds).
    score, alpha_max, alphas, restarts
        As for :func:`deepscan.scan` and :meth:`deepscan.Background.pvalues`; ``"exact"`` takes every p-value that the
        size of the background allows.
    scan : "group" | "individual"
        ``"individual"`` scans each record of a run by itself, exactly: ``records`` are then the ``n_anomalous`` with
        the highest scores (ties: the first), ``nodes`` those that at least half of these selected, ``score`` the mean
        score of the anomalous minus that of the clean records, ``alpha`` NaN.
    rng : int or Generator
        The flips of a permutation depend on the seed, its number and the sorted pair labels alone: with the same seed
        and pairs, permutation k of two calls is the same relabelling. Every run has its own spawned seed.
    n_jobs : int
        Workers of joblib, threads unless the caller chose another backend. The result does not depend on it.
    progress : bool or str
        Show a progress bar over the permutations; a text is its name.

    Returns
    -------
    ScanRuns
        The "null" rows are the runs of the permutations. ``records`` are indices into ``[h0; h1]``, also of null
        rows, whose labels are permuted. ``signs`` are the sides of the selected columns under ``"signed"``, else of most of
        the selected records. They are never 0: ties are broken by mean ranks against the background, and else +1. The
        ``config`` tells what ``"auto"`` became.

    Raises
    ------
    ValueError
        Different numbers of nodes, NaN or inf, incomplete pairs, no pairs to centre on, samples larger than their pool,
        and whatever :func:`deepscan.scan` refuses.
    """
    h0 = check_activations(h0, "h0")
    h1 = check_activations(h1, "h1")
    if h1.shape[1] != h0.shape[1]:
        raise ValueError(f"h1 has {h1.shape[1]} nodes and h0 {h0.shape[1]}; expected the same nodes in both")
    check_choice(tail, "tail", DetectTail)
    center = _resolve_center(center, paired=pairs is not None)
    if tail == "auto":
        tail = "signed" if pairs is None else "two-sided"
    one_sided: Tail = "right" if tail == "signed" else tail
    n_clean, n_anomalous = check_samples(n_clean, n_anomalous, scan)
    n_runs = check_integer(n_runs, "n_runs", minimum=1)
    n_permutations = check_integer(n_permutations, "n_permutations", minimum=0)
    restarts = check_integer(restarts, "restarts", minimum=1)
    score_kind(score)
    labels = label_records(h0.shape[0], h1.shape[0], pairs)
    n_background = labels.background_size(n_clean, n_anomalous, n_background)
    grid = split_alphas("exact" if scan == "individual" else alphas, alpha_max, n_background, one_sided)
    entropy = seed_sequence(rng)
    protocol = Protocol(scan, score, grid, restarts, n_clean, n_anomalous)
    ranks = rank_records(*(center_pairs(h0, h1, labels) if center else (h0, h1)))
    splits = draw_splits(labels, n_clean, n_anomalous, n_background, n_runs, entropy)
    bin_of_count = bin_counts(grid, n_background, one_sided)
    relabelled = [labels, *(permute_labels(labels, entropy, k) for k in range(n_permutations))]
    found = run_parallel(
        _scan_splits,
        [(ranks, each, splits, bin_of_count, tail, protocol) for each in relabelled],
        n_jobs=n_jobs,
        progress=progress,
    )
    rows, nodes, records, signs = [], [], [], []
    for permutation, part in enumerate(found, start=-1):
        kind = "mixed" if permutation < 0 else "null"
        for run, (trial, chosen, side) in enumerate(part):
            rows.append(table_row(trial, run, n_clean, n_anomalous, kind=kind, permutation=permutation))
            nodes.append(trial.nodes)
            records.append(chosen)
            signs.append(side)
    means = np.array([row["score"] for row in rows]).reshape(1 + n_permutations, n_runs).mean(axis=1)
    config = {
        "experiment": "detect",
        "paired": pairs is not None,
        "n_background": n_background,
        "n_clean": n_clean,
        "n_anomalous": n_anomalous,
        "n_runs": n_runs,
        "n_permutations": n_permutations,
        "center": center,
        "tail": tail,
        "score": score_name(score),
        "alpha_max": float(alpha_max),
        "alphas": describe_alphas(alphas),
        "restarts": restarts,
        "scan": scan,
        "n_nodes": h0.shape[1],
        "sizes": [h0.shape[0], h1.shape[0]],
        "seed": entropy,
    }
    p_value = float((1 + np.sum(means[1:] >= means[0])) / (1 + n_permutations))
    return make_runs(rows, nodes, records, signs, config=config, p_value=p_value)


def center_pairs(h0: np.ndarray, h1: np.ndarray, labels: Labels) -> tuple[np.ndarray, np.ndarray]:
    """Both sides minus the mean of their pair, in float64; partners are each other's negative to the last bit."""
    half = differences(h0, h1, labels) / 2.0
    centred = np.empty((2, *half.shape))
    centred[0, labels.h0] = -half
    centred[1, labels.h1 - len(h0)] = half
    return centred[0], centred[1]


def _resolve_center(center: Center, *, paired: bool) -> Literal["pairs"] | None:
    if center not in ("auto", "pairs", None):
        raise ValueError(f"center is {center!r}; expected 'auto', 'pairs' or None")
    if center == "pairs" and not paired:
        raise ValueError("center is 'pairs' and there are none; give pairs=, or center=None")
    return "pairs" if paired and center is not None else None


def _scan_splits(
    ranks: Ranks, labels: Labels, splits: list[Split], bin_of_count: np.ndarray, tail: DetectTail, protocol: Protocol
) -> list[tuple[Trial, np.ndarray, np.ndarray]]:
    """Runs of :func:`detect` under one labelling: what each found, its records in ``[h0; h1]``, its signs."""
    found = []
    tails: tuple[Tail, ...] = ("right", "left") if tail == "signed" else (tail,)  # type: ignore[assignment]
    for split in splits:
        background = labels.h0[split.background]
        scanned = np.concatenate([labels.h0[split.clean], labels.h1[split.anomalous]])
        # The right tail of -x is the left tail of x.
        bins = np.hstack([ranks.bins(background, scanned, bin_of_count, each) for each in tails])
        trial = protocol.run(bins, split.seed)
        records = scanned[trial.records]
        if tail == "signed":
            nodes, signs = _fold_columns(trial.nodes, bins[trial.records])
            trial = trial._replace(nodes=nodes)
        else:
            signs = ranks.signs(background, records, trial.nodes)
        undecided = signs == 0
        if undecided.any():
            signs[undecided] = ranks.mean_sides(background, records, trial.nodes[undecided])
            signs[signs == 0] = 1
        found.append((trial, np.sort(records), signs))
    return found


def _fold_columns(columns: np.ndarray, bins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and signs of the chosen columns of ``[x, -x]``; bins are those of the selected records."""
    n_nodes = bins.shape[1] // 2
    nodes = np.unique(columns % n_nodes)
    chosen = np.isin(nodes, columns), np.isin(nodes + n_nodes, columns)
    total = bins.sum(axis=0, dtype=np.int64)
    stronger = np.sign(total[nodes + n_nodes] - total[nodes])
    signs = np.where(chosen[0] & chosen[1], stronger, np.where(chosen[0], 1, -1))
    return nodes, signs.astype(np.int8)
