"""Several studies side by side: the same personas in other models, or by other statements.

What is compared has a meaning in every model: pair accuracy and its tests, curves and onsets over relative depth (layer k
of L at k/L), verdicts, and how far the node sets of two personas overlap within one study. All is at the position of each
study's scans. Node numbers of different models have nothing to do with
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
from utils.study.summary import LEVEL

# The tests of a persona, in the order in which they are shown, and their adjusted p-values in the table of detection.
TESTS = {
    "separation": "separation_p_adjusted",
    "calibrated": "calibrated_p_adjusted",
    "scan": "p_adjusted",
}


@dataclass(frozen=True)
class Comparison:
    """Tables of several studies, each with a column ``study``.

    Attributes
    ----------
    curves
        ``Study.layers`` of every study, with ``depth``: the layer over the last layer, 0 to 1; and pair accuracy with its 95 %
        interval and ``accuracy_p_adjusted`` over the layers, as of :func:`utils.layers.layer_accuracy`.
    thirds
        ``Study.thirds`` of every study, by pair accuracy, as of :func:`utils.layers.layer_thirds` and
        :func:`utils.layers.early_separation`. ``status``: judged, no such persona, or not judged (not every layer was
        extracted, or fewer than three).
    detection
        One row a study and persona at the layer that was scanned, p-values adjusted (Benjamini–Hochberg) within the study:
        ``accuracy`` of pairs with its 95 % interval, ``separation_p, calibrated_p`` and the nodes by test
        ``n_family, n_bh, n_calibrated`` as of :func:`utils.nodes.compare_sides`; of the scan ``p_value``, ``precision``,
        ``recall``, ``auroc`` (individual scans only) and node set sizes as of :func:`utils.nodes.scans.summarise`;
        ``probe_auroc`` with its 95 % interval; the form baseline; ``n_h1, n_h0`` test statements. Over all layers:
        ``onset_depth``, the onset of :func:`utils.layers.layer_onset` over the last layer, with its 95 % interval, and
        ``onset_p_adjusted``; an onset says something only where this is small. ``status``: scanned or no such persona.
    overlaps
        One row a study and pair of personas, as of :func:`utils.nodes.overlap`; NaN where a persona is missing.
    summary
        One row a study: model, sizes, the layer that was scanned and its depth; how many of the ``n_personas`` each test
        finds (adjusted p ≤ 0.05), ``n_separation, n_calibrated, n_scan``, and how many of the ``n_shared`` personas that
        all studies hold, ``n_shared_separation`` and so on; ``smallest_p_alone``, the smallest adjusted p-value of the scan
        that a persona can have if no other is found, and ``smallest_p_alone_flips``, that of the other two tests; and the
        verdict on the model with d and its 95 % interval, and ``n_early`` personas told apart before the last third.
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
        Fewer than two studies, one that has no persona in common with any other, or one that is older than the tables that
        are compared.
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
        if not (study.folder / "onset.parquet").exists():
            raise ValueError(f"study {name!r} is older than the tests that are compared; run it again.")
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
    columns = ["persona", "layer", "accuracy", "accuracy_low", "accuracy_high", "p_adjusted"]
    accuracy = study.localization[study.localization["position"] == study.position][columns]
    accuracy = accuracy.rename(columns={"p_adjusted": "accuracy_p_adjusted"})
    table = study.layers.merge(accuracy, on=["persona", "layer"], how="left", validate="one_to_one")
    return _study_first(table.assign(study=name, depth=table["layer"] / study.record["n_layers"]))


def _read_thirds(study: Study) -> pd.DataFrame:
    # The record is of the last run; a table may be left from an earlier one.
    if study.record.get("thirds") is not None and study.thirds is not None:
        return study.thirds
    quantities = [f"{name}{end}" for name in ("first", "middle", "last", "d") for end in ("", "_low", "_high")]
    quantities += ["early_p", "early_p_adjusted", "first_layer"]
    words = dict.fromkeys(("metric", "persona", "topic", "verdict"), "object")
    columns = {**words, **dict.fromkeys(quantities, "float64")}
    return pd.DataFrame({name: pd.Series(dtype=dtype) for name, dtype in columns.items()})


