"""A study's tables, node sets and activations in files that other programs read."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from utils.folders import check_folder, check_room
from utils.nodes.significance import NODE_RULES, rule_sets
from utils.records import write_beside
from utils.study.results import Study


def export_study(study: Study, folder: Path, *, activations: bool = False) -> list[Path]:
    """Write every table of a study as CSV, and ``node_sets.csv``.

    Parameters
    ----------
    folder
        Made where it is missing; files of the same names are replaced.
    activations
        Also ``<persona>_positive.npy`` and ``<persona>_negative.npy``, (layers, statements, nodes) in float32 at the
        position of the scans. Statements of a pair are in the same row of both. A study can start from them.

    Returns
    -------
    list of Path
        What was written.

    Raises
    ------
    OSError
        The folder cannot be written to, or its disk has no room for the activations.
    """
    held = study.activations if activations else None
    check_folder(folder)
    if held is not None:
        check_room(folder, held.nbytes)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, table in _list_tables(study):
        written.append(folder / f"{name}.csv")
        with write_beside(written[-1]) as beside:
            table.to_csv(beside, index=False)
    if held is not None:
        for persona in study.personas:
            own = held.isel(statement=np.flatnonzero(held["persona"].to_numpy() == persona))
            own = own.isel(statement=np.argsort(own["pair"].fillna("").to_numpy().astype(str), kind="stable"))
            for direction in ("positive", "negative"):
                side = own.isel(statement=np.flatnonzero(own["direction"].to_numpy() == direction))
                written.append(folder / f"{persona}_{direction}.npy")
                with write_beside(written[-1]) as beside, beside.open("wb") as file:
                    np.save(file, side.to_numpy().astype(np.float32))
    return written


def node_table(study: Study) -> pd.DataFrame:
    """The node sets at the scanned layer, by every rule.

    Returns
    -------
    DataFrame
        ``persona``; ``rule``: "scan", or one of :data:`utils.nodes.significance.NODE_RULES`; ``layer, node, sign``
        (+1: the persona's statements lie above); ``frequency``, share of the scan's runs that selected the node; ``effect``
        with its interval ``low, high``, in standard deviations within the sides.
    """
    found = {"scan": study.node_sets, **{rule: rule_sets(study.node_tests, rule) for rule in NODE_RULES}}
    rows = [
        (persona, rule, study.best_layer, node, sign)
        for persona in study.personas
        for rule, sets in found.items()
        for node, sign in sorted(sets[persona])
    ]
    table = pd.DataFrame(rows, columns=["persona", "rule", "layer", "node", "sign"])
    scanned = study.nodes[study.nodes["layer"] == study.best_layer][["persona", "node", "frequency"]]
    tested = study.node_tests[["persona", "node", "effect", "low", "high"]]
    for each in (scanned, tested):
        table = table.merge(each, on=["persona", "node"], how="left", validate="many_to_one")
    return table


def _list_tables(study: Study) -> Iterator[tuple[str, pd.DataFrame]]:
    for path in sorted(study.folder.glob("*.parquet")):
        yield path.stem, pd.read_parquet(path)
    yield "node_tests", study.node_tests
    yield "node_sets", node_table(study)
