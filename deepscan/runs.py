"""The runs of an experiment: what each of them selected, and what follows from them together."""

import json
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float, Integer, Shaped

from deepscan.files import COLUMNS, load_runs, make_table, parse_runs, save_runs

if TYPE_CHECKING:
    import pandas

__all__ = ["COLUMNS", "ScanRuns", "read_runs"]


@dataclass(frozen=True, eq=False)
class ScanRuns:
    """Runs of a scan experiment.

    Attributes
    ----------
    table : DataFrame
        One row a run: ``run``; ``kind`` ("mixed" | "null"); ``permutation`` (-1 where the labels are the observed
        ones, else the number of the permutation that a null run belongs to); ``score``, ``alpha``, ``n_records``,
        ``n_nodes``; of mixed runs ``precision`` and ``recall`` of the selected records (which are anomalous), NaN
        elsewhere; ``auroc`` of the individual scores, anomalous against clean records, NaN for group scans.
    nodes, records : lists of sorted int arrays, aligned with ``table``
        Records are indices into the two pools one after the other: ``[h0; h1]`` of :func:`deepscan.detect`,
        ``[clean; anomalous]`` of :func:`deepscan.run_scans`. A record of a mixed run is anomalous exactly where its
        index is at least ``config["sizes"][0]``.
    signs : list of int8 arrays, aligned with ``nodes``
        +1 where most of the selected records lie above the background's median of that node, -1 below, 0 neither (of
        :func:`deepscan.detect` never 0, see there).
    config : dict
        All options, ``n_nodes``, ``sizes`` of the two pools and the ``seed``.
    p_value : float or None
        Permutation p-value of the experiment (``detect`` only).
    """

    table: "pandas.DataFrame"
    nodes: list[Integer[np.ndarray, " _"]]
    records: list[Integer[np.ndarray, " _"]]
    signs: list[Integer[np.ndarray, " _"]]
    config: dict = field(default_factory=dict)
    p_value: float | None = None

    def __repr__(self) -> str:
        kinds = self.table["kind"]
        found = "" if self.p_value is None else f"p_value={self.p_value:.4g}, "
        return f"ScanRuns({found}{(kinds == 'mixed').sum()} mixed and {(kinds == 'null').sum()} null runs, {self.n_nodes} nodes)"

    @property
    def n_nodes(self) -> int:
        """Number of nodes that were scanned."""
        return int(self.config["n_nodes"])

    def node_frequency(self) -> Float[np.ndarray, " nodes"]:
        """Share of the mixed runs that selected each node; NaN where there is no mixed run."""
        return self._shares(self._rows("mixed"))

    def node_sign(self) -> Integer[np.ndarray, " nodes"]:
        """Side of the background on which the selected records lie in most of the mixed runs that selected a node.

        Returns
        -------
        (n_nodes,) int8
            +1 above, -1 below, 0 never selected. Of a node that is above in as many runs as below, the side in the run
            with the highest score; 0 where no run has a side.
        """
        return self._majority(self._rows("mixed"))

    def permuted_frequency(self) -> Float[np.ndarray, "permutations nodes"]:
        """Share of the runs of each permutation that selected each node."""
        return np.stack([self._shares(rows) for rows in self._by_permutation()])

    def permuted_sign(self) -> Integer[np.ndarray, "permutations nodes"]:
        """Sign of each node, as of :meth:`node_sign`, in the runs of each permutation."""
        return np.stack([self._majority(rows) for rows in self._by_permutation()])

    def auroc(self) -> float:
        """Area under the ROC curve of the scores of mixed against null runs; descriptive, not a test."""
        return auroc(self._scores("mixed"), self._scores("null"))

    def power(self, *, level: float = 0.05) -> float:
        """Share of the mixed runs whose score few null runs reach.

        A run counts where ``(1 + #{null >= score}) / (1 + #null) <= level``. Descriptive: the runs of one experiment
        share their data, so this is no test of the experiment; ``p_value`` is.
        """
        if not 0.0 < level < 1.0:
            raise ValueError(f"level is {level!r}; expected a number in (0, 1)")
        null = np.sort(self._scores("null"))
        mixed = self._scores("mixed")
        reached = null.size - np.searchsorted(null, mixed, side="left")
        return float(np.mean((1 + reached) / (1 + null.size) <= level)) if mixed.size else float("nan")

    def save(self, path: str | Path) -> None:
        """Write everything to one Parquet file, atomically and without loss."""
        lists = {"nodes": self.nodes, "records": self.records, "signs": self.signs}
        save_runs(Path(path), self.table, lists, {"config": self.config, "p_value": self.p_value})

    @classmethod
    def load(cls, path: str | Path) -> "ScanRuns":
        """Read a file that :meth:`save` wrote.

        Raises
        ------
        ValueError
            The file is not one of these.
        """
        return cls(**load_runs(Path(path)))

    def _rows(self, kind: Literal["mixed", "null"]) -> np.ndarray:
        return np.flatnonzero((self.table["kind"] == kind).to_numpy())

    def _scores(self, kind: Literal["mixed", "null"]) -> np.ndarray:
        return self.table["score"].to_numpy()[self._rows(kind)]

    def _by_permutation(self) -> list[np.ndarray]:
        permutation = self.table["permutation"].to_numpy()
        count = permutation.max(initial=-1) + 1
        if count == 0:
            raise ValueError("table holds no permuted runs; only those of detect with n_permutations > 0 do")
        order = np.argsort(permutation, kind="stable")
        edges = np.searchsorted(permutation[order], np.arange(count + 1))
        return [order[start:stop] for start, stop in pairwise(edges)]

    def _shares(self, rows: np.ndarray) -> np.ndarray:
        chosen = np.concatenate([np.empty(0, np.int64), *(self.nodes[row] for row in rows)])
        count = np.bincount(chosen, minlength=self.n_nodes)
        return count / rows.size if rows.size else np.full(self.n_nodes, np.nan)

    def _majority(self, rows: np.ndarray) -> np.ndarray:
        rows = rows[np.argsort(-self.table["score"].to_numpy()[rows], kind="stable")]
        chosen = np.concatenate([np.empty(0, np.int64), *(self.nodes[row] for row in rows)])
        signs = np.concatenate([np.empty(0, np.int8), *(self.signs[row] for row in rows)])
        majority = np.sign(np.bincount(chosen, weights=signs, minlength=self.n_nodes)).astype(np.int8)
        decided = np.flatnonzero(signs)
        nodes, first = np.unique(chosen[decided], return_index=True)
        best = np.zeros_like(majority)
        best[nodes] = signs[decided[first]]
        return np.where(majority == 0, best, majority)


