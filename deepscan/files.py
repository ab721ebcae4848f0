"""Parquet files of scan runs: one row group of the runs, the configuration in the schema's metadata."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deepscan.textformat import replace_atomically

if TYPE_CHECKING:
    from deepscan.runs import ScanRuns

_KEY = b"deepscan"
_LISTS = {"nodes": np.int32, "records": np.int32, "signs": np.int8}


def save_runs(runs: "ScanRuns", path: Path) -> None:
    """Write runs to one zstd-compressed Parquet file, atomically."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from deepscan.runs import COLUMNS

    columns = {name: pa.array(runs.table[name].to_numpy()) for name in COLUMNS if name != "kind"}
    columns["kind"] = pa.array(runs.table["kind"].tolist(), pa.string())
    for name, dtype in _LISTS.items():
        lists = getattr(runs, name)
        offsets = np.concatenate([[0], np.cumsum([values.size for values in lists], dtype=np.int64)])
        flat = np.concatenate([np.empty(0, dtype), *lists])
        columns[name] = pa.LargeListArray.from_arrays(offsets, flat)
    about = json.dumps({"config": runs.config, "p_value": runs.p_value})
    table = pa.table(columns).replace_schema_metadata({_KEY: about.encode()})
    # Sorted indices take about a byte each as differences; the encoding has no use for the other columns.
    encoding = {f"{name}.list.element": "DELTA_BINARY_PACKED" for name in ("nodes", "records")}
    dictionary: Any = ["kind", "signs.list.element"]
    replace_atomically(
        path,
        lambda beside: pq.write_table(
            table, beside, compression="zstd", use_dictionary=dictionary, column_encoding=encoding
        ),
    )


def load_runs(path: Path) -> "ScanRuns":
    """Read what :func:`save_runs` wrote."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from deepscan.runs import COLUMNS, ScanRuns, make_table

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
    return ScanRuns(table=make_table(columns), config=about["config"], p_value=about["p_value"], **lists)
