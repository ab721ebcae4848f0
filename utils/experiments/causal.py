"""Do the scanned nodes matter? The whole of a causal check on a study, written to a folder as it goes.

What cannot be asked of the study or the model is refused before anything is run.
"""

import importlib.metadata
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from utils.causal.effects import RANDOM, summarise_effects
from utils.causal.measure import (
    PersonaPrompts,
    ask_in_words,
    collect_values,
    find_replacements,
    measure_costs,
    run_cells,
)
from utils.causal.plan import (
    Cell,
    Replacements,
    check_numbers,
    main_strength,
    plan_layer,
    plan_main,
    plan_sizes,
    plan_strengths,
    plan_tested,
)
from utils.causal.scoring import CachedPrompts, cache_prompts
from utils.causal.settings import CausalConfig, Check
from utils.experiments.stages import Stages, read_run, read_tables
from utils.folders import hold_folder
from utils.intervals import FEWEST
from utils.models.language_model import LanguageModel
from utils.nodes.controls import scanned_nodes
from utils.nodes.scans import LayerNodes, scan_layer
from utils.nodes.sets import NodeSet
from utils.records import key_of, write_frame
from utils.responses.wording import persona_prompt
from utils.statements.contrasts import find_contrasts, restrict
from utils.statements.names import find_names
from utils.statements.splits import HeldOut, hold_out, split_parts
from utils.study.results import Study, key_of_study
from utils.study.settings import StudyConfig, needed_h0, scan_options

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CausalResult:
    """Tables of a causal check, as they lie in ``folder``.

    Attributes
    ----------
    record
        ``causal.json``: options, layer and size of the main comparison, pairs, versions.
    values
        Preference of every pair under every node set, see :func:`utils.causal.summarise_effects`.
    effects
        What that returns.
    costs
        See :func:`utils.causal.measure.measure_costs`; None where it was left out.
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
    OSError
        The folder cannot be written to, or another process holds it.
    """
    config = complete_config(config or CausalConfig(), lm, study)
    persona, started = str(config.persona), time.perf_counter()
    folder = Path(out) if out is not None else study.folder / "causal" / persona
    options = StudyConfig(**study.config)
    acts = study.activations
    contrast = find_contrasts(acts, contrast=options.contrast, personas=[persona])[0]
    held = hold_out(contrast, split_parts(acts, rng=options.seed), config.n_pairs, rng=config.seed)
    check_rest(held, options)
    with hold_folder(folder, record="causal.json"):
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
        sets |= _other_persona(study, held, layer, size, scanning)
        cells = [*plan_main(config, nodes_at(layer), sets), *plan_strengths(config, nodes_at(layer), sets)]
        cells += [*plan_tested(config, nodes_at(layer), size), *plan_sizes(config, nodes_at(layer), size)]
        for other in config.layers:
            if other != layer:
                cells += plan_layer(config, nodes_at(other), size)
        cells = list(dict.fromkeys(cells))
        names = acts["statement"].to_numpy()
        # As they were when the activations were computed.
        prompts = PersonaPrompts.of(held, acts["text"].to_numpy().tolist())

        @cache
        def replacements_at(layer: int, check: Check) -> Replacements:
            return find_replacements(lm, prompts, check, layer, scope=config.scope, rng=config.seed)

        @lru_cache(1)
        def cached_at(layer: int, check: Check) -> CachedPrompts:
            readout, shared = prompts.readout(lm.tokenizer, check), check.mode in ("steer", "ablate")
            return cache_prompts(lm, readout, layer, scope=config.scope, shared=shared or config.scope != "all")

        run = partial(run_cells, lm, prompts, nodes_at, replacements_at, cached_at)
        study_key = key_of_study(study)
        base = key_of(study_key, asdict(prompts), config.scope, config.permutations, config.seed)
        stages = Stages(folder, base)
        values = [collect_values(cells, run, keep=stages.table, progress=progress)]
        values += [
            ask_in_words(lm, prompts, check, layer, size, main_strength(config, check)) for check in config.checks
        ]
        values = pd.concat(values, ignore_index=True)
        effects = summarise_effects(values, rng=config.seed)
        costs = None
        if config.n_cost:
            own = [cell for cell in cells if _counts_cost(cell, config, layer, size)]
            costs = measure_costs(lm, own, nodes_at(layer), partial(replacements_at, layer), config, progress=progress)
        record = {
            "config": asdict(replace(config, layers=list(config.layers))),
            "study": study_key,
            "layer": layer,
            "size": size,
            "model": lm.name,
            "fingerprint": lm.fingerprint,
            "persona_prompt": persona_prompt(persona),
            "n_rest": [len(held.rest.h0), len(held.rest.h1)],
            "scan_p_value": nodes_at(layer).runs.p_value,
            "pairs": [[str(names[a]), str(names[b])] for a, b in zip(held.h1, held.h0, strict=True)],
            "versions": {name: importlib.metadata.version(name) for name in ("personascope", "torch", "transformers")},
            "seconds": round(time.perf_counter() - started, 1),
        }
        tables = {"values": values, "effects": effects, "nodes": _list_nodes(cells)}
        if costs is not None:
            tables["costs"] = costs
        for name, table in tables.items():
            write_frame(folder / f"{name}.parquet", table)
        if costs is None:
            (folder / "costs.parquet").unlink(missing_ok=True)
        record = stages.finish("causal.json", record, also=[f"{name}.parquet" for name in tables])
        return CausalResult(folder, record, **{"costs": None, **tables})


