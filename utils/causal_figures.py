"""The figures of a causal check, and what it found in words, written beside its tables."""

from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.causal_effects import ASKED, adjust_checks
from utils.causal_plots import describe_check, plot_controls, plot_costs, plot_dose, plot_effect_layers
from utils.causal_study import CausalResult
from utils.figures import save_figure
from utils.panels import short_name
from utils.results import Study

_LEVEL = 0.05
_CHECK = ["mode", "measure", "prompt"]
# By the beginning of their names, in the order of the report.
_CAPTIONS = {
    "controls": "Effect of each node set with its 95 % interval over pairs, beside random sets of the same size (grey); p: rank "
    "among the random sets, two-sided.",
    "strength": "Effect over the strength of steering.",
    "size": "Effect over how many nodes are changed, those that the scan selects most often.",
    "layers": "Where the persona can be seen, and where changing as many nodes of a layer moves what the model prefers.",
    "costs": "What the interventions cost on neutral text and on questions.",
}


def main_effects(result: CausalResult) -> pd.DataFrame:
    """The rows of the main comparison, at its layer, strength and size, with p-values corrected over the checks."""
    config, table = result.record["config"], result.effects
    strength = table["strength"].isin([0.0, config["strength"]])
    return adjust_checks(table[(table["layer"] == config["layer"]) & (table["size"] == config["size"]) & strength])


def draw_causal(result: CausalResult, study: Study) -> None:
    """Draw every figure of a causal check into ``figures/`` as PNG and SVG."""
    folder = result.folder / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for name, ax in _draw(result, study):
        figure = ax.figure
        assert isinstance(figure, Figure)
        save_figure(figure, folder / name)
        plt.close(figure)


def list_drawn(result: CausalResult) -> list[tuple[Path, str]]:
    """The figures that were drawn, in order, each with one sentence of reading."""
    files = sorted((result.folder / "figures").glob("*.png"))
    return [(file, caption) for kind, caption in _CAPTIONS.items() for file in files if file.stem.startswith(kind)]


def describe_found(result: CausalResult) -> list[str]:
    """What the main comparison says of the scanned nodes, a sentence a check."""
    config = result.record["config"]
    sentences = [
        f"{short_name(config['persona'])}, layer {config['layer']}, {config['size']} nodes, {config['n_pairs']} held-out pairs, "
        f"{config['n_random']} random sets."
    ]
    for _, own in main_effects(result).groupby(_CHECK, sort=False):
        scan = own[own["selector"] == "scan"].iloc[0]
        moved = "towards the persona" if scan["effect"] > 0 else "away from it"
        clear = "" if scan["low"] > 0 or scan["high"] < 0 else ", an interval that holds 0"
        singled = _place_among_random(scan)
        sentence = (
            f"{describe_check(scan)}: the scanned nodes move the preference {moved} by {abs(scan['effect']):.3f} "
            f"(95 % interval of the effect {scan['low']:.3f} to {scan['high']:.3f}{clear}), {singled} (mean "
            f"{scan['random_mean']:.3f}, 5–95 % {scan['random_low']:.3f} to {scan['random_high']:.3f}; rank p "
            f"{scan['p_value']:.2g}, adjusted {scan['p_adjusted']:.2g})."
        )
        others = own[own["selector"] != "scan"]
        rest = ", ".join(f"{row['selector']} {row['effect']:.3f}" for _, row in others.iterrows())
        sentences.append(f"{sentence} Others: {rest}.")
    return sentences


def _draw(result: CausalResult, study: Study) -> Iterator[tuple[str, Axes]]:
    config, effects = result.record["config"], result.effects
    for i, (_, own) in enumerate(main_effects(result).groupby(_CHECK, sort=False)):
        yield f"controls_{i + 1}", plot_controls(own, result.values)
    effects = effects[effects["selector"] != ASKED]
    is_size, is_layer = effects["size"] == config["size"], effects["layer"] == config["layer"]
    is_strength = effects["strength"].isin([0.0, config["strength"]])
    for mode, own in _first_of_mode(effects[is_layer & is_size]).items():
        if own["strength"].nunique() > 1:
            yield f"strength_{mode}", plot_dose(own)
    for mode, own in _first_of_mode(effects[is_layer & is_strength]).items():
        if own["size"].nunique() > 1:
            yield f"size_{mode}", plot_dose(own, over="size")
    along = effects[is_size & is_strength]
    along = along[along.groupby(_CHECK)["layer"].transform("nunique") > 1]
    if len(along):
        divergence = study.layers[study.layers["persona"] == config["persona"]]
        yield "layers", plot_effect_layers(along, divergence, mark=config["layer"])[0]
    if result.costs is not None:
        yield "costs", plot_costs(result.costs)[0]


def _place_among_random(row: pd.Series) -> str:
    if row["p_adjusted"] > _LEVEL:
        return "no differently from random sets"
    return f"{'higher' if row['effect'] > row['random_mean'] else 'lower'} than random sets"


def _first_of_mode(effects: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of the first check of every mode."""
    found = {}
    for mode, own in effects.groupby("mode", sort=False):
        first = own.iloc[0]
        found[str(mode)] = own[(own["measure"] == first["measure"]) & (own["prompt"] == first["prompt"])]
    return found