def _read_detection(study: Study) -> pd.DataFrame:
    scans = study.detection[study.detection["layer"] == study.best_layer]
    layers = study.layers[study.layers["layer"] == study.best_layer]
    columns = ["persona", "layer", "accuracy", "accuracy_low", "accuracy_high", "separation_p", "separation_p_adjusted"]
    columns += ["calibrated_p", "calibrated_p_adjusted", "n_family", "n_bh", "n_calibrated"]
    columns += ["p_value", "p_adjusted", "precision", "precision_low", "precision_high", "recall"]
    columns += ["recall_low", "recall_high", "chance", "auroc", "node_set", "null_node_set", "n_background"]
    probe = layers[["persona", "probe_auroc", "probe_auroc_low", "probe_auroc_high"]]
    sizes = pd.DataFrame(study.record["sizes"])[["persona", "test_h1", "test_h0"]]
    table = scans[columns].merge(_read_onset(study), on="persona", how="left", validate="one_to_one")
    table = table.merge(probe, on="persona", how="left").merge(sizes, on="persona", how="left")
    table = table.rename(columns={"test_h1": "n_h1", "test_h0": "n_h0"})
    if not study.record["has_texts"]:
        return table.assign(form_accuracy=np.nan, gives_away=pd.array([pd.NA] * len(table), dtype="boolean"))
    form = study.form[["persona", "form_accuracy", "gives_away"]].astype({"gives_away": "boolean"})
    return table.merge(form, on="persona", how="left")


def _read_onset(study: Study) -> pd.DataFrame:
    own = study.onset[study.onset["position"] == study.position]
    depths = {f"onset_depth{end}": own[f"onset{end}"] / study.record["n_layers"] for end in ("", "_low", "_high")}
    return own[["persona"]].assign(**depths, onset_p_adjusted=own["p_adjusted"])


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
    record, permutations, flips = study.record, study.config["permutations"], study.config["flips"]
    scanned = study.detection[study.detection["layer"] == study.best_layer].set_index("persona")
    # Persona by persona, what each test finds.
    found = pd.DataFrame({test: scanned[column] <= LEVEL for test, column in TESTS.items()})
    of_shared = found[found.index.isin(shared)]
    sizes = pd.DataFrame(record["sizes"])
    thirds = record.get("thirds") or {}
    return {
        "model": record["activations"]["model"],
        "n_layers": record["n_layers"],
        "n_nodes": record["n_nodes"],
        "best_layer": study.best_layer,
        "best_depth": study.best_layer / record["n_layers"] if record["n_layers"] else np.nan,
        "n_personas": len(study.personas),
        **{f"n_{test}": int(found[test].sum()) for test in TESTS},
        "n_shared": len(shared),
        **{f"n_shared_{test}": int(of_shared[test].sum()) for test in TESTS},
        "smallest_n_h1": int(sizes["test_h1"].min()),
        "permutations": permutations,
        "smallest_p_alone": min(1.0, len(study.detection) / (1 + permutations)),
        "flips": flips,
        "smallest_p_alone_flips": min(1.0, len(study.detection) / (1 + flips)),
        **{name: np.nan if thirds.get(name) is None else thirds[name] for name in ("d", "d_low", "d_high", "n_early")},
        "verdict": thirds.get("verdict"),
    }


def _describe(study: Study) -> dict[str, Any]:
    kept = ("config", "versions", "activations", "n_layers", "n_nodes", "best_layer", "sizes")
    return {name: study.record[name] for name in kept}


def _study_first(table: pd.DataFrame) -> pd.DataFrame:
    return table[["study", *table.columns.drop("study")]]
