"""The results of a study folder, read back for notebooks, figures and the report."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from deepscan import ScanRuns
from utils.activations.store import open_store, split_positions
from utils.intervals import LEVEL
from utils.nodes.sets import NodeSet, node_sets
from utils.options import Position
from utils.records import FINISHED, RECORD, is_moving, key_of, read_json
from utils.statements.contrasts import find_contrasts, restrict
from utils.statements.names import ByPersona, find_names

if TYPE_CHECKING:
    from utils.vectors import PersonaVectors


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
    def position(self) -> Position:
        """The token position of the scans; all positions are localized."""
        return self.onset["position"].iloc[0]

    @property
    def personas(self) -> list[str]:
        """Personas in the order of the statements."""
        return list(self.layers["persona"].unique())

    def __repr__(self) -> str:
        scanned = self.detection[self.detection["layer"] == self.best_layer]
        found = (scanned["separation_p_adjusted"] <= LEVEL).sum()
        model = self.record["activations"]["model"] or "own activations"
        return (
            f"Study({str(self.folder)!r}: {model}, {len(self.personas)} personas, "
            f"{found} told apart at layer {self.best_layer})"
        )

    def sel(self, persona: str, *, layer: int | None = None, position: Position | None = None) -> xr.DataArray:
        """(statement, node): activations of a persona's statements at a layer, the best by default, in memory.

        Parameters
        ----------
        persona
            Its name, or its short name as figures show it.
        position
            One of the study's token positions; that of the scans by default.

        Raises
        ------
        ValueError
            An unknown persona, layer or position, with near matches.
        """
        (persona,) = find_names("persona", [persona], self.personas)
        layer = self.best_layer if layer is None else layer
        held = self.activations_by_position
        if (position := position or self.position) not in held:
            raise ValueError(f"the study has no token position {position!r}; it has {', '.join(held)}.")
        acts = held[position]
        if layer not in acts["layer"].to_numpy():
            raise ValueError(
                f"the study has no activations of layer {layer}; it has {sorted(acts['layer'].to_numpy().tolist())}."
            )
        return acts.sel(layer=layer)[np.flatnonzero(acts["persona"].to_numpy() == persona)].compute()

    @cached_property
    def activations(self) -> xr.DataArray:
        """(layer, statement, node) at the position of the scans, read from disk where used."""
        return next(iter(self.activations_by_position.values()))

    @cached_property
    def activations_by_position(self) -> dict[Position, xr.DataArray]:
        """The activations at every token position of the study, that of the scans first."""
        found = split_positions(open_store(self.folder / "activations.zarr"))
        if self.record.get("statements", held := key_of_statements(next(iter(found.values())))) != held:
            raise ValueError(
                f"the activations in {self.folder} are of other statements than its tables: a study with other options was not "
                "finished there. Run it again, or the earlier one."
            )
        return found

    @cached_property
    def localization(self) -> pd.DataFrame:
        """Pair accuracy per position, persona and layer, on the ``test`` pairs, see :func:`utils.layers.layer_accuracy`."""
        return self._read("localization")

    @cached_property
    def onset(self) -> pd.DataFrame:
        """Where each persona begins to be told apart, per position, see :func:`utils.layers.layer_onset`."""
        return self._read("onset")

    @cached_property
    def node_tests(self) -> pd.DataFrame:
        """Every node of every persona at the best layer, tested; see :func:`utils.nodes.compare_sides`."""
        return self._read(f"tests/layer-{self.best_layer}")

    @cached_property
    def agreement(self) -> pd.DataFrame:
        """How far the rules for node sets agree, persona by persona."""
        return self._read("agreement")

    @cached_property
    def recurrence(self) -> pd.DataFrame:
        """Whether disjoint halves of the pairs rank the same nodes first, by rule and persona."""
        return self._read("recurrence")

    @cached_property
    def power(self) -> pd.DataFrame | None:
        """How many personas each test finds with fewer pairs; None where that was not asked for."""
        return self._read("power") if (self.folder / "power.parquet").exists() else None

    @cached_property
    def maps(self) -> pd.DataFrame | None:
        """Statements as points at every layer, see :func:`utils.layers.map_statements`; None in studies made without."""
        return self._read("maps") if (self.folder / "maps.parquet").exists() else None

    @cached_property
    def paper(self) -> pd.DataFrame | None:
        """The scans by the paper's protocol; None where these were not asked for."""
        return self._read("paper") if (self.folder / "paper.parquet").exists() else None

    def _read(self, name: str) -> pd.DataFrame:
        return pd.read_parquet(self.folder / f"{name}.parquet")

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
        """The answers about the last third of the layers per persona, by pair accuracy; None where not all were extracted."""
        path = self.folder / "thirds.parquet"
        return pd.read_parquet(path).query("metric == 'accuracy'").reset_index(drop=True) if path.exists() else None

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
        return ByPersona(
            {persona: ScanRuns.load(self.folder / "scans" / f"{persona}.parquet") for persona in self.personas}
        )

    @cached_property
    def node_sets(self) -> dict[str, NodeSet]:
        """The node sets at the best layer, by persona."""
        return ByPersona(node_sets(self.runs, threshold=self.config["threshold"]))

    @cached_property
    def vectors(self) -> "PersonaVectors":
        """Mean differences by layer and persona, fitted on the ``fit`` part of :func:`utils.vectors.split_for_steering`.

        The other parts are left to choose and to measure on; for vectors of all pairs, see
        :func:`utils.vectors.persona_vectors`.
        """
        # Imported here: torch takes seconds that reading tables need not spend.
        from utils.vectors.doses import split_for_steering
        from utils.vectors.fit import persona_vectors

        acts = self.activations
        part = split_for_steering(acts, rng=self.config["seed"])
        contrasts = find_contrasts(acts, contrast=self.config["contrast"])
        return persona_vectors(acts, [restrict(contrast, part == "fit") for contrast in contrasts])


def open_study(folder: str | Path) -> Study:
    """Open a study folder.

    Raises
    ------
    FileNotFoundError
        The folder holds no finished study.
    """
    folder = Path(folder)
    record = read_json(folder / RECORD)
    if FINISHED not in record or is_moving(folder):
        raise FileNotFoundError(f"{folder} holds no finished study; run `personascope study --out {folder}` first.")
    return Study(folder, record)


def key_of_statements(acts: xr.DataArray) -> str:
    """Changes with the statements of activations, their labels and their order."""
    return key_of([acts[name].to_numpy() for name in ("statement", "persona", "direction", "pair", "text")])


def key_of_study(study: Study) -> str:
    """Changes with the activations of a study, with its statements, and with its options."""
    acts = study.activations
    return key_of(acts.attrs, acts["statement"].to_numpy(), acts["text"].to_numpy(), study.config, study.best_layer)
