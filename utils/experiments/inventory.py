"""What runs lie in a folder: studies, causal checks, patching runs, masks and vectors, one row each."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from utils.experiments.stages import RECORD as STAGES
from utils.folders import RUNS
from utils.records import FINISHED, RECORD, read_json

_PAGES = ("report.html", "comparison.html")
COLUMNS = ["folder", "kind", "state", "model", "result", "megabytes", "changed"]


def list_runs(folder: str | Path) -> pd.DataFrame:
    """Every run in a folder and the folders in it, the one that changed last first.

    Parameters
    ----------
    folder
        Such as ``output``.

    Returns
    -------
    DataFrame
        ``folder`` (Path); ``kind``, as "study" or "causal check"; ``state``: "finished", or "unfinished" where running
        the same command again goes on; ``model``; ``result`` of a study in a few words, else empty; ``megabytes`` on disk,
        what lies in folders below included; ``changed``, local time.

    Raises
    ------
    FileNotFoundError
        There is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}.")
    rows = [_describe(place, name) for place, name in _find_runs(folder)]
    return pd.DataFrame(rows, columns=COLUMNS).sort_values("changed", ascending=False, ignore_index=True)


def find_report(folder: str | Path) -> Path:
    """The page that shows a run: its own, or that of the study in whose folder it lies.

    Raises
    ------
    FileNotFoundError
        There is none.
    """
    folder = Path(folder)
    for place in (folder, *folder.absolute().parents[:2]):
        for name in _PAGES:
            if (place / name).is_file():
                return place / name
    raise FileNotFoundError(f"{folder} has no report; give the folder of a finished study, or of a comparison.")


def _find_runs(folder: Path) -> Iterator[tuple[Path, str]]:
    for where, below, files in os.walk(folder):
        # Stores have thousands of files, and what is hidden is being written.
        below[:] = sorted(name for name in below if not name.startswith(".") and not name.endswith(".zarr"))
        if name := next((name for name in (*RUNS, STAGES) if name in files), None):
            yield Path(where), name


def _describe(folder: Path, name: str) -> dict[str, Any]:
    record = read_json(folder / name)
    finished = bool(record) and (FINISHED in record if name == RECORD else name != STAGES)
    made = record.get("config", {})
    model = record.get("activations", {}).get("model") if name == RECORD and finished else record.get("model")
    result = ""
    if name == RECORD and finished:
        result = f"{len(record.get('sizes', []))} personas, layer {record[FINISHED]}"
    return {
        "folder": folder,
        "kind": RUNS.get(name, "experiment"),
        "state": "finished" if finished else "unfinished",
        "model": str(model or (made.get("model") if isinstance(made, dict) else None) or "–"),
        "result": result,
        "megabytes": size_of(folder) / 1e6,
        "changed": pd.Timestamp(*time.localtime((folder / name).stat().st_mtime)[:6]),
    }


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder and below."""
    return sum(os.lstat(os.path.join(where, file)).st_size for where, _, files in os.walk(folder) for file in files)