def open_causal(folder: str | Path) -> CausalResult:
    """Read back what :func:`run_causal` wrote.

    Raises
    ------
    FileNotFoundError
        The folder does not hold a finished causal check.
    ValueError
        A file of it is damaged.
    """
    folder, command = Path(folder), "personascope causal"
    record = read_run(folder, "causal.json", kind="causal check", command=command)
    there = [
        name
        for name in ("values", "effects", "nodes", "costs")
        if name != "costs" or (folder / "costs.parquet").exists()
    ]
    return CausalResult(folder, record, **{"costs": None, **read_tables(folder, there, command=command)})


def _other_persona(
    study: Study, held: HeldOut, layer: int, size: int, scanning: Mapping[str, Any]
) -> dict[str, NodeSet]:
    """As many nodes of the persona that the study finds best besides this one, without what is measured on."""
    others = [persona for persona in rank_personas(study) if persona != held.persona]
    if not others:
        return {}
    other = others[0]
    acts = study.activations
    keep = np.ones(acts.sizes["statement"], dtype=bool)
    keep[np.concatenate([held.h0, held.h1])] = False
    contrast = restrict(find_contrasts(acts, contrast=study.config["contrast"], personas=[other])[0], keep)
    found = scan_layer(layer, acts.sel(layer=layer).to_numpy(), contrast, scanning)
    if found.n_selected < size:
        logger.warning("no control by the nodes of %s: its scan selects %d, not %d", other, found.n_selected, size)
        return {}
    return {f"scan of {other}": scanned_nodes(found.runs, found.signs, size=size)}


def _counts_cost(cell: Cell, config: CausalConfig, layer: int, size: int) -> bool:
    """The sets of the main comparison, and of the random ones as many as at other points of the curves."""
    main = cell.layer == layer and cell.size == size and cell.strength == main_strength(config, cell.check)
    return main and (cell.draw < 0 or (cell.selector == RANDOM and cell.draw < config.n_curve))


def _list_nodes(cells: Sequence[Cell]) -> pd.DataFrame:
    rows = [
        {"layer": cell.layer, "size": cell.size, "selector": cell.selector, "node": node, "sign": sign}
        for cell in cells
        if cell.draw < 0 and cell.nodes is not None
        for node, sign in sorted(cell.nodes)
    ]
    return pd.DataFrame(rows).drop_duplicates(ignore_index=True)


def complete_config(config: CausalConfig, lm: LanguageModel, study: Study) -> CausalConfig:
    """The options with the persona filled in, and nothing in them twice.

    Raises
    ------
    ValueError
        A study of another model or from arrays, an unknown persona, layer, check or scope, or a number that cannot be.
    """
    if not study.record["has_texts"]:
        raise ValueError("the study began from arrays and holds no statements to ask the model about.")
    _check_model(lm, study)
    check_numbers(config)
    layers = study.activations["layer"].to_numpy().tolist()
    if study.position == "last":
        layers = [layer for layer in layers if layer]  # the same for every statement there
    wanted = [*([config.layer] if config.layer is not None else []), *config.layers]
    if outside := [layer for layer in wanted if layer not in layers]:
        there = ", ".join(map(str, layers))
        raise ValueError(f"layers {outside} have no activations to choose nodes on; the study has {there}.")
    persona = config.persona
    if persona is None:
        persona = rank_personas(study)[0]
    (persona,) = find_names("persona", [persona], study.personas)
    return replace(config, persona=persona, checks=tuple(dict.fromkeys(config.checks)))


def rank_personas(study: Study) -> list[str]:
    """The personas of a study by their pair accuracy on the ``select`` pairs, which nothing is measured on, the best first."""
    table = pd.read_parquet(study.folder / "layers_select.parquet")
    at_best = table[table["layer"] == study.best_layer]
    return at_best.sort_values("accuracy", ascending=False, kind="stable")["persona"].tolist()


def check_rest(held: HeldOut, options: StudyConfig) -> None:
    """Refuse to hold out so many pairs that the rest does not suffice for a scan with the study's options."""
    rest, needed = held.rest, needed_h0(options, paired=held.rest.paired)
    if len(rest.h0) < needed or len(rest.h1) < (options.n_anomalous or 0):
        unit = "pairs" if rest.paired else "H0 statements"
        most = len(held.h1) - (needed - len(rest.h0))
        advice = f"measure on at most {most} pairs" if most >= FEWEST else "a study of more statements is needed"
        raise ValueError(
            f"holding out {len(held.h1)} pairs of persona {held.persona!r} leaves {len(rest.h0)} {unit} to choose nodes on, "
            f"too few for the study's scans; {advice}."
        )


def _check_model(lm: LanguageModel, study: Study) -> None:
    made = study.record["activations"]
    if made.get("fingerprint") == lm.fingerprint:
        return
    dtype = str(lm.dtype).removeprefix("torch.")
    if made.get("model") == lm.name and made.get("model_dtype") != dtype:
        raise ValueError(
            f"{study.folder} was made with {lm.name} in {made.get('model_dtype')} and this is {dtype}; load the model in "
            "the study's dtype."
        )
    raise ValueError(
        f"{study.folder} is a study of another model ({made.get('model')}, weights {made.get('fingerprint')}); this is "
        f"{lm.name}, weights {lm.fingerprint}. Load the study's model."
    )
