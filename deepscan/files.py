"""Files of scan runs: Parquet, with the configuration in the schema's metadata, and the text format of the original DeepScan.

In the latter a run is a line of fields with spaces between them, and lists have commas.
"""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas

_KEY = b"deepscan"
_LISTS = {"nodes": np.int32, "records": np.int32, "signs": np.int8}

COLUMNS = {
    "run": np.int64,
    "kind": str,
    "permutation": np.int64,
    "score": np.float64,
    "alpha": np.float64,
    "n_records": np.int64,
    "n_nodes": np.int64,
    "precision": np.float64,
    "recall": np.float64,
    "auroc": np.float64,
}

FIELDS = ("score", "precision", "recall", "number of records", "number of nodes", "alpha", "nodes", "records")


def save_runs(path: Path, table: "pandas.DataFrame", lists: dict[str, list], about: dict[str, Any]) -> None:
    """Write the table, the lists and what is known about runs to one zstd-compressed Parquet file, atomically."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {name: pa.array(table[name].to_numpy()) for name in COLUMNS if name != "kind"}
    columns["kind"] = pa.array(table["kind"].tolist(), pa.string())
    for name, dtype in _LISTS.items():
        offsets = np.concatenate([[0], np.cumsum([values.size for values in lists[name]], dtype=np.int64)])
        flat = np.concatenate([np.empty(0, dtype), *lists[name]])
        columns[name] = pa.LargeListArray.from_arrays(offsets, flat)
    file = pa.table(columns).replace_schema_metadata({_KEY: json.dumps(about).encode()})
    # Sorted indices take about a byte each as differences; the encoding has no use for the other columns.
    encoding = {f"{name}.list.element": "DELTA_BINARY_PACKED" for name in ("nodes", "records")}
    dictionary: Any = ["kind", "signs.list.element"]
    replace_atomically(
        path,
        lambda beside: pq.write_table(
            file, beside, compression="zstd", use_dictionary=dictionary, column_encoding=encoding
        ),
    )


def load_runs(path: Path) -> dict[str, Any]:
    """The fields of the runs that :func:`save_runs` wrote."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is no Parquet file ({error}); expected one that ScanRuns.save wrote") from None
    metadata = table.schema.metadata or {}
    if _KEY not in metadata:
        raise ValueError(f"{path} holds no scan runs; expected a file that ScanRuns.save wrote")
    about = json.loads(metadata[_KEY])
    lists = {}
    for name, dtype in _LISTS.items():
        column = table[name].combine_chunks()
        flat = column.flatten().to_numpy().astype(dtype, copy=False)
        lengths = np.diff(column.offsets.to_numpy()) if len(column) else np.empty(0, np.int64)
        lists[name] = np.split(flat, np.cumsum(lengths)[:-1]) if len(column) else []
    columns = {name: table[name].to_pylist() if name == "kind" else table[name].to_numpy() for name in COLUMNS}
    return {"table": make_table(columns), "config": about["config"], "p_value": about["p_value"], **lists}


def make_table(columns: dict) -> "pandas.DataFrame":
    """Table with the columns and types of :data:`COLUMNS`."""
    import pandas as pd

    return pd.DataFrame({name: pd.Series(columns[name], dtype=dtype) for name, dtype in COLUMNS.items()})


def parse_runs(path: Path, n_nodes: int | None) -> tuple[list[dict], list[np.ndarray], list[np.ndarray]]:
    """Table rows, nodes and records of every line.

    Raises
    ------
    ValueError
        Names the line that is cut off or disagrees with itself.
    """
    rows, nodes, records = [], [], []
    count = {"mixed": 0, "null": 0}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text file; expected one that DeepScan wrote.") from None
    if lines[-1] == "":
        lines.pop()
    if not lines:
        raise ValueError(f"{path} is empty; expected one line a run, as DeepScan writes them.")
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
        value = float(text)
    except ValueError:
        raise ValueError(f"{name} is {text!r}, not a number.") from None
    if not math.isfinite(value):
        raise ValueError(f"{name} is {text!r}; expected a finite number.")
    return value


def _indices(text: str, name: str, count: str) -> np.ndarray:
    parts = text.split(",") if text else []
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"{name} holds {next(part for part in parts if not part.isdecimal())!r}, not an index")
    if not count.isdecimal() or int(count) != len(parts):
        raise ValueError(
            f"{len(parts)} {name} where the line announces {count}; if the file was cut off here, remove the line"
        )
    if longest := next((part for part in parts if len(part) > 18), None):
        raise ValueError(f"{name} holds {longest[:24]!r}, far more than there can be.")
    indices = np.unique(np.array(parts, dtype=np.int64))
    if indices.size != len(parts):
        raise ValueError(f"{name} holds the same index twice")
    return indices


def replace_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Have ``write`` make a file beside ``path``, then rename it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
