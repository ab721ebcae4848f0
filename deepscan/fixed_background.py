"""The original's protocol: many runs against one fixed background."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Shaped

from deepscan.checks import check_activations, check_integer
from deepscan.pvalues import Background
from deepscan.runs import ScanRuns, make_runs
from deepscan.scores import ScoreFunction, ScoreName, score_kind, score_name
from deepscan.splits import seed_sequence
from deepscan.tails import Tail
from deepscan.thresholds import Alphas, exact_alphas, given_alphas
from deepscan.trials import Protocol, ScanKind, Trial, check_samples, describe_alphas, run_parallel, table_row


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
    progress: bool | str = False,
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
    progress : bool or str
        Show a progress bar; a text is its name.

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
    n_clean, n_anomalous = check_samples(n_clean, n_anomalous, scan)
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
    pools = (clean, clean_groups), (anomalous, anomalous_groups)
    if grid is None or scan == "individual":
        found = (exact_alphas(bg.pvalues(x, tail=tail, groups=labels).upper, alpha_max) for x, labels in pools)
        grid = np.unique(np.concatenate(list(found)))
    bins = np.concatenate([bg.bins(x, grid, tail=tail, groups=labels) for x, labels in pools])
    sides = np.concatenate([bg.sides(x, groups=labels) for x, labels in pools])
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
    parts = run_parallel(
        _scan_samples,
        [(bins, sides, samples[part], seeds[part], protocol) for part in _parts(len(samples), n_jobs)],
        n_jobs=n_jobs,
        progress=progress,
    )
    trials = [trial for part in parts for trial in part]
    rows = []
    for index, (trial, _) in enumerate(trials):
        mixed = index < n_runs
        run = index if mixed else index - n_runs
        rows.append(table_row(trial, run, n_clean, n_anomalous, kind="mixed" if mixed else "null", permutation=-1))
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
        "alphas": describe_alphas(alphas),
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


def _scan_samples(bins, sides, samples, seeds, protocol: Protocol) -> list[tuple[Trial, np.ndarray]]:
    """Runs of :func:`run_scans`; bins and sides are (n_pool, n_nodes)."""
    from deepscan.ranking import sum_sides

    found = []
    for sample, seed in zip(samples, seeds, strict=True):
        trial = protocol.run(bins[sample], seed)
        found.append((trial, sum_sides(sides, sample[trial.records], trial.nodes)))
    return found


def _parts(count: int, n_jobs: int) -> list[slice]:
    size = max(1, min(25, -(-count // (4 * abs(n_jobs)))))
    return [slice(start, start + size) for start in range(0, count, size)]


def _check_pool(wanted: int, name: str, available: int, pool: str) -> None:
    if wanted > available:
        raise ValueError(f"{name} is {wanted}, more than the {available} records of {pool}; lower it")
