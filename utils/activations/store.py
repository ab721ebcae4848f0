"""Activations on disk: a Zarr group that is written batch by batch and that xarray opens without this project.

The rows of the store follow the batch plan: one batch is one row of chunks, so a batch is written once and whole, and
reading one layer of one persona touches only its own chunks. A row of ``done`` flags, written after the data, tells a
resumed run where to go on. A checksum a batch and layer, and one of the labels, tell whether what was written is still there.
"""

import json
import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import xarray as xr
import zarr

from utils.activations.integrity import LABELS, checksum, digest_labels, label_arrays
from utils.options import Position

VERSION = 1
NAME = "activations"


# What damaged metadata and chunks raise when they are read.
UNREADABLE = (RuntimeError, ValueError, OSError, KeyError, TypeError)


class ActivationStore:
    """An open store; rows are statements in the order of the batch plan."""

    def __init__(self, path: Path):
        self.path = path
        self.group = zarr.open_group(path, mode="r+")
        self.config: dict[str, Any] = dict(self.group.attrs["config"])  # type: ignore[arg-type]
        self.batch_rows = cast(int, self.group.attrs["batch_rows"])
        self.labels = {name: self._read(name) for name in LABELS}
        self.n_rows, n_batches = self.group["key"].shape[0], self.group["done"].shape[0]  # type: ignore[union-attr]
        done = self._read("done")
        self.done = np.zeros(n_batches, bool) if done is None else done.copy()
        self._checksums = self._read("checksum")
        self.keys = [] if (keys := self.labels["key"]) is None else [str(key) for key in keys]

    @property
    def finished(self) -> bool:
        """Whether every planned batch was written, and its labels are as they were, and all its chunks are there."""
        n_chunks = len(self.done) * math.prod(self.group[NAME].shape[:-2])  # type: ignore[union-attr]
        there = sum(entry.name[0].isdigit() for entry in os.scandir(self.path / NAME))
        return bool(self.done.all()) and self.labels_intact and there >= n_chunks

    @property
    def labels_intact(self) -> bool:
        """Whether the labels are those that were written; of a store without a digest, whether they can be read."""
        if any(values is None for values in self.labels.values()):
            return False
        held = self.group.attrs.get("labels")
        return held is None or held == digest_labels(self.labels)  # type: ignore[arg-type]

    def finished_keys(self) -> dict[str, int]:
        """Rows that are there, by the key of their prompt."""
        absent = {int(row) for rows in self.missing() for row in rows}
        return {key: row for row, key in enumerate(self.keys) if row not in absent}

    def damaged(self) -> list[int]:
        """The batches that are marked as written and are not as they were written, or cannot be read; nothing is changed."""
        return [batch for batch, whole in enumerate(self._check()) if not whole and self.done[batch]]

    def missing(self) -> list[np.ndarray]:
        """The rows that are still to be written, batch by batch; of a batch that is there in part, those at its end.

        Everything is read. A batch that was written whole and not marked, because the program was killed in between, is
        marked now; one that is marked and is not as it was written is taken back.
        """
        found = []
        for batch, whole in enumerate(self._check()):
            first, last = self._rows(batch)
            if whole:
                if not self.done[batch]:
                    self._mark(batch)
                continue
            n_there = 0 if self.done[batch] else self._n_there(first, last)
            if self.done[batch] or not n_there:
                self._take_back(batch)
            found.append(np.arange(first + n_there, last))
        return found

    def write(self, rows: np.ndarray, values: np.ndarray) -> None:
        """Write consecutive rows of one batch, ([position,] layer, row, node), and mark the batch as done at its end."""
        batch, stop = int(rows[0]) // self.batch_rows, int(rows[-1]) + 1
        self.group[NAME][..., int(rows[0]) : stop, :] = values  # type: ignore[index]
        if stop == self._rows(batch)[1]:
            self._mark(batch)

    def read_rows(self, rows: np.ndarray) -> np.ndarray:
        """Read rows of the plan: ([position,] layer, row, node)."""
        return self.group[NAME].oindex[..., rows, slice(None)]  # type: ignore[union-attr]

    def _rows(self, batch: int) -> tuple[int, int]:
        return batch * self.batch_rows, min((batch + 1) * self.batch_rows, self.n_rows)

    def _read(self, name: str) -> np.ndarray | None:
        """An array of the store; None where it is not there or cannot be read."""
        try:
            return np.asarray(self.group[name][:])  # type: ignore[index]
        except UNREADABLE:
            return None

    def _values(self, layers: slice, first: int, last: int) -> np.ndarray | None:
        try:
            return np.asarray(self.group[NAME][..., layers, first:last, :])  # type: ignore[index]
        except UNREADABLE:
            return None

    def _check(self) -> list[bool]:
        """Whether each batch is there as it was written."""
        if not self.labels_intact:
            return [False] * len(self.done)
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            return list(threads.map(self._is_whole, range(len(self.done))))

    def _is_whole(self, batch: int) -> bool:
        first, last = self._rows(batch)
        known = None if self._checksums is None else self._checksums[batch]
        if known is None or not known.any():
            return self._n_there(first, last) == last - first
        values = self._values(slice(None), first, last)
        return values is not None and np.array_equal(checksum(values), known)

    def _mark(self, batch: int) -> None:
        if self._checksums is not None:
            values = self._values(slice(None), *self._rows(batch))
            self._checksums[batch] = 0 if values is None else checksum(values)
            self.group["checksum"][batch] = self._checksums[batch]  # type: ignore[index]
        self.group["done"][batch] = True  # type: ignore[index]
        self.done[batch] = True

    def _take_back(self, batch: int) -> None:
        """Mark a batch as not done, and remove its chunks, which could not be written over if they cannot be read."""
        if self.done[batch]:
            self.group["done"][batch] = False  # type: ignore[index]
            self.done[batch] = False
        if self._checksums is not None and self._checksums[batch].any():
            self._checksums[batch] = 0
            self.group["checksum"][batch] = self._checksums[batch]  # type: ignore[index]
        for chunk in (self.path / NAME).glob(f"*.{batch}.0"):
            chunk.unlink()

    def _n_there(self, first: int, last: int) -> int:
        """How many rows from ``first`` on are there in every layer; values never written are NaN, written ones finite."""
        n_there = 0
        for layers in (slice(0, 1), slice(None)):  # one layer is enough to see that nothing is there
            values = self._values(layers, first, last)
            if values is None:
                return 0
            there = np.isfinite(np.moveaxis(values, -2, 0)).reshape(last - first, -1).all(axis=1)
            n_there = int(np.logical_and.accumulate(there).sum())
            if not n_there:
                break
        return n_there


