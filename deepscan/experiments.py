"""Experiments of many runs: the original's protocol, and a permutation test."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Shaped

from deepscan.checks import check_activations, check_choice, check_integer
from deepscan.pvalues import Background, Tail
from deepscan.ranks import Ranks, rank_records
from deepscan.runs import ScanRuns, make_runs
from deepscan.scores import ScoreFunction, ScoreName, score_kind, score_name
from deepscan.splits import Labels, Split, draw_splits, label_records, permute_labels, seed_sequence
from deepscan.thresholds import Alphas, bin_counts, bin_pvalues, exact_alphas, given_alphas, split_alphas
from deepscan.trials import Protocol, ScanKind, Trial


def run_scans(
    bg: Background,
    clean: Shaped[np.ndarray, "clean nodes"],
    anomalous: Shaped[np.ndarray, "anomalous nodes"],
    *,
    n_clean: int = 25,
    n_anomalous: int = 25,
    n_runs: int = 100,
    n_null_runs: int = 100,
    tail: Tail = "right",
    score: ScoreName | ScoreFunction = "bj",
    alpha_max: float = 0.5,
    alphas: Alphas = 50,
    restarts: int = 2,
    scan: ScanKind = "group",
    clean_groups: Shaped[np.ndarray, " clean"] | Sequence | None = None,
    anomalous_groups: Shaped[np.ndarray, " anomalous"] | Sequence | None = None,
    rng: int | np.random.Generator = 0,
    n_jobs: int = 1,
    progress: bool = False,
) -> ScanRuns:
    """Scan random samples of two pools against one fixed background: the original's protocol, descriptive.

    A mixed run scans ``n_clean`` records of ``clean`` and ``n_anomalous`` of ``anomalous``; a null run scans
    ``n_clean + n_anomalous`` of ``clean``. All runs share the background and overlap, so comparing their scores is no
    test of whether the pools differ: :func:`detect` is.

    Parameters
    ----------
    bg : Background
    clean, anomalous : (n_pool, n_nodes) float16, float32 or float64
        Activations; no record of them should be in the background.
    n_clean, n_anomalous : int
        Records of a run's sample, drawn without replacement.
    n_runs, n_null_runs : int
        Mixed and null runs.
    tail : "right" | "left" | "two-sided"
        Of the p-values. The original's "1tail" is the left one, with lower ends of the ranges.
    score, alpha_max, alphas, restarts
        As for :func:`deepscan.scan`; ``"exact"`` takes every distinct p-value of the pools.
    scan : "group" | "individual"
        As for :func:`detect`; the last ``n_anomalous`` records of a null run stand in for the anomalous ones.
    clean_groups, anomalous_groups : optional
        Labels of the records, where the background has groups.
    rng : int or Generator
        Every run has its own seed spawned from it.
    n_jobs : int
        Workers of joblib, threads unless the caller chose another backend. The result does not depend on it.
    progress : bool
        Show a progress bar.

    Returns
    -------
    ScanRuns
        ``records`` are indices into ``[clean; anomalous]``.

    Raises
    ------
    ValueError
        Samples larger than their pools, null runs that would all be the same sample, and whatever
        :func:`deepscan.scan` and :meth:`deepscan.Background.pvalues` refuse.
    """
    clean = check_activations(clean, "clean", n_nodes=bg.n_nodes)
    anomalous = check_activations(anomalous, "anomalous", n_nodes=bg.n_nodes)
    n_clean, n_anomalous = _check_samples(n_clean, n_anomalous, scan)
    n_runs = check_integer(n_runs, "n_runs", minimum=1)
    n_null_runs = check_integer(n_null_runs, "n_null_runs", minimum=0)
    restarts = check_integer(restarts, "restarts", minimum=1)
    score_kind(score)
    _check_pool(n_clean, "n_clean", clean.shape[0], "clean")
    _check_pool(n_anomalous, "n_anomalous", anomalous.shape[0], "anomalous")
    if n_null_runs:
        _check_pool(n_clean + n_anomalous, "n_clean + n_anomalous", clean.shape[0], "clean (for the null runs)")
    if n_null_runs > 1 and n_clean + n_anomalous == clean.shape[0]:
        raise ValueError(
            f"clean has {clean.shape[0]} records, just the n_clean + n_anomalous of a null run, so that every null run "
            "would be the same sample; give more clean records, smaller samples, or n_null_runs=0"
        )
    grid = given_alphas(alphas, alpha_max)
    pools = [
        bg.pvalues(clean, tail=tail, groups=clean_groups).upper,
        bg.pvalues(anomalous, tail=tail, groups=anomalous_groups).upper,
    ]
    if grid is None or scan == "individual":
        grid = np.unique(np.concatenate([exact_alphas(pool, alpha_max) for pool in pools]))
    bins = np.concatenate([bin_pvalues(pool, grid) for pool in pools])
    del pools
    sides = np.concatenate([bg.sides(clean, groups=clean_groups), bg.sides(anomalous, groups=anomalous_groups)])
    entropy = seed_sequence(rng)
    protocol = Protocol(scan, score, grid, restarts, n_clean, n_anomalous)
    n_pool = clean.shape[0]
    samples, seeds = [], []
    for kind, count in enumerate((n_runs, n_null_runs)):
        for run in range(count):
            seed = np.random.SeedSequence(entropy, spawn_key=(kind, run))
            draw = np.random.default_rng(seed)
            if kind == 0:
                sample = np.concatenate(
                    [
                        draw.permutation(n_pool)[:n_clean],
                        n_pool + draw.permutation(anomalous.shape[0])[:n_anomalous],
                    ]
                )
            else:
                sample = draw.permutation(n_pool)[: n_clean + n_anomalous]
            samples.append(sample)
            seeds.append(seed.spawn(1)[0])
    found = _in_parallel(
        _scan_samples,
        [(bins, sides, samples[part], seeds[part], protocol) for part in _parts(len(samples), n_jobs)],
        n_jobs=n_jobs,
        progress=progress,
    )
    trials = [trial for part in found for trial in part]
    rows = []
    for index, (trial, _) in enumerate(trials):
        mixed = index < n_runs
        run = index if mixed else index - n_runs
        rows.append(_row(trial, run, n_clean, n_anomalous, kind="mixed" if mixed else "null", permutation=-1))
    config = {
        "experiment": "run_scans",
        "n_clean": n_clean,
        "n_anomalous": n_anomalous,
        "n_background": sum(bg.sizes.values()),
        "n_runs": n_runs,
        "n_null_runs": n_null_runs,
        "tail": tail,
        "score": score_name(score),
        "alpha_max": float(alpha_max),
        "alphas": _describe_alphas(alphas),
        "restarts": restarts,
        "scan": scan,
        "n_nodes": bg.n_nodes,
        "sizes": [clean.shape[0], anomalous.shape[0]],
        "seed": entropy,
    }
    return make_runs(
        rows,
        [trial.nodes for trial, _ in trials],
        [np.sort(sample[trial.records]) for sample, (trial, _) in zip(samples, trials, strict=True)],
        [signs for _, signs in trials],
        config=config,
    )


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
    tail: Tail = "two-sided",
    score: ScoreName | ScoreFunction = "bj",
    alpha_max: float = 0.5,
    alphas: Alphas = 50,
    restarts: int = 2,
    scan: ScanKind = "group",
    rng: int | np.random.Generator = 0,
    n_jobs: int = 1,
    progress: bool = False,
) -> ScanRuns:
    """Test whether two sets of activations differ, with fresh splits and a permutation p-value.

    Every run draws distinct pairs for its clean records (from ``h0``), its anomalous records (from ``h1``) and its
    background (from ``h0``), so background and scanned records never share a pair. The statistic is the mean score of
    the mixed runs. A permutation flips the sides within random pairs, over all records (without pairs: permutes the
    labels), and repeats everything with the same splits; the p-value is
    ``(1 + #{permuted >= observed}) / (1 + n_permutations)``, valid for any data and score.

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
    tail, score, alpha_max, alphas, restarts
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
    progress : bool
        Show a progress bar over the permutations.

    Returns
    -------
    ScanRuns
        The "null" rows are the runs of the permutations. ``records`` are indices into ``[h0; h1]``, also of null
        rows, whose labels are permuted.

    Raises
    ------
    ValueError
        Different numbers of nodes, NaN or inf, incomplete pairs, samples larger than their pool, and whatever
        :func:`deepscan.scan` refuses.
    """
    h0 = check_activations(h0, "h0")
    h1 = check_activations(h1, "h1")
    if h1.shape[1] != h0.shape[1]:
        raise ValueError(f"h1 has {h1.shape[1]} nodes and h0 {h0.shape[1]}; expected the same nodes in both")
    check_choice(tail, "tail", Tail)
    n_clean, n_anomalous = _check_samples(n_clean, n_anomalous, scan)
    n_runs = check_integer(n_runs, "n_runs", minimum=1)
    n_permutations = check_integer(n_permutations, "n_permutations", minimum=0)
    restarts = check_integer(restarts, "restarts", minimum=1)
    score_kind(score)
    labels = label_records(h0.shape[0], h1.shape[0], pairs)
    n_background = labels.background_size(n_clean, n_anomalous, n_background)
    grid = split_alphas("exact" if scan == "individual" else alphas, alpha_max, n_background, tail)
    entropy = seed_sequence(rng)
    protocol = Protocol(scan, score, grid, restarts, n_clean, n_anomalous)
    ranks = rank_records(h0, h1)
    splits = draw_splits(labels, n_clean, n_anomalous, n_background, n_runs, entropy)
    bin_of_count = bin_counts(grid, n_background, tail)
    relabelled = [labels, *(permute_labels(labels, entropy, k) for k in range(n_permutations))]
    found = _in_parallel(
        _scan_splits,
        [(ranks, each, splits, bin_of_count, tail, protocol) for each in relabelled],
        n_jobs=n_jobs,
        progress=progress,
    )
    rows, nodes, records, signs = [], [], [], []
    for permutation, part in enumerate(found, start=-1):
        kind = "mixed" if permutation < 0 else "null"
        for run, (trial, chosen, side) in enumerate(part):
            rows.append(_row(trial, run, n_clean, n_anomalous, kind=kind, permutation=permutation))
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
        "tail": tail,
        "score": score_name(score),
        "alpha_max": float(alpha_max),
        "alphas": _describe_alphas(alphas),
        "restarts": restarts,
        "scan": scan,
        "n_nodes": h0.shape[1],
        "sizes": [h0.shape[0], h1.shape[0]],
        "seed": entropy,
    }
    p_value = float((1 + np.sum(means[1:] >= means[0])) / (1 + n_permutations))
    return make_runs(rows, nodes, records, signs, config=config, p_value=p_value)


def _scan_samples(bins, sides, samples, seeds, protocol: Protocol) -> list[tuple[Trial, np.ndarray]]:
    """Runs of :func:`run_scans`; bins and sides are (n_pool, n_nodes)."""
    from deepscan.ranking import sum_sides

    found = []
    for sample, seed in zip(samples, seeds, strict=True):
        trial = protocol.run(bins[sample], seed)
        found.append((trial, sum_sides(sides, sample[trial.records], trial.nodes)))
    return found


def _scan_splits(
    ranks: Ranks, labels: Labels, splits: list[Split], bin_of_count: np.ndarray, tail: Tail, protocol: Protocol
) -> list[tuple[Trial, np.ndarray, np.ndarray]]:
    """Runs of :func:`detect` under one labelling: what each found, its records in ``[h0; h1]``, its signs."""
    found = []
    for split in splits:
        background = labels.h0[split.background]
        scanned = np.concatenate([labels.h0[split.clean], labels.h1[split.anomalous]])
        trial = protocol.run(ranks.bins(background, scanned, bin_of_count, tail), split.seed)
        records = scanned[trial.records]
        found.append((trial, np.sort(records), ranks.signs(background, records, trial.nodes)))
    return found


def _in_parallel(function, tasks: list[tuple], *, n_jobs: int, progress: bool) -> list:
    from joblib import Parallel, delayed
    from tqdm.auto import tqdm

    calls = (delayed(function)(*task) for task in tasks)
    parallel = Parallel(n_jobs=n_jobs, prefer="threads", return_as="generator" if progress else "list")
    return list(tqdm(parallel(calls), total=len(tasks), desc="scanning", disable=not progress))


def _parts(count: int, n_jobs: int) -> list[slice]:
    size = max(1, min(25, -(-count // (4 * abs(n_jobs)))))
    return [slice(start, start + size) for start in range(0, count, size)]


def _row(trial: Trial, run: int, n_clean: int, n_anomalous: int, *, kind: str, permutation: int) -> dict:
    row = {
        "run": run,
        "kind": kind,
        "permutation": permutation,
        "score": trial.score,
        "alpha": trial.alpha,
        "n_records": trial.records.size,
        "n_nodes": trial.nodes.size,
        "auroc": trial.auroc,
    }
    if kind == "mixed":
        hits = int(np.sum(trial.records >= n_clean))
        row["precision"] = hits / trial.records.size if trial.records.size else float("nan")
        row["recall"] = hits / n_anomalous
    return row


def _describe_alphas(alphas: Alphas) -> int | str | list[float]:
    return alphas if isinstance(alphas, int | str) else np.asarray(alphas, np.float64).tolist()


def _check_samples(n_clean: int, n_anomalous: int, scan: ScanKind) -> tuple[int, int]:
    check_choice(scan, "scan", ScanKind)
    n_clean = check_integer(n_clean, "n_clean", minimum=0 if scan == "group" else 1)
    return n_clean, check_integer(n_anomalous, "n_anomalous", minimum=1)


def _check_pool(wanted: int, name: str, available: int, pool: str) -> None:
    if wanted > available:
        raise ValueError(f"{name} is {wanted}, more than the {available} records of {pool}; lower it")
