"""Persona vectors of a study: fitted, put to the test on held-out pairs, and written for other tools, in a folder."""

import json
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from utils.experiments.stages import Stages
from utils.models.language_model import LanguageModel
from utils.records import replace_text
from utils.responses.preference import neutral_texts
from utils.statements.contrasts import find_contrasts, label_frame, restrict
from utils.statements.questions import draw_questions, load_questions
from utils.study.results import Study, key_of_study
from utils.study.summary import LEVEL
from utils.vectors.doses import choose_dose, measure_doses, split_for_steering, take_pairs
from utils.vectors.effects import draw_controls, find_interference, find_turned, measure_changes
from utils.vectors.export import write_gguf, write_node_sets
from utils.vectors.fit import PersonaVectors, persona_vectors
from utils.vectors.judgement import judge_vectors
from utils.vectors.settings import VectorsConfig
from utils.viz.pages import Section, table_html, write_figures, write_section
from utils.viz.style import short_name
from utils.viz.vectors import plot_cosines, plot_doses, plot_interference, plot_turned

_TABLES = ("judged", "chosen_on", "measured", "turned", "doses", "interference")
_CAPTIONS = {
    "turned": "Effect of each vector on the preference for its persona with its 95 % interval over held-out pairs, before the "
    "5th to 95th percentile of random vectors of the same length and of vectors from flipped sides.",
    "doses": "Effect and perplexity over strength, on held-out pairs and texts. Dotted: the bound on what was chosen.",
    "cosines": "Cosines of the personas' vectors at the layer.",
    "interference": "What steering by each vector (rows) does to the preference for each persona (columns); * adjusted p ≤ 0.05.",
}


@dataclass(frozen=True)
class VectorsResult:
    """A run's folder, its record and its tables.

    ``judged``: cross-fitted, by layer; ``chosen_on``: doses on select pairs; ``turned``, ``doses``, ``interference``: on
    held-out pairs; ``measured``: every pair under every condition.
    """

    folder: Path
    record: dict[str, Any]
    judged: pd.DataFrame
    chosen_on: pd.DataFrame
    measured: pd.DataFrame
    turned: pd.DataFrame
    doses: pd.DataFrame
    interference: pd.DataFrame

    @cached_property
    def vectors(self) -> PersonaVectors:
        """Fitted on pairs that nothing was chosen or measured on."""
        return PersonaVectors.load(self.folder / "vectors.safetensors")

    @property
    def layer(self) -> int:
        """Where, as chosen."""
        return int(self.record["layer"])

    @property
    def strength(self) -> float:
        """How far, as chosen, in units of the residual stream's length."""
        return float(self.record["strength"])


def run_vectors(
    lm: LanguageModel,
    study: Study,
    config: VectorsConfig | None = None,
    *,
    out: Path | None = None,
    progress: bool = True,
) -> VectorsResult:
    """Fit the vectors of a study and test them, into ``vectors/all`` of the study's folder; parts that are there are kept.

    Raises
    ------
    ValueError
        The model is not that of the study, an unknown persona, statements without texts or pairs, or too few of them.
    """
    config = config or VectorsConfig()
    acts = study.activations
    if acts.attrs.get("fingerprint") != lm.fingerprint:
        raise ValueError(
            f"the study is of {acts.attrs.get('model')} and this is {lm.name}, with other weights or another dtype."
        )
    if not study.record["has_texts"]:
        raise ValueError("the study began from arrays; preferences are measured on statements, which it does not have.")
    frame = label_frame(acts).assign(statement=acts["text"].to_numpy())
    contrasts = find_contrasts(frame, personas=config.personas)
    names = [contrast.persona for contrast in contrasts]
    if unpaired := [contrast.persona for contrast in contrasts if not contrast.paired]:
        raise ValueError(f"persona {unpaired[0]!r} has no pairs, on which preferences are measured.")
    paired = np.isin(np.arange(len(frame)), np.concatenate([contrast.rows for contrast in contrasts]))
    part = split_for_steering(frame, rng=config.seed)
    fit_on = [restrict(contrast, part == "fit") for contrast in contrasts]
    folder = out or study.folder / "vectors" / "all"
    stages = Stages(folder, key_of_study(study), asdict(config))

    vectors = persona_vectors(acts, fit_on, method=config.method)
    select = take_pairs(frame[paired & (part == "select")], config.n_select)
    held_out = take_pairs(frame[paired & (part == "measure")], config.n_pairs)
    texts = neutral_texts(draw_questions(load_questions(), config.n_texts, rng=config.seed))
    options: dict[str, Any] = {"measure": config.measure, "progress": progress}
    judge_on = [restrict(contrast, part != "select") for contrast in contrasts]
    judging = {"method": config.method, "n_flips": config.n_flips, "rng": config.seed, "progress": progress}
    stages.table("judged", lambda: judge_vectors(acts, judge_on, **judging))
    layers = _candidates(config, lm.n_layers)
    chosen_on = stages.table(
        "chosen_on",
        lambda: measure_doses(lm, vectors.at(layers), select, strengths=config.strengths, texts=texts[::2], **options),
    )
    layer, strength = choose_dose(chosen_on, bound=config.bound)
    at = vectors.at(layer)
    drawing = {"n_random": config.n_random, "n_flipped": config.n_flipped, "rng": config.seed}

    def changed() -> pd.DataFrame:
        changes = draw_controls(vectors, acts, fit_on, layer=layer, strength=strength, **drawing)
        return measure_changes(lm, changes, held_out, texts=texts[1::2], **options)

    measured = stages.table("measured", changed)
    turned = stages.table("turned", lambda: find_turned(measured, names, rng=config.seed))
    stages.table("doses", lambda: measure_doses(lm, at, held_out, strengths=config.doses, texts=texts[1::2], **options))
    stages.table("interference", lambda: find_interference(measured, at.cosines(layer), rng=config.seed))
    chosen = {"layer": layer, "strength": strength}
    replace(vectors, record=vectors.record | chosen).save(folder / "vectors.safetensors")
    n_turned = int((turned["p_random_adjusted"] <= LEVEL).sum())
    record = {"config": asdict(config), "study": key_of_study(study), **chosen, "n_turned": n_turned}
    replace_text(folder / "vectors.json", json.dumps(record, indent=1))
    return open_vectors(folder)


