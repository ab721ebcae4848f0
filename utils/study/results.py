"""The results of a study folder, read back for notebooks, figures and the report."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import false_discovery_control

from deepscan import ScanRuns
from utils.activations.store import open_store
from utils.nodes.sets import NodeSet, node_sets, null_set_size


@dataclass(frozen=True)
class Study:
    """A study folder. Tables are read when asked for; nothing here writes.

    Attributes
    ----------
    folder
        Where the files are.
    record
        ``study.json``: configuration, versions, timings, sizes, best layer and per-persona results.
    """

    folder: Path
    record: dict[str, Any]

    @property
    def best_layer(self) -> int:
        """The layer at which all personas were scanned, chosen on the ``select`` pairs."""
        return int(self.record["best_layer"])

    @property
    def config(self) -> dict[str, Any]:
        """The options of the study."""
        return self.record["config"]

    @property
    def personas(self) -> list[str]:
        """Personas in the order of the statements."""
        return list(self.layers["persona"].unique())

    @cached_property
    def activations(self) -> xr.DataArray:
        """(layer, statement, node), read from disk where used."""
        return open_store(self.folder / "activations.zarr")

    @cached_property
    def layers(self) -> pd.DataFrame:
        """Divergence per persona and layer, on the ``test`` pairs."""
        return pd.read_parquet(self.folder / "layers.parquet")

    @cached_property
    def layer_stability(self) -> pd.DataFrame:
        """How often random halves of the ``select`` pairs pick each layer."""
        return pd.read_parquet(self.folder / "layer_stability.parquet")

    @cached_property
    def thirds(self) -> pd.DataFrame | None:
        """The verdict on the last third of the layers per persona; None where not all layers were extracted."""
        path = self.folder / "thirds.parquet"
        return pd.read_parquet(path) if path.exists() else None

    @cached_property
    def topics(self) -> pd.DataFrame | None:
        """How far the personas of each topic lie apart from each other; None without a topic of several personas."""
        path = self.folder / "topics.parquet"
        return pd.read_parquet(path) if path.exists() else None

    @cached_property
    def form(self) -> pd.DataFrame:
        """The form baseline per persona."""
        return pd.read_parquet(self.folder / "form.parquet")

    @cached_property
    def detection(self) -> pd.DataFrame:
        """One row a persona and scanned layer, see :func:`summarise`."""
        return pd.read_parquet(self.folder / "detection.parquet")

    @cached_property
    def nodes(self) -> pd.DataFrame:
        """Selection frequency per persona, layer and node."""
        return pd.read_parquet(self.folder / "nodes.parquet")

    @cached_property
    def overlap(self) -> pd.DataFrame:
        """Overlap of every two personas' node sets at the best layer."""
        return pd.read_parquet(self.folder / "overlap.parquet")

    @cached_property
    def selectors(self) -> pd.DataFrame:
        """The node sets compared with equally large ones by simpler methods."""
        return pd.read_parquet(self.folder / "selectors.parquet")

    @cached_property
    def node_stability(self) -> pd.DataFrame | None:
        """The node sets compared over halves of the pairs; None where that was not asked for."""
        path = self.folder / "node_stability.parquet"
        return pd.read_parquet(path) if path.exists() else None

    @cached_property
    def runs(self) -> dict[str, ScanRuns]:
        """The scans at the best layer, by persona."""
        return {persona: ScanRuns.load(self.folder / "scans" / f"{persona}.parquet") for persona in self.personas}

    @cached_property
    def node_sets(self) -> dict[str, NodeSet]:
        """The node sets at the best layer, by persona."""
        return node_sets(self.runs, threshold=self.config["threshold"])


def open_study(folder: str | Path) -> Study:
    """Open a study folder.

    Raises
    ------
    FileNotFoundError
        The folder holds no finished study.
    """
    folder = Path(folder)
    path = folder / "study.json"
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if "best_layer" not in record:
        raise FileNotFoundError(f"{folder} holds no finished study; run `personascope study --out {folder}` first.")
    return Study(folder, record)


def summarise(runs: Mapping[int, Mapping[str, ScanRuns]], *, threshold: float) -> pd.DataFrame:
    """Sum up the scans of every persona and layer.

    Parameters
    ----------
    runs
        By layer, then by persona.
    threshold
        Share of the runs from which a node counts as selected.

    Returns
    -------
    DataFrame
        One row a persona and layer. ``p_value`` is the permutation p-value of the experiment, ``p_adjusted`` the same
        after Benjamini–Hochberg over all rows. ``score``, ``precision`` and ``recall`` are means over the mixed runs with
        the 5th and 95th percentile of the runs as ``_low`` and ``_high``; ``null_score`` is the mean under flipped sides.
        ``chance`` is the precision of a random choice of records. ``node_set`` is the size of the node set,
        ``null_node_set`` its mean size under flipped sides. ``alpha`` is the median threshold,
        ``n_records`` and ``n_nodes`` are mean sizes of the subset that a run returned.
    """
    rows = []
    for layer, by_persona in runs.items():
        for persona, scanned in by_persona.items():
            mixed = scanned.table[scanned.table["kind"] == "mixed"]
            null = scanned.table[scanned.table["kind"] == "null"]
            config = scanned.config
            row = {"persona": persona, "layer": layer, "p_value": scanned.p_value, "p_adjusted": np.nan}
            for name in ("score", "precision", "recall"):
                low, high = mixed[name].quantile([0.05, 0.95])
                row |= {name: mixed[name].mean(), f"{name}_low": low, f"{name}_high": high}
            row |= {
                "null_score": null["score"].mean(),
                "chance": config["n_anomalous"] / (config["n_clean"] + config["n_anomalous"]),
                "auroc": mixed["auroc"].mean(),
                "alpha": mixed["alpha"].median(),
                "n_records": mixed["n_records"].mean(),
                "n_nodes": mixed["n_nodes"].mean(),
                "node_set": len(node_sets({persona: scanned}, threshold=threshold)[persona]),
                "null_node_set": null_set_size(scanned, threshold=threshold) if config["n_permutations"] else np.nan,
                "n_background": config["n_background"],
                "n_clean": config["n_clean"],
                "n_anomalous": config["n_anomalous"],
            }
            rows.append(row)
    table = pd.DataFrame(rows)
    return table.assign(p_adjusted=false_discovery_control(table["p_value"]))
