"""Activations on disk: a Zarr group that is written batch by batch and that xarray opens without this project.

The rows of the store follow the batch plan: one batch is one row of chunks, so a batch is written once and whole, and
reading one layer of one persona touches only its own chunks. A row of ``done`` flags, written after the data, tells a
resumed run where to go on.
"""

import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import xarray as xr
import zarr

VERSION = 1
NAME = "activations"


class ActivationStore:
    """An open store; rows are statements in the order of the batch plan."""

    def __init__(self, path: Path):
        self.path = path
        self.group = zarr.open_group(path, mode="r+")
        self.config: dict[str, Any] = dict(self.group.attrs["config"])  # type: ignore[arg-type]
        self.batch_rows = cast(int, self.group.attrs["batch_rows"])
        self.done = np.asarray(self.group["done"][:])  # type: ignore[index]
        self.keys = [str(key) for key in self.group["key"][:]]  # type: ignore[index]

    @property
    def finished(self) -> bool:
        """Whether every planned batch is there."""
        return bool(self.done.all())

    def finished_keys(self) -> dict[str, int]:
        """Rows that are there, by the key of their prompt."""
        absent = {int(row) for rows in self.missing() for row in rows}
        return {key: row for row, key in enumerate(self.keys) if row not in absent}

    def missing(self) -> list[np.ndarray]:
        """The rows that are still to be written, batch by batch; of a batch that is there in part, those at its end.

        A batch that was written whole and not marked, because the program was killed in between, is marked now.
        """
        size = self.batch_rows
        found = []
        for batch in np.flatnonzero(~self.done):
            first, last = int(batch) * size, min((int(batch) + 1) * size, len(self.keys))
            if len(rows := np.arange(first + self._n_there(first, last), last)):
                found.append(rows)
            else:
                self._mark(int(batch))
        return found

    def write(self, rows: np.ndarray, values: np.ndarray) -> None:
        """Write consecutive rows of one batch, ([position,] layer, row, node), and mark the batch as done at its end."""
        size = self.batch_rows
        batch, stop = int(rows[0]) // size, int(rows[-1]) + 1
        self.group[NAME][..., int(rows[0]) : stop, :] = values  # type: ignore[index]
        if stop == min((batch + 1) * size, len(self.keys)):
            self._mark(batch)

    def _mark(self, batch: int) -> None:
        self.group["done"][batch] = True  # type: ignore[index]
        self.done[batch] = True

    def _n_there(self, first: int, last: int) -> int:
        """How many rows from ``first`` on are there in every layer; values never written are NaN, written ones finite."""
        n_there = 0
        for layers in (slice(0, 1), slice(None)):  # one layer is enough to see that nothing is there
            values = np.asarray(self.group[NAME][..., layers, first:last, :])  # type: ignore[index]
            there = np.isfinite(np.moveaxis(values, -2, 0)).reshape(last - first, -1).all(axis=1)
            n_there = int(np.logical_and.accumulate(there).sum())
            if not n_there:
                break
        return n_there

    def read_rows(self, rows: np.ndarray) -> np.ndarray:
        """Read rows of the plan: ([position,] layer, row, node)."""
        return self.group[NAME].oindex[..., rows, slice(None)]  # type: ignore[union-attr]


def create_store(
    path: Path,
    *,
    layers: list[int],
    d_node: int,
    rows: pd.DataFrame,
    batch_rows: int,
    dtype: str,
    config: Mapping[str, Any],
) -> ActivationStore:
    """Lay out an empty store for the rows of a batch plan, replacing what is at ``path``.

    Parameters
    ----------
    rows
        One row a statement in the order of the plan, with the columns ``id, persona, topic, direction, pair,
        statement, key, order``; ``order`` is the statement's place in what the caller asked for.
    batch_rows
        Rows a batch, which is also the chunk size.
    config
        What the activations were computed with; JSON values only. Where its ``position`` is a list, the array has an axis
        of positions before that of layers.
    """
    positions = config.get("position")
    positions = positions if isinstance(positions, list) else []
    scratch = path.with_name(f".{path.name}.new")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.parent.mkdir(parents=True, exist_ok=True)
    text = {
        name: ("statement", rows[column].fillna("").astype(str).to_numpy(dtype=str))
        for name, column in {
            "persona": "persona",
            "topic": "topic",
            "direction": "direction",
            "pair": "pair",
            "text": "statement",
            "key": "key",
        }.items()
    }
    labels = xr.Dataset(
        {"order": ("statement", rows["order"].to_numpy())},
        coords={
            **({"position": positions} if positions else {}),
            "layer": layers,
            "statement": rows["id"].to_numpy(dtype=str),
            **text,
        },
        attrs={"config": dict(config), "version": VERSION, "batch_rows": batch_rows},
    )
    labels.to_zarr(scratch, mode="w", zarr_format=2, consolidated=False)
    group = zarr.open_group(scratch, mode="r+")
    several = (len(positions),) if positions else ()
    group.create_array(
        NAME,
        shape=(*several, len(layers), len(rows), d_node),
        chunks=(*(1 for _ in several), 1, min(batch_rows, len(rows)), d_node),
        dtype=dtype,
        fill_value=float("nan"),
        attributes={"_ARRAY_DIMENSIONS": [*(["position"] if positions else []), "layer", "statement", "node"]},
    )
    n_batches = -(-len(rows) // batch_rows)
    # Without a fill value xarray reads the flags as they are and not as numbers that may be missing.
    done = group.create_array(
        "done",
        shape=(n_batches,),
        chunks=(1,),
        dtype=bool,
        fill_value=None,
        attributes={"_ARRAY_DIMENSIONS": ["batch"]},
    )
    done[:] = np.zeros(n_batches, bool)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(group.store)
    if path.exists():
        shutil.rmtree(path)
    scratch.rename(path)
    return ActivationStore(path)


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
    if not store.finished:
        raise ValueError(f"{path} is not finished ({store.done.mean():.0%}); run the extraction again to resume it.")
    data = xr.open_zarr(path, chunks=None, consolidated=True)
    array = data[NAME].drop_vars("key").isel(statement=np.argsort(data["order"].to_numpy(), kind="stable"))
    array.attrs = dict(store.config)
    return label(array)


def label(array: xr.DataArray) -> xr.DataArray:
    """Make activations selectable by persona, direction, topic and pair, and the nodes of heads by head (from 0)."""
    for name in ("persona", "direction", "topic", "pair"):
        if name not in array.xindexes:
            array = array.set_xindex(name)
    if n_heads := array.attrs.get("n_heads"):
        head = np.repeat(np.arange(n_heads), array.sizes["node"] // n_heads)
        array = array.assign_coords(head=("node", head)).set_xindex("head")
    return array
