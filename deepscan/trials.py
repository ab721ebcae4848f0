"""One run of an experiment: scan a sample of clean and anomalous records, as a group or one by one."""

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import numpy as np

from deepscan.checks import check_choice, check_integer
from deepscan.runs import auroc
from deepscan.scores import ScoreFunction, ScoreName, evaluate, score_kind
from deepscan.thresholds import Alphas

ScanKind = Literal["group", "individual"]


class Trial(NamedTuple):
    """What a run found; ``records`` are places in its sample, the clean ones first."""

    score: float
    alpha: float
    records: np.ndarray
    nodes: np.ndarray
    auroc: float


@dataclass(frozen=True)
class Protocol:
    """How every run scans its sample.

    Attributes
    ----------
    scan : "group" | "individual"
    score : name or function
    alphas : (n_thresholds,)
        Ascending; for individual scans every p-value that can occur.
    restarts : int
    n_clean, n_anomalous : int
        The sample's first and last records.
    """

    scan: ScanKind
    score: ScoreName | ScoreFunction
    alphas: np.ndarray
    restarts: int
    n_clean: int
    n_anomalous: int

    def run(self, bins: np.ndarray, seed: np.random.SeedSequence) -> Trial:
        """Scan a sample given by its (n_records, n_nodes) threshold indices."""
        if self.alphas.size == 0:
            empty = np.empty(0, np.int64)
            return Trial(0.0, float("nan"), empty, empty, 0.5 if self.scan == "individual" else float("nan"))
        return self._run_group(bins, seed) if self.scan == "group" else self._run_individual(bins)

    def _run_group(self, bins: np.ndarray, seed: np.random.SeedSequence) -> Trial:
        from deepscan.ascent import Bounds, Landscape, climb_all, draw_starts

        n_records, n_nodes = bins.shape
        rng = np.random.default_rng(seed) if self.restarts > 2 else None
        landscape = Landscape(bins, self.alphas, self.score, Bounds(1, n_records, 1, n_nodes))
        found = climb_all(landscape, draw_starts(n_records, n_nodes, self.restarts, rng))
        alpha = float(self.alphas[found.k]) if found.k >= 0 else float("nan")
        return Trial(float(found.score), alpha, found.records, found.nodes, float("nan"))

    def _run_individual(self, bins: np.ndarray) -> Trial:
        from deepscan.counting import count_records
        from deepscan.singles import best_thresholds, count_selections

        n_nodes = bins.shape[1]
        counts = count_records(bins, np.arange(n_nodes), self.alphas.size)
        if callable(self.score):
            values = evaluate(self.score, counts, counts, np.broadcast_to(self.alphas, counts.shape))
            values = np.where(counts > 0, values, 0.0)
            k = np.argmax(values, axis=1)
            scores = values[np.arange(k.size), k]
        else:
            scores, k = best_thresholds(score_kind(self.score), counts, self.alphas)
        k = np.where(scores > 0.0, k, -1)
        top = np.sort(np.argsort(-scores, kind="stable")[: self.n_anomalous])
        nodes = np.flatnonzero(2 * count_selections(bins, top, k[top]) >= top.size)
        clean, anomalous = scores[: self.n_clean], scores[self.n_clean :]
        return Trial(float(anomalous.mean() - clean.mean()), float("nan"), top, nodes, auroc(anomalous, clean))


def run_parallel(function, tasks: list[tuple], *, n_jobs: int, progress: bool | str) -> list:
    """Results of a function for each tuple of arguments, in order."""
    from tqdm.auto import tqdm

    name = progress if isinstance(progress, str) else "scanning"
    bar = partial(tqdm, total=len(tasks), desc=name, disable=not progress)
    if n_jobs == 1 or len(tasks) == 1:
        return list(bar(function(*task) for task in tasks))
    from joblib import Parallel, delayed
    from threadpoolctl import threadpool_limits

    parallel = Parallel(n_jobs=n_jobs, prefer="threads", return_as="generator")
    # Threads of BLAS inside threads wait for each other, for matrices of this size longer than they compute.
    with threadpool_limits(1, user_api="blas"):
        return list(bar(parallel(delayed(function)(*task) for task in tasks)))


def table_row(trial: Trial, run: int, n_clean: int, n_anomalous: int, *, kind: str, permutation: int) -> dict:
    """Row of a run in the table; only mixed runs have precision and recall."""
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


def describe_alphas(alphas: Alphas) -> int | str | list[float]:
    """Thresholds as the configuration records them."""
    return alphas if isinstance(alphas, int | str) else np.asarray(alphas, np.float64).tolist()


def check_samples(n_clean: int, n_anomalous: int, scan: ScanKind) -> tuple[int, int]:
    """Numbers of clean and anomalous records, checked."""
    check_choice(scan, "scan", ScanKind)
    n_clean = check_integer(n_clean, "n_clean", minimum=0 if scan == "group" else 1)
    return n_clean, check_integer(n_anomalous, "n_anomalous", minimum=1)
