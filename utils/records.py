"""Stages of a study: what was computed from which inputs, so that nothing is computed twice."""

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import math
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet
import safetensors
from safetensors.numpy import save_file

logger = logging.getLogger(__name__)

RECORD = "study.json"
NEXT = ".next"
# What only the record of a finished study holds.
FINISHED = "best_layer"

# Raise it when a stage would give other results for the same inputs.
_VERSION = 4
_PACKAGES = ("personascope", "torch", "transformers", "numpy", "scikit-learn", "numba", "pandas", "xarray", "zarr")


class StageLog:
    """What was computed from which inputs, kept up to date after every stage; in the end, the record of a study.

    The first study of a folder is written in place. A finished one stays as it is until the next is finished too: new files
    go to ``.next`` in the folder and then take their places together, ``study.json`` last.
    """

    def __init__(self, folder: Path, config: dict[str, Any]):
        self.folder = folder
        _move_finished(folder)
        kept = read_json(folder / RECORD)
        self._kept = _stages(kept) if FINISHED in kept else {}
        # What the activations of the finished study were made with.
        self.made_from: dict[str, Any] | None = kept.get("activations") if FINISHED in kept else None
        self._place = folder / NEXT if FINISHED in kept else folder
        self._used: set[str] = set()
        self._record: dict[str, Any] = {
            "config": config,
            "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
            "stages": {**self._kept, **_stages(read_json(self._place / RECORD))},
            "left_out": [],
        }
        for pattern in (".*.parquet.*.part", "*/.*.parquet.*.part", f".{RECORD}.*.part"):
            for remains in folder.glob(pattern):  # of a run that was killed
                remains.unlink(missing_ok=True)

    def stage(self, name: str, key: str, run: Callable[[], object], *, exists: bool) -> None:
        """Run a stage unless its results exist and were made from the same inputs."""
        entries = (self._kept.get(name), self._record["stages"].get(name))
        if exists and (entry := next((each for each in entries if each and each.get("key") == key), None)):
            self._record["stages"][name] = entry
            return
        self._forget(name)
        started = time.perf_counter()
        run()
        self._note(name, key, started)

    def file(self, name: str, key: str, write: Callable[[Path], object]) -> Path:
        """A stage whose result is the file ``<name>.parquet``; where that lies until the study is finished."""
        self._used.add(name)
        fresh = self._place / f"{name}.parquet"
        for path, stages in ((self.folder / f"{name}.parquet", self._kept), (fresh, self._record["stages"])):
            entry = stages.get(name, {})
            if entry.get("key") != key:
                continue
            if is_intact(path, entry):
                self._record["stages"][name] = entry
                if path != fresh:
                    fresh.unlink(missing_ok=True)  # of a run with other options that was not finished
                return path
            if path.exists():
                logger.warning("%s is damaged or was changed; it is made again", path)
        self._forget(name)
        started = time.perf_counter()
        write(fresh)
        self._note(name, key, started, digest=digest_of(fresh))
        return fresh

    def table(self, name: str, key: str, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """A stage whose result is one table, ``<name>.parquet``."""
        return pd.read_parquet(self.file(name, key, lambda path: write_frame(path, compute())))

    def leave_out(self, name: str) -> None:
        """Say that there is no table of this name; an older one goes when the study is finished."""
        self._record["left_out"].append(name)
        self._record["stages"].pop(name, None)

    def add(self, **facts: object) -> None:
        """Add results to the record."""
        self._record |= facts

    def finish(self) -> None:
        """Write the record with all that was added, and put what was made in its place."""
        self._record["seconds"] = {name: entry["seconds"] for name, entry in self._record["stages"].items()}
        if self._place != self.folder:
            for file in self._place.rglob("*.parquet"):
                if file.relative_to(self._place).with_suffix("").as_posix() not in self._used:
                    file.unlink()
        self._write()
        if FINISHED in self._record:
            _move_finished(self.folder)
            for name in self._record["left_out"]:
                (self.folder / f"{name}.parquet").unlink(missing_ok=True)
            self._place, self._kept = self.folder, {}

    def _forget(self, name: str) -> None:
        # An interrupted run must not leave the old key beside half-replaced results.
        if self._record["stages"].pop(name, None) is not None:
            self._write()

    def _note(self, name: str, key: str, started: float, **facts: str) -> None:
        self._record["stages"][name] = {"key": key, "seconds": round(time.perf_counter() - started, 2), **facts}
        self._write()

    def _write(self) -> None:
        self._place.mkdir(parents=True, exist_ok=True)
        replace_text(self._place / RECORD, json.dumps(_plain(self._record), indent=1, allow_nan=False))


def is_moving(folder: Path) -> bool:
    """Whether a run was interrupted while it put the files of a finished study in their places."""
    return FINISHED in read_json(folder / NEXT / RECORD)


def _move_finished(folder: Path) -> None:
    """Put the files of a finished study in their places, the record last; also where that was interrupted."""
    new = folder / NEXT
    if not is_moving(folder):
        return
    for file in sorted(new.rglob("*.parquet")):
        target = folder / file.relative_to(new)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, target)
    os.replace(new / RECORD, folder / RECORD)
    shutil.rmtree(new)


def _stages(record: dict[str, Any]) -> dict[str, Any]:
    return dict(stages) if isinstance(stages := record.get("stages"), dict) else {}


def digest_of(path: Path) -> str:
    """A digest of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:20]


def is_intact(path: Path, entry: Mapping[str, Any]) -> bool:
    """Whether a file is as a stage wrote it; of an older record, which holds no digest, whether it is whole."""
    if not path.is_file():
        return False
    if "digest" in entry:
        return digest_of(path) == entry["digest"]
    try:
        return pyarrow.parquet.read_metadata(path) is not None
    except (ValueError, OSError):
        return False


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
    beside = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


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


def first_line(error: Exception) -> str:
    """What an error says, in one line; its kind where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def read_json(path: Path) -> dict[str, Any]:
    """What the file holds; nothing where it is missing or broken."""
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
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