def open_existing(path: Path) -> ActivationStore | None:
    """Open the store at ``path``; None where there is none.

    Raises
    ------
    ValueError
        There is something else there, or a store of another version.
    """
    if not path.exists():
        return None
    try:
        version = zarr.open_group(path, mode="r").attrs.get("version")
    except (FileNotFoundError, ValueError, KeyError, json.JSONDecodeError):
        raise ValueError(f"{path} is there and is not an activation store; choose another path or remove it.") from None
    if version != VERSION:
        raise ValueError(
            f"{path} is a store of version {version}, this program writes {VERSION}; remove it to compute anew."
        )
    try:
        return ActivationStore(path)
    except KeyError as error:
        raise ValueError(f"{path} is not an activation store: {error} is not there; choose another path.") from None


def open_store(path: str | Path) -> xr.DataArray:
    """Open stored activations, read from disk only where they are used.

    Returns
    -------
    DataArray
        (layer, statement, node), or (position, layer, statement, node), in the order in which the statements were asked for, as
        :func:`utils.activations.extract` returns it. ``attrs`` hold the configuration.

    Raises
    ------
    FileNotFoundError
        There is no store.
    ValueError
        The store is of another version, or not finished.
    """
    store = open_existing(Path(path))
    if store is None:
        raise FileNotFoundError(f"there is no activation store at {path}.")
    if not store.done.all():
        raise ValueError(f"{path} is not finished ({store.done.mean():.0%}); run the extraction again to resume it.")
    if not store.finished:
        raise ValueError(f"{path} is damaged: labels or chunks are missing; run the extraction again to repair it.")
    data = xr.open_zarr(path, chunks=None, consolidated=(Path(path) / ".zmetadata").exists())
    array = data[NAME].drop_vars("key").isel(statement=np.argsort(data["order"].to_numpy(), kind="stable"))
    array.attrs = dict(store.config)
    return label(array)


def split_positions(array: xr.DataArray) -> dict[Position, xr.DataArray]:
    """The activations at each token position, (layer, statement, node), in the order in which they were asked for."""
    if "position" not in array.dims:
        return {array.attrs.get("position", "last"): array}
    names = array["position"].to_numpy().tolist()
    # The configuration of one position is what an extraction of it alone would have left.
    return {name: array.sel(position=name, drop=True).assign_attrs(position=name) for name in names}


def holds(path: Path, frame: pd.DataFrame, config: Mapping[str, Any] | None = None) -> bool:
    """Whether a store holds exactly these statements, whole and as it was written; with a configuration, made with that.

    Everything in it is read. ``frame`` is as :func:`utils.statements.load_statements` returns it.
    """
    store = open_existing(path)
    if store is None or not store.finished or (config is not None and store.config != config):
        return False
    order = np.argsort(np.asarray(store.labels["order"]), kind="stable")
    asked = label_arrays(frame.assign(key="", order=0), [])
    names = ("statement", "persona", "topic", "direction", "pair", "text")
    same = all(np.array_equal(np.asarray(store.labels[name])[order], asked[name]) for name in names)
    return same and not store.damaged()


def label(array: xr.DataArray) -> xr.DataArray:
    """Make activations selectable by persona, direction, topic and pair, and the nodes of heads by head (from 0)."""
    for name in ("persona", "direction", "topic", "pair"):
        if name not in array.xindexes:
            array = array.set_xindex(name)
    if n_heads := array.attrs.get("n_heads"):
        head = np.repeat(np.arange(n_heads), array.sizes["node"] // n_heads)
        array = array.assign_coords(head=("node", head)).set_xindex("head")
    return array
