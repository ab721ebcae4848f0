"""The stages of an experiment in a folder: what was made from which inputs, so that an interrupted run goes on."""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from utils.records import REMAINS, digest_of, first_line, is_intact, key_of, read_json, replace_text, write_frame

logger = logging.getLogger(__name__)

RECORD = "stages.json"


class Stages:
    """The results of an experiment by name, each with a key of what it was made from and a digest, in ``stages.json``.

    Parameters
    ----------
    folder
        Of the experiment, as :func:`utils.folders.hold_folder` holds it.
    inputs
        What every stage depends on: JSON values, arrays or frames.
    """

    def __init__(self, folder: Path, *inputs: object):
        for remains in folder.rglob(REMAINS):  # of a run that was killed
            remains.unlink(missing_ok=True)
        self.folder, self._base = folder, key_of(*inputs)
        self._path = folder / RECORD
        self._entries = {name: entry for name, entry in read_json(self._path).items() if isinstance(entry, dict)}
        self._used: dict[str, str] = {}

    def table(self, name: str, compute: Callable[[], pd.DataFrame], *inputs: object) -> pd.DataFrame:
        """A table, ``<name>.parquet``: read where it was made from the same inputs, else computed and written."""
        return pd.read_parquet(self.file(f"{name}.parquet", lambda path: write_frame(path, compute()), *inputs))

    def file(self, name: str, write: Callable[[Path], object], *inputs: object) -> Path:
        """A file that ``write`` puts into its place in one step, unless it is there as it was made from the same inputs."""
        path, key = self.folder / name, key_of(self._base, name, *inputs)
        entry = self._entries.get(name, {})
        if entry.get("key") == key and is_intact(path, entry):
            self._used[name] = entry["digest"]
            return path
        if entry.get("key") == key and path.exists():
            logger.warning("%s is damaged or was changed; it is made again", path)
        # The old key goes first: an interruption must not leave it beside other results.
        if self._entries.pop(name, None) is not None:
            self._write()
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)
        self._used[name] = digest_of(path)
        self._entries[name] = {"key": key, "digest": self._used[name]}
        self._write()
        return path

    def finish(self, name: str, record: dict[str, Any], *, also: Sequence[str] = ()) -> dict[str, Any]:
        """Write the record of a finished run: what is given, and the digest of every file of the run.

        ``also`` are files that were written besides the stages. Returns what was written.
        """
        files = {**self._used, **{each: digest_of(self.folder / each) for each in also}}
        record = {**record, "files": files}
        replace_text(self.folder / name, json.dumps(record, indent=1, default=str))
        return record

    def _write(self) -> None:
        replace_text(self._path, json.dumps(self._entries, indent=1))


def read_run(folder: Path, name: str, *, kind: str, command: str) -> dict[str, Any]:
    """The record of a finished run.

    Raises
    ------
    FileNotFoundError
        There is none.
    ValueError
        It is damaged.
    """
    path = folder / name
    if not path.exists():
        raise FileNotFoundError(f"{folder} does not hold a finished {kind}; run {command} first.")
    if not (record := read_json(path)):
        raise ValueError(f"{path} is damaged; run {command} again to make it anew.")
    return record


def read_tables(folder: Path, names: Sequence[str], *, command: str) -> dict[str, pd.DataFrame]:
    """Tables of a finished run by name.

    Raises
    ------
    ValueError
        One of them is missing or damaged.
    """
    tables = {}
    for name in names:
        try:
            tables[name] = pd.read_parquet(folder / f"{name}.parquet")
        except (ValueError, OSError) as error:
            raise ValueError(
                f"{folder / name}.parquet is missing or damaged ({first_line(error)}); run {command} again to make it anew."
            ) from None
    return tables
