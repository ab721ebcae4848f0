"""Do the scanned nodes matter? The whole of a causal check on a study, written to a folder as it goes."""

import importlib.metadata
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from utils.causal_cells import (
    Cell,
    Replacements,
    main_strength,
    plan_layer,
    plan_main,
    plan_sizes,
    plan_strengths,
)
from utils.causal_costs import measure_costs
from utils.causal_effects import RANDOM, summarise_effects
from utils.causal_prompts import PersonaPrompts, find_replacements
from utils.causal_settings import CausalConfig, Check
from utils.causal_values import ask_in_words, collect_values, run_cells
from utils.contrasts import find_contrasts, split_parts
from utils.held_out import hold_out
from utils.intervention_scores import CachedPrompts, cache_prompts
from utils.layer_nodes import LayerNodes, scan_layer
from utils.models import LanguageModel
from utils.node_controls import scanned_nodes
from utils.nodes import NodeSet
from utils.persona_prompts import persona_prompt
from utils.results import Study
from utils.settings import StudyConfig, scan_options
from utils.sources import open_source
from utils.stages import key_of, replace_text, write_frame


@dataclass(frozen=True)
class CausalResult:
    """Tables of a causal check, as they lie in ``folder``.

    Attributes
    ----------
    record
        ``causal.json``: options, sizes and versions.
    values
        Preference of every pair under every node set, see :func:`utils.causal_effects.summarise_effects`.
    effects
        What that returns.
    costs
        See :func:`utils.causal_costs.measure_costs`; None where it was left out.
    nodes
        ``layer, size, selector, node, sign`` of every set that was chosen.
    """

    folder: Path
    record: dict[str, Any]
    values: pd.DataFrame
    effects: pd.DataFrame
    costs: pd.DataFrame | None
    nodes: pd.DataFrame


def run_causal(
    lm: LanguageModel,
    study: Study,
    config: CausalConfig | None = None,
    *,
    out: str | Path | None = None,
    progress: bool = True,
) -> CausalResult:
    """Change the nodes that a study's scan selects, and others for comparison, and measure what the model prefers.

    Nodes are chosen, by a scan of their own, on all pairs but those that are measured on.

    Parameters
    ----------
    lm
        The model of the study.
    study
        With statements, not from arrays.
    config
        All options.
    out
        A folder; by default ``causal/<persona>`` in the study's. What is there already is not run again.

    Raises
    ------
    ValueError
        A study of another model or without texts, an unknown persona or layer, an empty node set, too few pairs.
    """
    config = _complete(config or CausalConfig(), lm, study)
    persona, started = str(config.persona), time.perf_counter()
    folder = Path(out) if out is not None else study.folder / "causal" / persona
    options = StudyConfig(**study.config)
    acts, texts = study.activations, _read_texts(options)
    contrast = find_contrasts(acts, contrast=options.contrast, personas=[persona])[0]
    held = hold_out(contrast, split_parts(acts, rng=options.seed), config.n_pairs, rng=config.seed)
    scanning = {
        **scan_options(options),
        "n_permutations": config.permutations,
        "n_jobs": options.jobs or os.cpu_count() or 1,
    }

    @cache
    def nodes_at(layer: int) -> LayerNodes:
        return scan_layer(layer, acts.sel(layer=layer).to_numpy(), held.rest, scanning)

    layer = study.best_layer if config.layer is None else config.layer
    sets = nodes_at(layer).choose(config.size, threshold=options.threshold)
    size = len(sets["scan"])
    sets |= _other_persona(study, persona, layer, size)
    cells = [*plan_main(config, nodes_at(layer), sets), *plan_strengths(config, nodes_at(layer), sets)]
    cells += plan_sizes(config, nodes_at(layer), size)
    for other in config.layers:
        if other != layer:
            cells += plan_layer(config, nodes_at(other), size)
    names = acts["statement"].to_numpy()
    prompts = PersonaPrompts.of(held, [texts[name] for name in names])

    @cache
    def replacements_at(layer: int, check: Check) -> Replacements:
        return find_replacements(lm, prompts, check, layer, scope=config.scope, rng=config.seed)

    @lru_cache(1)
    def cached_at(layer: int, check: Check) -> CachedPrompts:
        readout, shared = prompts.readout(lm.tokenizer, check), check.mode in ("steer", "ablate")
        return cache_prompts(lm, readout, layer, scope=config.scope, shared=shared or config.scope != "all")

    run = partial(run_cells, lm, prompts, nodes_at, replacements_at, cached_at)
    base = key_of(lm.fingerprint, asdict(prompts), asdict(options), config.scope, config.permutations, config.seed)
    values = [collect_values(cells, run, base=base, folder=folder / "parts", progress=progress)]
    values += [ask_in_words(lm, prompts, check, layer, size, main_strength(config, check)) for check in config.checks]
    values = pd.concat(values, ignore_index=True)
    effects = summarise_effects(values, rng=config.seed)
    costs = None
    if config.n_cost:
        own = [cell for cell in cells if _counts_cost(cell, config, layer, size)]
        costs = measure_costs(lm, own, nodes_at(layer), partial(replacements_at, layer), config, progress=progress)
    record = {
        "config": asdict(replace(config, layer=layer, size=size)),
        "model": lm.name,
        "fingerprint": lm.fingerprint,
        "persona_prompt": persona_prompt(persona),
        "n_rest": [len(held.rest.h0), len(held.rest.h1)],
        "scan_p_value": nodes_at(layer).runs.p_value,
        "pairs": [[str(names[a]), str(names[b])] for a, b in zip(held.h1, held.h0, strict=True)],
        "versions": {name: importlib.metadata.version(name) for name in ("personascope", "torch", "transformers")},
        "seconds": round(time.perf_counter() - started, 1),
    }
    result = CausalResult(folder, record, values, effects, costs, _list_nodes(cells))
    for name in ("values", "effects", "nodes", *(["costs"] if costs is not None else [])):
        write_frame(folder / f"{name}.parquet", getattr(result, name))
    replace_text(folder / "causal.json", json.dumps(record, indent=1, default=str))
    return result


