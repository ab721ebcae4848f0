"""The tables of a study: each is a stage, computed where its inputs have changed."""

from collections.abc import Sequence
from functools import cache, partial

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import false_discovery_control

from deepscan import ScanRuns
from utils.layers.localization import accuracy_stability, layer_accuracy, layer_onset
from utils.layers.separation import best_layer
from utils.layers.thirds import early_separation, layer_thirds, model_thirds
from utils.nodes.agreement import rule_agreement, set_recurrence, vector_overlap
from utils.nodes.paper import paper_scans
from utils.nodes.scans import summarise
from utils.nodes.sets import node_sets, overlap
from utils.nodes.significance import NODE_RULES, compare_sides, rule_sets
from utils.options import Position
from utils.records import StageLog, key_of
from utils.statements.contrasts import Contrast
from utils.study.power import measure_power
from utils.study.settings import StudyConfig


def choose_layer(log: StageLog, key: str, acts: xr.DataArray, select: list[Contrast], config: StudyConfig) -> int:
    """The layer with the best mean rank of pair accuracy over personas on the select part, and how firmly."""
    options = {"n_permutations": config.flips, "rng": config.seed, "progress": False}
    table = log.table("layers_select", key, lambda: layer_accuracy(acts, select, **options))
    log.table("layer_stability", key, lambda: accuracy_stability(acts, select, rng=config.seed))
    return best_layer(table)


def locate(
    log: StageLog,
    key: str,
    by_position: dict[Position, xr.DataArray],
    contrasts: list[Contrast],
    config: StudyConfig,
    *,
    progress: bool,
) -> None:
    """Write ``localization.parquet``, pair accuracy over layers, and ``onset.parquet``, both at every position."""
    options = {"n_permutations": config.flips, "rng": config.seed, "n_jobs": config.n_jobs, "progress": progress}

    def accuracies() -> pd.DataFrame:
        return _stack({name: layer_accuracy(acts, contrasts, **options) for name, acts in by_position.items()})

    found = log.table("localization", key_of(key, config.flips), accuracies)

    def onsets() -> pd.DataFrame:
        frames = {}
        for name, acts in by_position.items():
            own = found[found["position"] == name]
            frames[name] = layer_onset(acts, contrasts, accuracy=own, rng=config.seed, progress=False)
        return _stack(frames)

    log.table("onset", key_of(key, config.flips), onsets)


def judge_thirds(
    log: StageLog, key: str, acts: xr.DataArray, contrasts: list[Contrast], config: StudyConfig
) -> dict | None:
    """Write the answers of every persona and return those of the model; none for chosen layers or too few."""
    layers = [layer for layer in acts["layer"].to_numpy().tolist() if layer]
    if config.layers is not None or layers != list(range(1, len(layers) + 1)) or len(layers) < 3:
        log.leave_out("thirds")
        return None

    def by_persona() -> pd.DataFrame:
        early = early_separation(acts, contrasts, n_permutations=config.flips, rng=config.seed)
        frames = {
            metric: layer_thirds(acts, contrasts, metric=metric).merge(early, on="persona")
            for metric in ("accuracy", "silhouette")
        }
        return pd.concat(frames, names=["metric"]).reset_index("metric").reset_index(drop=True)

    table = log.table("thirds", key_of(key, config.flips), by_persona)
    model = log.table("model_thirds", key, lambda: model_thirds(acts, contrasts)).to_dict("records")[0]
    early = table[table["metric"] == "accuracy"]
    return model | {"n_early": int((early["early_p_adjusted"] <= 0.05).sum())}


def detect_personas(
    log: StageLog,
    key: str,
    scan_key: str,
    runs: dict[int, dict[str, ScanRuns]],
    acts: xr.DataArray,
    contrasts: list[Contrast],
    config: StudyConfig,
    *,
    progress: bool,
) -> tuple[pd.DataFrame, dict[int, pd.DataFrame]]:
    """Write ``detection.parquet``, every test of every persona and scanned layer, and the tests node by node; return both."""
    options = {"n_permutations": config.flips, "rng": config.seed, "n_jobs": config.n_jobs, "progress": progress}
    personas, nodes = [], {}
    for layer in runs:
        compare = cache(partial(compare_sides, acts.sel(layer=layer).to_numpy(), contrasts, **options))
        name, own = f"tests/layer-{layer}", key_of(key, layer, config.flips)
        nodes[layer] = log.table(name, own, lambda compare=compare: compare()[1])
        personas.append(log.table(f"{name}-personas", own, lambda compare=compare: compare()[0]).assign(layer=layer))

    def all_tests() -> pd.DataFrame:
        scans = summarise(runs, threshold=config.threshold)
        tests = pd.concat(personas, ignore_index=True)
        # Of all scanned layers together, as the scan's own p-values are.
        for name in ("separation_p", "calibrated_p"):
            tests[f"{name}_adjusted"] = false_discovery_control(tests[name])
        return scans.merge(tests, on=["persona", "layer"], validate="one_to_one")

    return log.table("detection", key_of(scan_key, config.flips), all_tests), nodes


def compare_node_sets(
    log: StageLog,
    key: str,
    runs: dict[str, ScanRuns],
    values: np.ndarray,
    contrasts: Sequence[Contrast],
    nodes: pd.DataFrame,
    config: StudyConfig,
) -> None:
    """Write ``overlap.parquet`` (personas), ``agreement.parquet`` (rules) and ``recurrence.parquet`` (halves)."""
    scanned = node_sets(runs, threshold=config.threshold)
    by_rule = {rule: rule_sets(nodes, rule) for rule in NODE_RULES}

    def overlaps() -> pd.DataFrame:
        table = overlap(scanned, runs, threshold=config.threshold)
        vectors = vector_overlap(values, contrasts, rng=config.seed)
        return table.merge(vectors, on=["a", "b"], validate="one_to_one") if len(table) else table

    def recurrences() -> pd.DataFrame:
        frames = [
            set_recurrence(values, contrasts, {name: len(held) for name, held in sets.items()}, rng=config.seed).assign(
                rule=rule
            )
            for rule, sets in by_rule.items()
        ]
        return pd.concat(frames, ignore_index=True)

    log.table("overlap", key, overlaps)
    log.table("agreement", key, lambda: rule_agreement({"scan": scanned, **by_rule}))
    log.table("recurrence", key, recurrences)


def add_on_request(
    log: StageLog, key: str, values: np.ndarray, contrasts: list[Contrast], config: StudyConfig, *, progress: bool
) -> None:
    """Write ``power.parquet`` and ``paper.parquet`` where they are asked for, and remove them where not."""
    options = {"rng": config.seed, "progress": progress}
    enough = min(min(len(contrast.h0), len(contrast.h1)) for contrast in contrasts) >= 10
    if config.power_draws and enough:
        draws = {"n_draws": config.power_draws, "n_jobs": config.n_jobs}
        log.table(
            "power", key_of(key, config.power_draws), lambda: measure_power(values, contrasts, **draws, **options)
        )
    else:
        log.leave_out("power")
    if config.protocol == "paper":
        log.table("paper", key, lambda: paper_scans(values, contrasts, **options))
    else:
        log.leave_out("paper")


def _stack(frames: dict[Position, pd.DataFrame]) -> pd.DataFrame:
    return pd.concat([frame.assign(position=name) for name, frame in frames.items()], ignore_index=True)
