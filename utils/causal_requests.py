"""What is asked of a causal check, against the study and the model: completed, or refused before anything is run."""

import math
from dataclasses import replace
from typing import get_args

from utils.causal.settings import CausalConfig, parse_check
from utils.intervals import FEWEST
from utils.models.load import LanguageModel
from utils.options import Scope
from utils.statements.splits import HeldOut
from utils.study.results import Study
from utils.study.settings import StudyConfig, needed_h0


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
    _check_numbers(config)
    layers = study.activations["layer"].to_numpy().tolist()
    if study.config["position"] == "last":
        layers = [layer for layer in layers if layer]  # the same for every statement there
    wanted = [*([config.layer] if config.layer is not None else []), *config.layers]
    if outside := [layer for layer in wanted if layer not in layers]:
        there = ", ".join(map(str, layers))
        raise ValueError(f"layers {outside} have no activations to choose nodes on; the study has {there}.")
    persona = config.persona
    if persona is None:
        persona = rank_personas(study)[0]
    if persona not in study.personas:
        raise ValueError(f"the study has no persona {persona!r}; it has {', '.join(study.personas)}.")
    return replace(config, persona=persona, checks=tuple(dict.fromkeys(config.checks)))


def rank_personas(study: Study) -> list[str]:
    """The personas of a study by the p-values of its scans, the smallest first."""
    at_best = study.detection[study.detection["layer"] == study.best_layer]
    return at_best.sort_values("p_value", kind="stable")["persona"].tolist()


def check_rest(held: HeldOut, options: StudyConfig) -> None:
    """Refuse to hold out so many pairs that the rest does not suffice for a scan with the study's options."""
    rest, needed = held.rest, needed_h0(options, paired=held.rest.paired)
    if len(rest.h0) < needed or len(rest.h1) < options.n_anomalous:
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


def _check_numbers(config: CausalConfig) -> None:
    if not config.checks:
        raise ValueError("there is nothing to check; give at least one check such as steer/likelihood/neutral.")
    for check in config.checks:
        parse_check(str(check))
    if config.scope not in get_args(Scope):
        raise ValueError(f"unknown scope {config.scope!r}; expected {', '.join(get_args(Scope))}.")
    if config.n_pairs < FEWEST:
        raise ValueError(f"n_pairs must be at least {FEWEST}, not {config.n_pairs}: fewer give no interval.")
    for name, least in (("n_random", 1), ("n_curve", 1), ("n_matched", 0), ("n_cost", 0), ("permutations", 0)):
        if getattr(config, name) < least:
            raise ValueError(f"{name} must be at least {least}, not {getattr(config, name)}.")
    if wrong := [strength for strength in (config.strength, *config.strengths) if not math.isfinite(strength)]:
        raise ValueError(f"strengths must be finite numbers, not {wrong[0]}.")
    if wrong := [size for size in config.sizes if size < 1]:
        raise ValueError(f"set sizes must be at least 1, not {wrong[0]}.")