def auroc(positive: Float[np.ndarray, " positives"], negative: Float[np.ndarray, " negatives"]) -> float:
    """Probability that a positive score is above a negative one, ties counting half; NaN where either is empty."""
    if positive.size == 0 or negative.size == 0:
        return float("nan")
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, side="left")
    upto = np.searchsorted(ordered, positive, side="right")
    return float((below + upto).sum() / (2.0 * positive.size * negative.size))


def make_runs(
    rows: list[dict],
    nodes: list[Shaped[np.ndarray, " _"]],
    records: list[Shaped[np.ndarray, " _"]],
    signs: list[Shaped[np.ndarray, " _"]],
    *,
    config: dict,
    p_value: float | None = None,
) -> ScanRuns:
    """Runs from their rows; columns that a row lacks are -1, or NaN."""
    columns = {}
    for name, dtype in COLUMNS.items():
        default = np.nan if dtype is np.float64 else -1
        columns[name] = [row.get(name, default) for row in rows]
    as_int32 = [[np.asarray(values, np.int32) for values in lists] for lists in (nodes, records)]
    return ScanRuns(
        table=make_table(columns),
        nodes=as_int32[0],
        records=as_int32[1],
        signs=[np.asarray(values, np.int8) for values in signs],
        config=json.loads(json.dumps(config)),
        p_value=p_value,
    )


def read_runs(path: str | Path, n_nodes: int | None = None) -> ScanRuns:
    """Read a text file of the original DeepScan: one line a run.

    The original's "1tail" is the left tail here, with the *lower* end of the p-value range; scores of such files are
    not comparable with those of :func:`deepscan.run_scans` on other settings. Record indices are those of the file
    (places within the run's sample) and there are no signs.

    Parameters
    ----------
    path : str or Path
        Space-separated score, precision, recall, number of records, number of nodes, alpha, nodes, records; the last
        two are comma-separated. Runs without anomalous records have ``None None``; they are the null runs here.
    n_nodes : int, optional
        How many nodes were scanned; by default one more than the largest index in the file.

    Returns
    -------
    ScanRuns

    Raises
    ------
    ValueError
        A line is cut off, disagrees with its own counts or holds an index outside ``n_nodes``; the line is named.
    """
    rows, nodes, records = parse_runs(Path(path), n_nodes)
    if n_nodes is None:
        n_nodes = 1 + max((int(chosen[-1]) for chosen in nodes if chosen.size), default=-1)
    config = {"source": Path(path).name, "n_nodes": n_nodes}
    return make_runs(rows, nodes, records, [np.zeros(chosen.size) for chosen in nodes], config=config)
