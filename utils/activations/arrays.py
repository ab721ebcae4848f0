"""Start from arrays: activations that were extracted elsewhere, one ``.npy`` file a persona and direction.

Files are called ``<persona>_positive.npy`` and ``<persona>_negative.npy`` and hold (n_statements, n_nodes) for one
layer, or (n_layers, n_statements, n_nodes). Layers are numbered from 1 unless they are named.
"""

import hashlib
import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float

from utils.activations.layout import create_store, restore_metadata
from utils.activations.store import open_existing, open_store
from utils.folders import check_room, hold_store
from utils.records import key_of
from utils.statements.load import topic_of
from utils.statements.names import find_names

_NAME = re.compile(r"(?P<persona>.+)[_.-](?P<direction>positive|negative)\.npy")


def store_arrays(
    folder: Path, *, personas: Sequence[str] | None = None, layers: Sequence[int] | None = None
) -> tuple[pd.DataFrame, Callable[[Path, bool], xr.DataArray]]:
    """Read a folder of arrays.

    Returns
    -------
    frame
        One row a statement, as :func:`utils.statements.load_statements` returns it, without texts and pairs; ``attrs`` hold
        the ``layers``.
    write
        ``write(path, progress)`` puts the arrays into a store at ``path`` and opens it.

    Raises
    ------
    FileNotFoundError, ValueError
        No such folder, no such files, shapes that do not go together, or a value that is not finite.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder} of activation arrays.")
    found = {match.groups(): path for path in sorted(folder.iterdir()) if (match := _NAME.fullmatch(path.name))}
    if not found:
        raise ValueError(f"{folder} holds no files called <persona>_positive.npy and <persona>_negative.npy.")
    if personas is not None:
        names = find_names("persona", personas, [persona for persona, _ in found])
        found = {key: path for key, path in found.items() if key[0] in names}
    arrays = {key: read_array(path) for key, path in found.items()}
    shapes = {(array.shape[0], array.shape[2]) for array in arrays.values()}
    if len(shapes) > 1:
        raise ValueError(f"the arrays in {folder} have different layers or nodes: {sorted(shapes)} (layers, nodes).")
    ((n_layers, _),) = shapes
    numbers = list(layers) if layers is not None else list(range(1, n_layers + 1))
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"the layers {', '.join(map(str, numbers))} are not all different; name each once.")
    if len(numbers) != n_layers:
        raise ValueError(f"{len(numbers)} layers are named and the arrays have {n_layers}.")
    rows = [
        {
            "id": f"{persona}-{direction}-{i:05d}",
            "persona": persona,
            "topic": topic_of(persona),
            "direction": direction,
            "statement": "",
            "pair": None,
        }
        for (persona, direction), array in arrays.items()
        for i in range(array.shape[1])
    ]
    frame = pd.DataFrame(rows).astype({"pair": "string"})
    frame.attrs["layers"] = numbers
    values = np.concatenate(list(arrays.values()), axis=1)
    _check_finite(values, frame, numbers)
    return frame, partial(_write, values, frame, numbers, folder.name)


def read_array(path: Path) -> Float[np.ndarray, "layers statements nodes"]:
    """Activations in a ``.npy`` file, a missing axis of layers added; float32.

    Raises
    ------
    FileNotFoundError, ValueError
        There is no such file, it is not a plain array, or not of two or three axes of floats.
    """
    _check_header(path)
    array = np.load(path, allow_pickle=False)
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or not np.issubdtype(array.dtype, np.floating):
        raise ValueError(
            f"{path.name} has shape {array.shape} and dtype {array.dtype}; expected floats of shape "
            "(n_statements, n_nodes) or (n_layers, n_statements, n_nodes)."
        )
    if not array.size:
        raise ValueError(f"{path.name} holds nothing: its shape is {array.shape}; expected statements and nodes.")
    return array.astype(np.float32, copy=False)


def _check_header(path: Path) -> None:
    """Refuse a file that is not what its header says before memory is asked for."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    with path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
        except ValueError as error:
            raise ValueError(
                f"{path.name} is not a plain .npy array ({str(error).splitlines()[0]}); save it again."
            ) from None
        promised, held = math.prod(shape) * dtype.itemsize, path.stat().st_size - file.tell()
    if dtype.hasobject or promised != held:
        reason = (
            "it holds Python objects" if dtype.hasobject else f"its header says {promised:,} bytes, it holds {held:,}"
        )
        raise ValueError(f"{path.name} is not a plain .npy array ({reason}); save it again.")


def _check_finite(values: np.ndarray, frame: pd.DataFrame, layers: list[int]) -> None:
    if not np.isfinite(values).all():
        layer, row, _ = np.argwhere(~np.isfinite(values))[0]
        raise ValueError(
            f"the activation of statement {frame['id'].iloc[row]!r} at layer {layers[layer]} is not finite."
        )


def _write(
    values: np.ndarray, frame: pd.DataFrame, layers: list[int], name: str, path: Path, _progress: bool
) -> xr.DataArray:
    content = hashlib.sha256(np.ascontiguousarray(values).data).hexdigest()
    config = {"model": f"arrays in {name}", "fingerprint": key_of(frame, layers, content, values.shape)}
    with hold_store(path):
        restore_metadata(path)
        older = open_existing(path)
        if older is not None and older.finished and older.config == config and not older.damaged():
            return open_store(path)
        if older is not None and "template" in older.config:
            raise ValueError(f"{path} holds activations of a model; choose another folder for the study.")
        check_room(path.parent, values.nbytes)
        rows = frame.assign(order=range(len(frame)), key=frame["id"])
        store = create_store(
            path, layers=layers, d_node=values.shape[2], rows=rows, batch_rows=64, dtype="float32", config=config
        )
        for batch in store.missing():
            store.write(batch, values[:, batch])
    return open_store(path)
