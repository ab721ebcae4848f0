"""Laying out a store on disk: its arrays, labels and metadata, before any value is there."""

import math
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pandas as pd
import xarray as xr
import zarr

from utils.activations.integrity import COLUMNS, digest_labels, label_arrays
from utils.activations.store import NAME, UNREADABLE, VERSION, ActivationStore


def restore_labels(store: ActivationStore, rows: pd.DataFrame, layers: list[int]) -> ActivationStore | None:
    """Write the labels of a damaged store anew, where the plan is the one that it was laid out with; else None."""
    held = label_arrays(rows, layers)
    if store.group.attrs.get("labels") != digest_labels(held):
        return None
    try:
        for name, values in held.items():
            for chunk in (store.path / name).glob("[0-9]*"):
                chunk.unlink()
            store.group[name][:] = values  # type: ignore[index]
    except UNREADABLE:
        return None
    restored = ActivationStore(store.path)
    return restored if restored.labels_intact else None


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
    held = label_arrays(rows, layers)
    coords = {name: ("statement", held[name]) for name in COLUMNS if name not in ("statement", "order")}
    several_positions = {"position": positions} if positions else {}
    labels = xr.Dataset(
        {"order": ("statement", held["order"])},
        coords=coords | {name: held[name] for name in ("layer", "statement")} | several_positions,
        attrs={"config": dict(config), "version": VERSION, "batch_rows": batch_rows, "labels": digest_labels(held)},
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
        compressors=numcodecs.Zstd(level=0, checksum=True),
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
    n_sums = math.prod(several) * len(layers)
    group.create_array(
        "checksum",
        shape=(n_batches, n_sums),
        chunks=(1, n_sums),
        dtype="uint32",
        fill_value=None,
        attributes={"_ARRAY_DIMENSIONS": ["batch", "sum"]},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(group.store)
    if path.exists():
        shutil.rmtree(path)
    scratch.rename(path)
    return ActivationStore(path)
