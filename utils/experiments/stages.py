"""The stages of an experiment in a folder: what was made from which inputs, so that an interrupted run goes on."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from utils.records import key_of, replace_text, write_frame


class Stages:
    """The results of an experiment by name, each with a key of what it was made from, in ``stages.json``.

    Parameters
    ----------
    folder
        Of the experiment.
    inputs
        What every stage depends on: JSON values, arrays or frames.
    """

    def __init__(self, folder: Path, *inputs: object):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._base = folder, key_of(*inputs)
        self._path = folder / "stages.json"
        try:
            known = json.loads(self._path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            known = {}
        self._keys: dict[str, str] = known if isinstance(known, dict) else {}

    def table(self, name: str, compute: Callable[[], pd.DataFrame], *inputs: object) -> pd.DataFrame:
        """A table, ``<name>.parquet``: read where it was made from the same inputs, else computed and written."""
        return pd.read_parquet(self.file(f"{name}.parquet", lambda path: write_frame(path, compute()), *inputs))

    def file(self, name: str, write: Callable[[Path], object], *inputs: object) -> Path:
        """A file that ``write`` puts into its place in one step, unless it was made from the same inputs."""
        path, key = self.folder / name, key_of(self._base, name, *inputs)
        if self._keys.get(name) != key or not path.exists():
            # The old key goes first: an interruption must not leave it beside other results.
            if self._keys.pop(name, None) is not None:
                self._write()
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path)
            self._keys[name] = key
            self._write()
        return path

    def _write(self) -> None:
        replace_text(self._path, json.dumps(self._keys, indent=1))
