"""Which node sets a causal check runs, and what it does to them."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import get_args

import numpy as np
from jaxtyping import Float

from utils.causal.effects import CLEAN, DENSE, MATCHED, RANDOM, TURNED
from utils.causal.interventions import Intervention, ablate, ablate_along, steer, steer_along
from utils.causal.settings import CausalConfig, Check, parse_check
from utils.intervals import FEWEST
from utils.nodes.controls import matched_sets, random_sets
from utils.nodes.scans import LayerNodes
from utils.nodes.sets import NodeSet
from utils.options import Scope

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cell:
    """One node set at one layer under one check.

    Attributes
    ----------
    selector, draw
        What chose the nodes, and which draw it is of those that chance chose (-1: not drawn).
    nodes
        (node, sign); None for the dense direction, the mean difference over all nodes.
    size
        Of the sets that it is compared with.
    """

    layer: int
    check: Check
    strength: float
    selector: str
    draw: int
    size: int
    nodes: NodeSet | None


@dataclass(frozen=True)
class Replacements:
    """What nodes can be overwritten with, for the prompts of one readout.

    Attributes
    ----------
    mean
        (d_model,) mean over the background.
    resampled, matched
        (prompt, d_model): a random statement of the other side, and the other statement of the same pair.
    """

    mean: Float[np.ndarray, " d"]
    resampled: Float[np.ndarray, "prompt d"]
    matched: Float[np.ndarray, "prompt d"]


def check_numbers(config: CausalConfig) -> None:
    """Raise a ValueError that names an option which cannot be."""
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


def plan_main(config: CausalConfig, found: LayerNodes, sets: Mapping[str, NodeSet]) -> Iterator[Cell]:
    """The main comparison: every set and the dense direction, among random sets, under every check.

    Random sets are pushed to the sides on which the persona's statements lie in the mean. The scan has sides of its own,
    those of the records that it selected, so that its nodes are also steered to the sides of the means: only this set
    differs from random ones in its nodes alone.
    """
    size, rng = len(sets["scan"]), np.random.default_rng([config.seed, found.layer, 0])
    drawn = random_sets(size, found.signs, config.n_random, rng=rng)
    matched = matched_sets(sets["scan"], found.spread, found.signs, config.n_matched, rng=rng)
    turned = frozenset((node, int(found.signs[node])) for node, _ in sets["scan"])
    for check in config.checks:
        compared = {"scan": sets["scan"]}
        if check.mode == "steer" and turned != sets["scan"]:
            compared[TURNED] = turned
        chance = {RANDOM: drawn} | ({MATCHED: matched} if check in first_checks(config) else {})
        strength = main_strength(config, check)
        yield from _compare(check, found.layer, strength, size, compared | dict(sets), chance)


def plan_strengths(config: CausalConfig, found: LayerNodes, sets: Mapping[str, NodeSet]) -> Iterator[Cell]:
    """Dose–response: the first check that steers, at every further strength."""
    size, rng = len(sets["scan"]), np.random.default_rng([config.seed, found.layer, 1])
    drawn = random_sets(size, found.signs, config.n_curve, rng=rng)
    for check in [check for check in config.checks if check.mode == "steer"][:1]:
        for strength in config.strengths:
            if strength != config.strength:
                yield from _compare(check, found.layer, strength, size, sets, {RANDOM: drawn})


def plan_sizes(config: CausalConfig, found: LayerNodes, main_size: int) -> Iterator[Cell]:
    """The first check of each mode at further set sizes, without those that the scan does not reach."""
    if unreached := [size for size in config.sizes if size > found.n_selected]:
        logger.warning("set sizes %s are left out: the scan selects %d nodes", unreached, found.n_selected)
    for size in config.sizes:
        if size <= found.n_selected and size != main_size:
            drawn = random_sets(
                size, found.signs, config.n_curve, rng=np.random.default_rng([config.seed, found.layer, 2, size])
            )
            sets = found.choose(size)
            for check in first_checks(config):
                yield from _compare(
                    check, found.layer, main_strength(config, check), size, sets, {RANDOM: drawn}, dense=False
                )


def plan_layer(config: CausalConfig, found: LayerNodes, size: int) -> Iterator[Cell]:
    """The first check of each mode at another layer, with the nodes that are selected most often there.

    A layer at which the scan selects fewer nodes is left out, with a warning.
    """
    if found.n_selected < size:
        logger.warning(
            "layer %d is left out: the scan selects %d nodes there, not %d", found.layer, found.n_selected, size
        )
        return
    sets = found.choose(size)
    drawn = random_sets(size, found.signs, config.n_curve, rng=np.random.default_rng([config.seed, found.layer, 3]))
    for check in first_checks(config):
        yield from _compare(check, found.layer, main_strength(config, check), size, sets, {RANDOM: drawn})


def first_checks(config: CausalConfig) -> list[Check]:
    """The first check of each mode."""
    return list({check.mode: check for check in reversed(config.checks)}.values())[::-1]


def main_strength(config: CausalConfig, check: Check) -> float:
    """The strength of the main comparison; it has no meaning where nodes are overwritten and is 0 there."""
    return config.strength if check.mode == "steer" else 0.0


def make_intervention(cell: Cell, found: LayerNodes, replacements: Callable[[], Replacements]) -> Intervention:
    """What a cell does to the residual stream; ``replacements`` is asked only where something is overwritten."""
    if cell.selector == CLEAN:
        return Intervention(cell.layer)
    mode = cell.check.mode
    if mode == "steer":
        if cell.nodes is None:
            return steer_along(cell.layer, found.difference, strength=cell.strength, norm=found.norm)
        return steer(cell.layer, cell.nodes, found.spread, strength=cell.strength, norm=found.norm)
    given = replacements()
    values = {"ablate": given.mean, "resample": given.resampled, "patch": given.matched}[mode]
    if cell.nodes is None:
        return ablate_along(cell.layer, found.difference, values)
    return ablate(cell.layer, cell.nodes, values)


def _compare(
    check: Check,
    layer: int,
    strength: float,
    size: int,
    sets: Mapping[str, NodeSet],
    chance: Mapping[str, list[NodeSet]],
    *,
    dense: bool = True,
) -> Iterator[Cell]:
    for selector, nodes in sets.items():
        yield Cell(layer, check, strength, selector, -1, size, nodes)
    if dense:
        yield Cell(layer, check, strength, DENSE, -1, size, None)
    for selector, drawn in chance.items():
        for draw, nodes in enumerate(drawn):
            yield Cell(layer, check, strength, selector, draw, size, nodes)
