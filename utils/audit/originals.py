"""Text files of the original DeepScan: what they do not say, and which of them belong together."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from deepscan import ScanRuns

# What the original calls its files, before what they are of.
_PREFIX = re.compile(r"^(?:adv|clean)_output_")


def set_nodes(
    texts: dict[Path, ScanRuns], known: Sequence[int], n_nodes: int | None
) -> tuple[dict[Path, ScanRuns], list[str]]:
    """The text files with one number of nodes, and what was assumed of it."""
    if not texts or n_nodes is not None:
        return texts, []
    largest = max(runs.n_nodes for runs in texts.values())
    if len(set(known)) == 1 and known[0] >= largest:
        n_nodes, why = known[0], "as many as the other files say"
    else:
        n_nodes, why = largest, "one more than the largest index in the text files"
    note = (
        f"The text files do not say how many nodes the model has: {n_nodes:,} were assumed, {why}; --n-nodes "
        "sets another number. With more nodes independence gives less overlap."
    )
    return {path: replace(runs, config={**runs.config, "n_nodes": n_nodes}) for path, runs in texts.items()}, [note]


def join_clean(texts: Mapping[Path, ScanRuns], named: Mapping[Path, Path]) -> tuple[dict[Path, ScanRuns], list[str]]:
    """Every file of mixed runs with its clean runs, and files of clean runs that belong to none."""
    kinds = {path: set(runs.table["kind"]) for path, runs in texts.items()}
    for mixed, null in named.items():
        if "mixed" not in kinds[mixed] or kinds.get(null) != {"null"}:
            raise ValueError(f"--clean {mixed}={null} takes a text file of mixed runs and one of clean runs only.")
    owners = dict(named)
    free = [path for path, kind in kinds.items() if kind == {"null"} and path not in named.values()]
    for null in free:
        alike = [path for path, kind in kinds.items() if kind == {"mixed"} and stem_of(path) == stem_of(null)]
        if len(alike) == 1 and alike[0] not in owners:
            owners[alike[0]] = null
    joined = {
        path: _join(runs, texts[owners[path]]) if path in owners else runs
        for path, runs in texts.items()
        if path not in owners.values()
    }
    notes = [
        f"The clean runs of {stem_of(mixed)} are those of "
        f"{null.name}{'' if mixed in named else ', by the names of the files'}."
        for mixed, null in owners.items()
    ]
    notes += [
        f"{null.name} holds clean runs only, and belongs to no file of mixed runs; --clean MIXED={null.name} says to which."
        for null in free
        if null not in owners.values()
    ]
    return joined, notes


def _join(mixed: ScanRuns, null: ScanRuns) -> ScanRuns:
    lists: dict[str, Any] = {
        name: [*getattr(mixed, name), *getattr(null, name)] for name in ("nodes", "records", "signs")
    }
    return ScanRuns(pd.concat([mixed.table, null.table], ignore_index=True), config=mixed.config, **lists)


def stated_anomalous(runs: ScanRuns) -> int | None:
    """How many anomalous records a run was given, by the precision and recall that a file states; None where they differ."""
    mixed = runs.table[(runs.table["kind"] == "mixed") & (runs.table["recall"] > 0)]
    counts = (mixed["precision"] * mixed["n_records"] / mixed["recall"]).to_numpy()
    n = np.unique(np.round(counts).astype(int))
    return int(n[0]) if len(n) == 1 and np.allclose(counts, n[0], atol=1e-6) else None


def stem_of(path: Path) -> str:
    """What a file is of: its name without what the original puts before it."""
    return _PREFIX.sub("", path.stem)