def open_vectors(folder: str | Path) -> VectorsResult:
    """Open what :func:`run_vectors` wrote.

    Raises
    ------
    FileNotFoundError
        The folder holds no finished run.
    """
    path = Path(folder) / "vectors.json"
    if not path.exists():
        raise FileNotFoundError(f"{folder} holds no finished run; run `personascope vectors STUDY` first.")
    tables = {name: pd.read_parquet(path.with_name(f"{name}.parquet")) for name in _TABLES}
    return VectorsResult(path.parent, json.loads(path.read_text(encoding="utf-8")), **tables)


def export_vectors(lm: LanguageModel, result: VectorsResult) -> list[Path]:
    """Write each persona's vector at the chosen layer as a GGUF control vector; coefficient 1 is the chosen strength."""
    written = []
    for persona in result.vectors.personas:
        path = result.folder / "export" / f"{persona}.gguf"
        write_gguf(path, result.vectors[persona], lm, result.strength, layers=[result.layer])
        written.append(path)
    return written


def draw_vectors(result: VectorsResult, study: Study) -> None:
    """Draw the figures of a run, and write the section that the study's report shows."""
    cosines = result.vectors.cosines(result.layer)
    drawn = {
        "turned": plot_turned(result.turned),
        "doses": plot_doses(result.doses, bound=result.record["config"]["bound"])[0],
        "cosines": plot_cosines(cosines),
        "interference": plot_interference(result.interference),
    }
    figures = write_figures(drawn.items(), result.folder / "figures")
    captions = [(path, _CAPTIONS[path.stem]) for path in figures]
    if study.node_sets and any(study.node_sets.values()):
        write_node_sets(result.folder / "export" / "node_sets.csv", study.node_sets, study.best_layer)
    shown = result.turned.assign(persona=result.turned["persona"].map(short_name))
    table = table_html(
        shown.rename(columns=lambda name: name.replace("_", " ")), float_format="{:.3g}".format, na_rep="–"
    )
    section = Section("Persona vectors", " ".join(describe_turned(result)), table, captions)
    write_section(result.folder / "section.json", section, study=result.record["study"])


def describe_turned(result: VectorsResult) -> list[str]:
    """What a run found, in words."""
    config, turned, crossed = result.record["config"], result.turned, result.interference
    up = turned[turned["p_random_adjusted"] <= LEVEL]
    names = ", ".join(short_name(name) for name in up["persona"]) or "none"
    ratio = turned["perplexity_ratio"]
    off = crossed[crossed["steered"] != crossed["measured"]]
    sentences = [
        f"At layer {result.layer} and strength {result.strength:g} (in units of the residual stream's length), both chosen on "
        f"select pairs with a mean perplexity of at most {config['bound']:g} times that of the model as it is, "
        f"{len(up)} of {len(turned)} personas are turned up further than by random vectors of the same length (adjusted p ≤ "
        f"{LEVEL}): {names}; against vectors of flipped sides {int((turned['p_flipped_adjusted'] <= LEVEL).sum())}.",
        f"The cost on other neutral texts: perplexity times {ratio.min():.3f} to {ratio.max():.3f}.",
        f"Steering one persona moves another's preference in {int((off['p_adjusted'] <= LEVEL).sum())} of {len(off)} cases "
        f"(flips of the measured pairs, adjusted); effects and cosines correlate at "
        f"{np.corrcoef(off['effect'], off['cosine'])[0, 1]:.2f}." if len(off) > 2 else "",
    ]  # fmt: skip
    floor = len(turned) / (1 + config["n_random"]) if config["n_random"] else 1.0
    if floor > LEVEL:
        sentences.append(
            f"With {config['n_random']} random vectors, a persona that is alone in being turned cannot have an adjusted p below "
            f"{floor:.2g}: take {int(np.ceil(len(turned) / LEVEL))} or more."
        )
    return [sentence for sentence in sentences if sentence]


def _candidates(config: VectorsConfig, n_layers: int) -> list[int]:
    if config.layers is not None:
        return sorted(set(config.layers))
    return sorted({max(1, round(share * n_layers)) for share in np.linspace(1 / 3, 5 / 6, 5)})
