"""What a store knows of what it holds: checksums of its values, and a digest of its labels."""

import hashlib
import json
import zlib
from collections.abc import Mapping

import numpy as np
import pandas as pd

# Labels of the rows, and the columns of a plan that they are taken from.
COLUMNS = {"statement": "id", "persona": "persona", "topic": "topic", "direction": "direction", "pair": "pair"}
COLUMNS |= {"text": "statement", "key": "key", "order": "order"}
LABELS = ("layer", *COLUMNS)


def checksum(values: np.ndarray) -> np.ndarray:
    """A checksum a layer (of every position), uint32."""
    layers = values.reshape(-1, *values.shape[-2:])
    return np.array([zlib.crc32(np.ascontiguousarray(layer).data) for layer in layers], np.uint32)


def label_arrays(rows: pd.DataFrame, layers: list[int]) -> dict[str, np.ndarray]:
    """The labels of a plan as a store holds them; what is missing is an empty text."""
    held = {
        name: rows[column].to_numpy() if name == "order" else rows[column].fillna("").astype(str).to_numpy(dtype=str)
        for name, column in COLUMNS.items()
    }
    return {"layer": np.array(layers), **held}


def digest_labels(labels: Mapping[str, np.ndarray]) -> str:
    """A digest of all labels of a store, row by row."""
    text = json.dumps({name: np.asarray(labels[name]).tolist() for name in LABELS})
    return hashlib.sha256(text.encode()).hexdigest()[:20]
