"""Stages of a study: what was computed from which inputs, so that nothing is computed twice."""

import contextlib
import hashlib
import importlib.metadata
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors
from safetensors.numpy import save_file

# Raise it when a stage would give other results for the same inputs.
_VERSION = 3
_PACKAGES = ("personascope", "torch", "transformers", "numpy", "scikit-learn", "numba", "pandas", "xarray", "zarr")


class StageLog:
    """The record of a study folder, ``study.json``, kept up to date after every stage."""

    def __init__(self, folder: Path, config: dict[str, Any]):
        self.folder = folder
        self._path = folder / "study.json"
        earlier = _read_json(self._path)
        self._record: dict[str, Any] = {
            "config": config,
            "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
            "stages": stages if isinstance(stages := earlier.get("stages"), dict) else {},
        }

    def stage(self, name: str, key: str, run: Callable[[], object], *, exists: bool) -> None:
        """Run a stage unless its results exist and were made from the same inputs."""
        stages = self._record["stages"]
        if exists and stages.get(name, {}).get("key") == key:
            return
        if stages.pop(name, None) is not None:
            # An interrupted run must not leave the old key beside half-replaced results.
            self._write()
        started = time.perf_counter()
        run()
        stages[name] = {"key": key, "seconds": round(time.perf_counter() - started, 2)}
        self._write()

    def table(self, name: str, key: str, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """A stage whose result is one table, ``<name>.parquet``."""
        path = self.folder / f"{name}.parquet"
        self.stage(name, key, lambda: write_frame(path, compute()), exists=path.exists())
        return pd.read_parquet(path)

    def add(self, **facts: object) -> None:
        """Add results to the record."""
        self._record |= facts

    def finish(self) -> None:
        """Write the record with all that was added."""
        self._record["seconds"] = {name: entry["seconds"] for name, entry in self._record["stages"].items()}
        self._write()

    def _write(self) -> None:
        replace_text(self._path, json.dumps(_plain(self._record), indent=1, allow_nan=False))


def key_of(*parts: object) -> str:
    """A key that changes with any of its parts: JSON values, arrays or frames."""
    digest = hashlib.sha256(str(_VERSION).encode())
    for part in parts:
        if isinstance(part, pd.DataFrame):
            rows = pd.util.hash_pandas_object(part.astype(str)).to_numpy()
            text = json.dumps([[str(name) for name in part.columns], rows.tolist()])
        else:
            text = json.dumps(_plain(part), sort_keys=True)
        # The length tells the parts apart: (1, 23) is not (12, 3).
        digest.update(f"{len(text)}:{text}".encode())
    return digest.hexdigest()[:20]


@contextlib.contextmanager
def write_beside(path: Path) -> Iterator[Path]:
    """A place beside ``path`` to write to; it takes the path's place in one step where nothing went wrong."""
    beside = path.with_name(f".{path.name}.part")
    yield beside
    os.replace(beside, path)


def write_frame(path: Path, frame: pd.DataFrame) -> None:
    """Write a table as Parquet, beside its place and then into it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_beside(path) as beside:
        frame.to_parquet(beside, index=False)


def replace_text(path: Path, text: str) -> None:
    """Write a text file, beside its place and then into it."""
    with write_beside(path) as beside:
        beside.write_text(text, encoding="utf-8")


def parse_json(text: str) -> Any:
    """What a JSON text holds; nesting too deep to follow is a ValueError as other faults are."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _read_json(path: Path) -> dict[str, Any]:
    """What the file holds; nothing where it is missing or broken."""
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _plain(value: Any) -> Any:
    """JSON values only: NumPy scalars as Python's, paths as text, what is not finite as null."""
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def write_record(path: Path, kind: str, tensors: dict[str, np.ndarray], record: dict[str, Any]) -> None:
    """Write tensors and, in the header, a record of a kind as a safetensors file, beside its place and then into it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_beside(path) as beside:
        save_file(tensors, beside, metadata={kind: json.dumps(record)})


def read_record(path: Path, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors of a safetensors file and the record of that kind in its header."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    record = None
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            held = file.metadata() or {}
            if kind in held:
                record = parse_json(held[kind]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, ValueError) as error:
        raise ValueError(f"{path} holds no {kind}, or is cut short ({error}); make it again.") from None
    if record is None:
        raise ValueError(f"{path} holds no {kind}, but {', '.join(held) or 'other tensors'}; give another file.")
    return record[1], record[0]
