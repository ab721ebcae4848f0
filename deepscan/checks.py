"""Checks of arguments that several functions share. Each says what was wrong, what was expected and what to do."""

from collections.abc import Sequence
from typing import get_args

import numpy as np


def check_choice(value: object, name: str, literal: object) -> None:
    """Raise unless ``value`` is one of the strings of a ``Literal``."""
    choices = get_args(literal)
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, choices))}")


def check_integer(value: object, name: str, *, minimum: int) -> int:
    """Whole number of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < minimum:
        raise ValueError(f"{name} is {value!r}; expected a whole number of at least {minimum}")
    return int(value)


def check_activations(values: object, name: str, *, n_nodes: int | None = None) -> np.ndarray:
    """Matrix (records, nodes) of finite numbers with at least one node; float16, float32 and float64 are kept."""
    array = np.asarray(values)
    if array.ndim != 2:
        raise ValueError(f"{name} has shape {array.shape}; expected two axes, (records, nodes)")
    if array.shape[1] == 0:
        raise ValueError(f"{name} has no nodes; expected (records, nodes) with at least one node")
    if n_nodes is not None and array.shape[1] != n_nodes:
        raise ValueError(f"{name} has {array.shape[1]} nodes; expected {n_nodes}, as many as its background")
    if array.dtype.kind in "iub":
        array = array.astype(np.float64)
    if array.dtype not in (np.float16, np.float32, np.float64):
        raise ValueError(f"{name} has dtype {array.dtype}; expected float16, float32 or float64")
    # A NaN makes both extremes NaN, so no mask of the size of the input is needed.
    if array.size and not (np.isfinite(array.min()) and np.isfinite(array.max())):
        bad = np.argwhere(~np.isfinite(array))[0]
        raise ValueError(f"{name} holds NaN or inf, first at record {bad[0]}, node {bad[1]}; remove or repair it")
    return array


def check_matrix(values: object, name: str) -> np.ndarray:
    """Matrix (records, nodes) of float32 or float64, neither axis empty; its values are checked where they are read."""
    array = np.asarray(values)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{name} has shape {array.shape}; expected (records, nodes), at least one of each")
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)


def check_probabilities(values: np.ndarray, name: str) -> None:
    """Raise unless every value is in [0, 1]; a NaN makes both extremes NaN."""
    low, high = values.min(), values.max()
    if not (low >= 0.0 and high <= 1.0):
        wrong = "NaN" if np.isnan(low) else f"values from {low} to {high}"
        raise ValueError(f"{name} holds {wrong}; expected p-values in [0, 1]")


def check_groups(groups: Sequence | np.ndarray, name: str, *, n_records: int) -> np.ndarray:
    """One label a record."""
    labels = np.asarray(groups)
    if labels.shape != (n_records,):
        raise ValueError(f"{name} has shape {labels.shape}; expected ({n_records},), one label a record")
    return labels


def as_generator(rng: int | np.integer | np.random.Generator) -> np.random.Generator:
    """Generator from a seed, or the one given."""
    return rng if isinstance(rng, np.random.Generator) else np.random.default_rng(check_integer(rng, "rng", minimum=0))
