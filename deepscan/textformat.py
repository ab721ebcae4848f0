"""The text format of the original DeepScan: one line a run, space-separated, lists comma-separated."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from deepscan.runs import ScanRuns

FIELDS = ("score", "precision", "recall", "number of records", "number of nodes", "alpha", "nodes", "records")


def parse_runs(path: Path, n_nodes: int | None) -> tuple[list[dict], list[np.ndarray], list[np.ndarray]]:
    """Table rows, nodes and records of every line.

    Raises
    ------
    ValueError
        Names the line that is cut off or disagrees with itself.
    """
    rows, nodes, records = [], [], []
    count = {"mixed": 0, "null": 0}
    lines = path.read_text(encoding="utf-8").split("\n")
    if lines[-1] == "":
        lines.pop()
    for number, line in enumerate(lines, start=1):
        try:
            row, chosen_nodes, chosen_records = _parse_line(line.rstrip("\r"), n_nodes)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        row["run"] = count[row["kind"]]
        count[row["kind"]] += 1
        rows.append(row)
        nodes.append(chosen_nodes)
        records.append(chosen_records)
    return rows, nodes, records


def _parse_line(line: str, n_nodes: int | None) -> tuple[dict, np.ndarray, np.ndarray]:
    # An empty list leaves two spaces together, or one at the end, so runs of spaces must not be merged.
    fields = line.split(" ")
    if len(fields) != len(FIELDS):
        raise ValueError(
            f"{len(fields)} fields where {len(FIELDS)} were expected ({', '.join(FIELDS)}); "
            "if the file was cut off here, remove the line"
        )
    score, precision, recall, n_records, n_chosen, alpha = fields[:6]
    if (precision == "None") != (recall == "None"):
        raise ValueError(f"precision is {precision} and recall {recall}; expected two numbers, or None for both")
    row = {
        "kind": "null" if precision == "None" else "mixed",
        "score": _number(score, "score"),
        "precision": np.nan if precision == "None" else _number(precision, "precision"),
        "recall": np.nan if recall == "None" else _number(recall, "recall"),
        "alpha": np.nan if alpha == "None" else _number(alpha, "alpha"),
    }
    nodes = _indices(fields[6], "nodes", n_chosen)
    records = _indices(fields[7], "records", n_records)
    if n_nodes is not None and nodes.size and nodes[-1] >= n_nodes:
        raise ValueError(f"node {nodes[-1]} is outside n_nodes = {n_nodes}; pass the number of nodes that was scanned")
    return row | {"n_records": records.size, "n_nodes": nodes.size}, nodes, records


def _number(text: str, name: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name} is {text!r}, not a number") from None


def _indices(text: str, name: str, count: str) -> np.ndarray:
    parts = text.split(",") if text else []
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"{name} holds {next(part for part in parts if not part.isdecimal())!r}, not an index")
    if not count.isdecimal() or int(count) != len(parts):
        raise ValueError(
            f"{len(parts)} {name} where the line announces {count}; if the file was cut off here, remove the line"
        )
    indices = np.unique(np.array(parts, dtype=np.int64))
    if indices.size != len(parts):
        raise ValueError(f"{name} holds the same index twice")
    return indices


def write_runs(runs: "ScanRuns", path: str | Path) -> None:
    """Write runs in the text format of the original DeepScan, atomically.

    Signs, the configuration and the p-value have no place in it; :meth:`deepscan.ScanRuns.save` keeps everything.

    Parameters
    ----------
    runs : ScanRuns
    path : str or Path
    """
    table = runs.table
    columns = (table[name].tolist() for name in ("kind", "score", "precision", "recall", "alpha"))
    lines = []
    for kind, score, precision, recall, alpha, nodes, records in zip(*columns, runs.nodes, runs.records, strict=True):
        hits = f"{precision!r} {recall!r}" if kind == "mixed" else "None None"
        chosen = f"{','.join(map(str, nodes.tolist()))} {','.join(map(str, records.tolist()))}"
        lines.append(f"{score!r} {hits} {records.size} {nodes.size} {alpha!r} {chosen}\n")
    replace_atomically(Path(path), lambda beside: beside.write_text("".join(lines), encoding="utf-8"))


def replace_atomically(path: Path, write) -> None:
    """Have ``write`` make a file beside ``path``, then rename it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