def open_causal(folder: str | Path) -> CausalResult:
    """Read back what :func:`run_causal` wrote.

    Raises
    ------
    ValueError
        The folder does not hold a finished causal check.
    """
    folder = Path(folder)
    path = folder / "causal.json"
    if not path.exists():
        raise ValueError(f"{folder} does not hold a finished causal check; run personascope causal first.")
    tables = {name: pd.read_parquet(folder / f"{name}.parquet") for name in ("values", "effects", "nodes")}
    costs = folder / "costs.parquet"
    return CausalResult(
        folder,
        json.loads(path.read_text(encoding="utf-8")),
        costs=pd.read_parquet(costs) if costs.exists() else None,
        **tables,
    )


def _complete(config: CausalConfig, lm: LanguageModel, study: Study) -> CausalConfig:
    """The options with what the study decides filled in; refuses what cannot work before anything is run."""
    if not study.record["has_texts"]:
        raise ValueError("the study began from arrays and holds no statements to ask the model about.")
    made_by = study.record["activations"].get("fingerprint")
    if made_by != lm.fingerprint:
        raise ValueError(
            f"{study.folder} is a study of another model ({study.record['activations']['model']}, weights {made_by}); "
            f"this is {lm.name}, weights {lm.fingerprint}. Load the study's model."
        )
    if not config.checks:
        raise ValueError("there is nothing to check; give at least one check such as steer/likelihood/neutral.")
    if config.n_random < 1:
        raise ValueError(f"n_random must be at least 1, not {config.n_random}: effects are ranked among random sets.")
    layers = study.activations["layer"].to_numpy().tolist()
    if study.config["position"] == "last":
        layers = [layer for layer in layers if layer]  # the same for every statement there
    wanted = [*([config.layer] if config.layer is not None else []), *config.layers]
    if outside := [layer for layer in wanted if layer not in layers]:
        raise ValueError(
            f"layers {outside} have no activations to choose nodes on; the study has {layers[0]} to {layers[-1]}."
        )
    if config.persona is None:
        at_best = study.detection[study.detection["layer"] == study.best_layer]
        return replace(config, persona=at_best.sort_values("p_value", kind="stable")["persona"].iloc[0])
    if config.persona not in study.personas:
        raise ValueError(f"the study has no persona {config.persona!r}; it has {', '.join(study.personas)}.")
    return config


def _read_texts(options: StudyConfig) -> dict[str, str]:
    frame = open_source(options).frame
    return dict(zip(frame["id"], frame["statement"], strict=True))


def _other_persona(study: Study, persona: str, layer: int, size: int) -> dict[str, NodeSet]:
    """As many nodes of the persona that the study's scan finds best besides this one, where that layer was scanned."""
    if layer != study.best_layer or len(study.personas) < 2:
        return {}
    at_best = study.detection[(study.detection["layer"] == layer) & (study.detection["persona"] != persona)]
    other = str(at_best.sort_values("p_value", kind="stable")["persona"].iloc[0])
    values, runs = study.activations.sel(layer=layer).to_numpy(), study.runs[other]
    contrast = find_contrasts(study.activations, contrast=study.config["contrast"], personas=[other])[0]
    difference = values[contrast.h1].mean(axis=0) - values[contrast.h0].mean(axis=0)
    return {f"scan of {other}": scanned_nodes(runs, np.where(difference >= 0, 1, -1), size=size)}


def _counts_cost(cell: Cell, config: CausalConfig, layer: int, size: int) -> bool:
    """The sets of the main comparison, and of the random ones as many as at other points of the curves."""
    main = cell.layer == layer and cell.size == size and cell.strength in (0.0, config.strength)
    return main and (cell.draw < 0 or (cell.selector == RANDOM and cell.draw < config.n_curve))


def _list_nodes(cells: Sequence[Cell]) -> pd.DataFrame:
    rows = [
        {"layer": cell.layer, "size": cell.size, "selector": cell.selector, "node": node, "sign": sign}
        for cell in cells
        if cell.draw < 0 and cell.nodes is not None
        for node, sign in sorted(cell.nodes)
    ]
    return pd.DataFrame(rows).drop_duplicates(ignore_index=True)
