"""Several studies side by side: the same personas in other models, or by other statements.

What is compared has a meaning in every model: curves over relative depth (layer k of L at k/L), verdicts, detection, and
how far the node sets of two personas overlap within one study. Node numbers of different models have nothing to do with
each other and are never compared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from utils.comparison.differences import list_differences
from utils.study.results import Study

LEVEL = 0.05


@dataclass(frozen=True)
class Comparison:
    """Tables of several studies, each with a column ``study``.

    Attributes
    ----------
    curves
        ``Study.layers`` of every study, with ``depth``: the layer over the last layer, 0 to 1.
    thirds
        One row a study and persona, as of :func:`utils.layers.layer_thirds`. ``status``: judged, no such persona, or not
        judged (not every layer was extracted, or the study is older than the verdict).
    detection
        One row a study and persona at the layer that was scanned: ``p_value``, ``p_adjusted`` (Benjamini–Hochberg within the
        study), ``precision``, ``recall``, ``auroc`` (individual scans only) and node set sizes as of
        :func:`utils.nodes.scans.summarise`; ``probe_auroc`` with its 95 % interval; the form baseline; ``n_h1, n_h0`` test
        statements. ``status``: scanned or no such persona.
    overlaps
        One row a study and pair of personas, as of :func:`utils.nodes.overlap`; NaN where a persona is missing.
    summary
        One row a study: model, sizes, the layer that was scanned and its depth; ``n_told`` personas that the
        separation test tells apart and ``n_found`` that the scan finds (adjusted p ≤ 0.05),
        and ``n_shared_found`` of the ``n_shared`` personas that all studies hold; ``smallest_p_alone``, the smallest adjusted
        p-value that a persona can have if no other is found; and the verdict on the model with d and its 95 % interval.
    differences
        What was not the same in all studies, see :func:`utils.comparison.differences.list_differences`. Look here first.
    configurations
        By study: options, versions and what the activations were made with.
    """

    curves: pd.DataFrame
    thirds: pd.DataFrame
    detection: pd.DataFrame
    overlaps: pd.DataFrame
    summary: pd.DataFrame
    differences: pd.DataFrame
    configurations: dict[str, dict[str, Any]]

    @property
    def studies(self) -> list[str]:
        """The names of the studies, in their order."""
        return list(self.configurations)

    @property
    def personas(self) -> list[str]:
        """All personas that any study holds."""
        return list(self.detection["persona"].unique())


def compare_studies(studies: Mapping[str, Study]) -> Comparison:
    """Put studies side by side.

    Parameters
    ----------
    studies
        By name, in the order in which they are to be shown.

    Raises
    ------
    ValueError
        Fewer than two studies, or one that has no persona in common with any other.
    """
    _check_studies(studies)
    held = {name: study.personas for name, study in studies.items()}
    personas = list(dict.fromkeys(persona for own in held.values() for persona in own))
    shared = [persona for persona in personas if all(persona in own for own in held.values())]
    detection = _align({name: _read_detection(study) for name, study in studies.items()}, personas)
    thirds = _align({name: _read_thirds(study) for name, study in studies.items()}, personas)
    missing = np.array([persona not in held[name] for name in studies for persona in personas])
    unjudged = np.where(missing, "no such persona", "not judged")
    return Comparison(
        curves=pd.concat([_read_curves(study, name) for name, study in studies.items()], ignore_index=True),
        thirds=thirds.assign(status=np.where(thirds["verdict"].isna(), unjudged, "judged")),
        detection=detection.assign(status=np.where(missing, "no such persona", "scanned")),
        overlaps=pd.concat(
            [_read_overlaps(study, name, personas) for name, study in studies.items()], ignore_index=True
        ),
        summary=pd.DataFrame([{"study": name, **_summarise(study, shared)} for name, study in studies.items()]),
        differences=list_differences(studies),
        configurations={name: _describe(study) for name, study in studies.items()},
    )


def _check_studies(studies: Mapping[str, Study]) -> None:
    if len(studies) < 2:
        raise ValueError(f"a comparison takes at least two studies, not {len(studies)}; name another study folder.")
    for name, study in studies.items():
        others = {persona for other in studies if other != name for persona in studies[other].personas}
        if not others.intersection(study.personas):
            raise ValueError(
                f"study {name!r} has no persona in common with the others (it has {', '.join(study.personas)}); "
                "compare studies of the same personas."
            )


def _align(frames: Mapping[str, pd.DataFrame], personas: list[str]) -> pd.DataFrame:
    """Stack frames by study, each with one row for every persona."""
    aligned = [
        frame.set_index("persona").reindex(personas).rename_axis("persona").reset_index().assign(study=name)
        for name, frame in frames.items()
    ]
    return _study_first(pd.concat(aligned, ignore_index=True))


def _read_curves(study: Study, name: str) -> pd.DataFrame:
    depth = study.layers["layer"] / study.record["n_layers"]
    return _study_first(study.layers.assign(study=name, depth=depth))


def _read_thirds(study: Study) -> pd.DataFrame:
    # The record is of the last run; a table may be left from an earlier one.
    if study.record.get("thirds") is not None and study.thirds is not None:
        return study.thirds
    quantities = [f"{name}{end}" for name in ("first", "middle", "last", "d") for end in ("", "_low", "_high")]
    columns = {"persona": "object", "topic": "object", **dict.fromkeys(quantities, "float64"), "verdict": "object"}
    return pd.DataFrame({name: pd.Series(dtype=dtype) for name, dtype in columns.items()})


def _read_detection(study: Study) -> pd.DataFrame:
    scans = study.detection[study.detection["layer"] == study.best_layer]
    layers = study.layers[study.layers["layer"] == study.best_layer]
    columns = ["persona", "layer", "p_value", "p_adjusted", "precision", "precision_low", "precision_high", "recall"]
    columns += ["recall_low", "recall_high", "chance", "auroc", "node_set", "null_node_set", "n_background"]
    columns += ["accuracy", "accuracy_low", "accuracy_high", "separation_p", "separation_p_adjusted"]
    columns += ["calibrated_p", "calibrated_p_adjusted"]
    probe = layers[["persona", "probe_auroc", "probe_auroc_low", "probe_auroc_high"]]
    sizes = pd.DataFrame(study.record["sizes"])[["persona", "test_h1", "test_h0"]]
    table = scans[columns].merge(probe, on="persona", how="left").merge(sizes, on="persona", how="left")
    table = table.rename(columns={"test_h1": "n_h1", "test_h0": "n_h0"})
    if not study.record["has_texts"]:
        return table.assign(form_accuracy=np.nan, gives_away=pd.array([pd.NA] * len(table), dtype="boolean"))
    form = study.form[["persona", "form_accuracy", "gives_away"]].astype({"gives_away": "boolean"})
    return table.merge(form, on="persona", how="left")


def _read_overlaps(study: Study, name: str, personas: Sequence[str]) -> pd.DataFrame:
    """Every pair of all personas, in their order, which may be the other way round in the study."""
    found = study.overlap
    rank = {persona: i for i, persona in enumerate(personas)}
    swapped = (found["a"].map(rank) > found["b"].map(rank)).to_numpy(bool)
    turned = found.rename(columns={"a": "b", "b": "a", "size_a": "size_b", "size_b": "size_a"})[found.columns]
    table = pd.concat([found[~swapped], turned[swapped]]).set_index(["a", "b"])
    pairs = pd.MultiIndex.from_tuples(combinations(personas, 2), names=["a", "b"])
    return _study_first(table.reindex(pairs).reset_index().assign(study=name))


def _summarise(study: Study, shared: Sequence[str]) -> dict[str, Any]:
    record, permutations = study.record, study.config["permutations"]
    scanned = study.detection[study.detection["layer"] == study.best_layer]
    found = scanned[scanned["p_adjusted"] <= LEVEL]
    sizes = pd.DataFrame(record["sizes"])
    thirds = record.get("thirds") or {}
    return {
        "model": record["activations"]["model"],
        "n_layers": record["n_layers"],
        "n_nodes": record["n_nodes"],
        "best_layer": study.best_layer,
        "best_depth": study.best_layer / record["n_layers"] if record["n_layers"] else np.nan,
        "n_personas": len(study.personas),
        "n_told": int((scanned["separation_p_adjusted"] <= LEVEL).sum()),
        "n_found": len(found),
        "n_shared": len(shared),
        "n_shared_found": int(found["persona"].isin(shared).sum()),
        "smallest_n_h1": int(sizes["test_h1"].min()),
        "permutations": permutations,
        "smallest_p_alone": min(1.0, len(study.detection) / (1 + permutations)),
        **{name: np.nan if thirds.get(name) is None else thirds[name] for name in ("d", "d_low", "d_high")},
        "verdict": thirds.get("verdict"),
    }


def _describe(study: Study) -> dict[str, Any]:
    kept = ("config", "versions", "activations", "n_layers", "n_nodes", "best_layer", "sizes")
    return {name: study.record[name] for name in kept}


def _study_first(table: pd.DataFrame) -> pd.DataFrame:
    return table[["study", *table.columns.drop("study")]]
