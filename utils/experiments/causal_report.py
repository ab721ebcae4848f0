"""The figures of a causal check, and what it found in words, written beside its tables."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from utils.causal.effects import ASKED, CHECK, TURNED, adjust_checks
from utils.experiments.causal import CausalResult
from utils.study.results import Study
from utils.study.summary import LEVEL
from utils.viz.causal import describe_check, plot_controls, plot_costs, plot_dose, plot_effect_layers
from utils.viz.pages import NUMBERS, Section, read_section, table_html, write_figures, write_section
from utils.viz.style import short_name

# The columns of the main comparison as it is read.
SHOWN = [*CHECK, "selector", "clean", "effect", "low", "high", "effect_per_node", "random_mean"]
SHOWN += ["p_value", "p_adjusted", "p_matched"]
# By the beginning of their names, in the order of the report.
_CAPTIONS = {
    "controls": "Effect of each node set with its 95 % interval over pairs, beside random sets of the same size (grey); p: rank "
    "among the random sets, two-sided.",
    "strength": "Effect over the strength of steering. The random sets here are few: a picture, not a test.",
    "size": "Effect over how many nodes are changed, those that the scan selects most often. A picture, not a test.",
    "layers": "Where the persona can be seen, and where changing as many nodes of a layer moves what the model prefers. A "
    "picture, not a test.",
    "costs": "What the interventions cost on neutral text and on questions.",
}


def main_effects(result: CausalResult) -> pd.DataFrame:
    """The rows of the main comparison, at its layer, strength and size, with p-values corrected over the checks."""
    record, table = result.record, result.effects
    main = (table["layer"] == record["layer"]) & (table["size"] == record["size"]) & _at_main_strength(result, table)
    return adjust_checks(table[main])


def draw_causal(result: CausalResult, study: Study) -> list[Path]:
    """Draw every figure of a causal check into ``figures/``, and write its section of the study's report.

    Figures that an earlier call drew and that are no longer drawn are removed; other files there are left alone.
    """
    folder, path = result.folder / "figures", result.folder / "section.json"
    earlier = [file for file, _ in read_section(path)[0].figures] if path.exists() else []
    drawn = write_figures(_draw(result, study), folder)
    for old in earlier:
        if old not in drawn:
            for ending in (".png", ".svg"):
                old.with_suffix(ending).unlink(missing_ok=True)
    table = main_effects(result)[SHOWN].rename(columns=lambda name: name.replace("_", " "))
    section = Section(
        f"Do the nodes matter? {short_name(result.record['config']['persona'])}",
        " ".join(describe_found(result)),
        table_html(table, **NUMBERS),
        [(file, text) for kind, text in _CAPTIONS.items() for file in sorted(drawn) if file.stem.startswith(kind)],
    )
    write_section(path, section, study=result.record["study"])
    return [file for file, _ in section.figures]


def describe_found(result: CausalResult) -> list[str]:
    """What the main comparison says of the scanned nodes, a sentence a check, after what was done and any warning."""
    config, main = result.record["config"], main_effects(result)
    sentences = [
        f"{short_name(config['persona'])}, layer {result.record['layer']}, {result.record['size']} nodes, {config['n_pairs']} "
        f"held-out pairs, {config['n_random']} random sets. Effects are changes in the preference for the persona's statements, "
        "with 95 % intervals over pairs."
    ]
    floor = 2 * len(config["checks"]) / (1 + config["n_random"])
    if floor > LEVEL:
        enough = math.ceil(2 * len(config["checks"]) / LEVEL)
        sentences.append(
            f"With {config['n_random']} random sets and {len(config['checks'])} checks, a check that is alone in standing out "
            f"cannot have an adjusted p below {floor:.2g}: take {enough} random sets or more."
        )
    for _, own in main.groupby(CHECK, sort=False):
        scan = own[own["selector"] == "scan"].iloc[0]
        known = f"{describe_check(scan)} ({scan['clean']:.3f} as it is)"
        sentence = f"{known}: the scanned nodes change it by {_describe_effect(scan)}"
        for _, turned in own[own["selector"] == TURNED].iterrows():
            sentence += f"; pushed to the sides of the means, as random sets are, by {_describe_effect(turned)}"
        matched = "" if pd.isna(scan["p_matched"]) else f"; rank p among sets matched in spread {scan['p_matched']:.2g}"
        low, high = scan["random_low"], scan["random_high"]
        sentence += f". Random sets: mean {scan['random_mean']:.3f}, 5–95 % {low:.3f} to {high:.3f}{matched}."
        rest = own[~own["selector"].isin(["scan", TURNED])]
        others = ", ".join(f"{row['selector']} {row['effect']:.3f}" for _, row in rest.iterrows())
        sentences.append(f"{sentence} Others: {others}.")
    return sentences


def _describe_effect(row: pd.Series) -> str:
    shown = f"{row['effect']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
    place = "no differently from random sets"
    if row["p_adjusted"] <= LEVEL:
        place = f"{'higher' if row['effect'] > row['random_mean'] else 'lower'} than random sets"
    return f"{shown}, {place} (rank p {row['p_value']:.2g}, adjusted {row['p_adjusted']:.2g})"


def _at_main_strength(result: CausalResult, effects: pd.DataFrame) -> pd.Series:
    return effects["strength"] == np.where(effects["mode"] == "steer", result.record["config"]["strength"], 0.0)


def _draw(result: CausalResult, study: Study) -> Iterator[tuple[str, Axes]]:
    config, effects = result.record["config"], result.effects
    for i, (_, own) in enumerate(main_effects(result).groupby(CHECK, sort=False)):
        yield f"controls_{i + 1}", plot_controls(own, result.values)
    effects = effects[effects["selector"] != ASKED]
    is_size, is_layer = effects["size"] == result.record["size"], effects["layer"] == result.record["layer"]
    is_strength = _at_main_strength(result, effects)
    for mode, own in _first_of_mode(effects[is_layer & is_size]).items():
        if own["strength"].nunique() > 1:
            yield f"strength_{mode}", plot_dose(own)
    for mode, own in _first_of_mode(effects[is_layer & is_strength]).items():
        if own["size"].nunique() > 1:
            yield f"size_{mode}", plot_dose(own, over="size")
    along = effects[is_size & is_strength]
    along = along[along.groupby(CHECK)["layer"].transform("nunique") > 1]
    if len(along):
        divergence = study.layers[study.layers["persona"] == config["persona"]]
        yield "layers", plot_effect_layers(along, divergence, mark=result.record["layer"])[0]
    if result.costs is not None:
        yield "costs", plot_costs(result.costs)[0]


def _first_of_mode(effects: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of the first check of every mode."""
    found = {}
    for mode, own in effects.groupby("mode", sort=False):
        first = own.iloc[0]
        found[str(mode)] = own[(own["measure"] == first["measure"]) & (own["prompt"] == first["prompt"])]
    return found
