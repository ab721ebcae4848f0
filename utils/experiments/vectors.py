"""Persona vectors of a study: fitted, put to the test on held-out pairs, and written for other tools, in a folder."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from utils.models.language_model import LanguageModel
from utils.options import CausalMeasure, VectorMethod
from utils.records import key_of, replace_text, write_frame
from utils.responses.preference import neutral_texts
from utils.statements.contrasts import find_contrasts, label_frame, restrict
from utils.statements.questions import draw_questions, load_questions
from utils.study.results import Study, key_of_study
from utils.vectors.differences import side_differences
from utils.vectors.doses import choose_dose, measure_doses, split_for_steering, take_pairs
from utils.vectors.effects import draw_controls, find_interference, find_turned, measure_changes
from utils.vectors.export import write_gguf, write_node_sets
from utils.vectors.fit import PersonaVectors, persona_vectors
from utils.vectors.judgement import judge_vectors
from utils.viz.pages import Section, table_html, write_figures, write_section
from utils.viz.style import short_name
from utils.viz.vectors import plot_cosines, plot_doses, plot_interference, plot_turned

_LEVEL = 0.05
_TABLES = ("judged", "chosen_on", "measured", "turned", "doses", "interference")
_CAPTIONS = {
    "turned": "Effect of each vector on the preference for its persona with its 95 % interval over held-out pairs, before the "
    "5th to 95th percentile of random vectors of the same length and of vectors from flipped sides.",
    "doses": "Effect and perplexity over strength, on held-out pairs and texts. Dotted: the bound on what was chosen.",
    "cosines": "Cosines of the personas' vectors at the layer.",
    "interference": "What steering by each vector (rows) does to the preference for each persona (columns); * adjusted p ≤ 0.05.",
}


@dataclass(frozen=True)
class VectorsConfig:
    """Everything that a run depends on besides the study.

    Attributes
    ----------
    personas
        All by default.
    method
        As of :func:`utils.vectors.persona_vectors`.
    measure
        The preference: ``likelihood`` (log-likelihood a token) or ``self_report`` (log-odds of agreeing).
    layers, strengths
        To choose from on ``select`` pairs; layers are five between a third and five sixths of the depth by default.
    doses
        Strengths of the dose–response.
    bound
        Largest perplexity of neutral texts, times that of the model as it is, that a chosen strength may cost.
    n_select, n_pairs
        Pairs of a persona to choose on and to measure on.
    n_random, n_flipped
        Random vectors, and vectors from flipped sides, of the same length.
    n_texts
        Neutral texts, half to choose on and half to measure on.
    n_flips
        Of the cross-fitted judgement.
    seed
        Of everything that is drawn.
    """

    personas: Sequence[str] | None = None
    method: VectorMethod = "mean-difference"
    measure: CausalMeasure = "likelihood"
    layers: Sequence[int] | None = None
    strengths: Sequence[float] = (0.05, 0.1, 0.2, 0.4)
    doses: Sequence[float] = (-0.4, -0.2, -0.1, 0.1, 0.2, 0.4)
    bound: float = 1.1
    n_select: int = 10
    n_pairs: int = 20
    n_random: int = 39
    n_flipped: int = 39
    n_texts: int = 40
    n_flips: int = 199
    seed: int = 0


@dataclass(frozen=True)
class VectorsResult:
    """A run's folder and its record; tables are read when asked for.

    ``judged``: cross-fitted, by layer; ``chosen_on``: doses on select pairs; ``turned``, ``doses``, ``interference``: on
    held-out pairs; ``measured``: every pair under every condition.
    """

    folder: Path
    record: dict[str, Any]

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

    def __getattr__(self, name: str) -> pd.DataFrame:
        if name not in _TABLES:
            raise AttributeError(name)
        return pd.read_parquet(self.folder / f"{name}.parquet")


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
    folder.mkdir(parents=True, exist_ok=True)
    base = key_of(key_of_study(study), json.dumps(asdict(config), default=list))
    tables = _Tables(folder, base)

    vectors = persona_vectors(acts, fit_on, method=config.method)
    select = take_pairs(frame[paired & (part == "select")], config.n_select)
    held_out = take_pairs(frame[paired & (part == "measure")], config.n_pairs)
    texts = neutral_texts(draw_questions(load_questions(), config.n_texts, rng=config.seed))
    options: dict[str, Any] = {"measure": config.measure, "progress": progress}
    judge_on = [restrict(contrast, part != "select") for contrast in contrasts]
    judging = {"method": config.method, "n_flips": config.n_flips, "rng": config.seed, "progress": progress}
    tables.make("judged", lambda: judge_vectors(acts, judge_on, **judging))
    layers = _candidates(config, lm.n_layers)
    chosen_on = tables.make(
        "chosen_on",
        lambda: measure_doses(lm, vectors.at(layers), select, strengths=config.strengths, texts=texts[::2], **options),
    )
    layer, strength = choose_dose(chosen_on, bound=config.bound)
    at = vectors.at(layer)
    differences = {
        contrast.persona: side_differences(acts.sel(layer=layer).to_numpy(), contrast, rng=config.seed)
        for contrast in fit_on
    }
    changes = draw_controls(
        dict(zip(names, at.values[0].astype(np.float64), strict=True)),
        differences,
        layer,
        strength=strength,
        norm=float(at.norms[0]),
        n_random=config.n_random,
        n_flipped=config.n_flipped,
        rng=config.seed,
    )
    measured = tables.make("measured", lambda: measure_changes(lm, changes, held_out, texts=texts[1::2], **options))
    turned = tables.make("turned", lambda: find_turned(measured, names, rng=config.seed))
    tables.make("doses", lambda: measure_doses(lm, at, held_out, strengths=config.doses, texts=texts[1::2], **options))
    tables.make("interference", lambda: find_interference(measured, at.cosines(layer), rng=config.seed))
    chosen = {"layer": layer, "strength": strength}
    PersonaVectors(
        vectors.values, vectors.layers, vectors.personas, vectors.norms, {**vectors.record, **chosen}, vectors.seen
    ).save(folder / "vectors.safetensors")
    record = {"config": asdict(config), "study": key_of_study(study), "key": base, **chosen, "n_turned": _count(turned)}
    replace_text(folder / "vectors.json", json.dumps(record, indent=1, default=list))
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
    return VectorsResult(Path(folder), json.loads(path.read_text(encoding="utf-8")))


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
    up = turned[turned["p_random_adjusted"] <= _LEVEL]
    names = ", ".join(short_name(name) for name in up["persona"]) or "none"
    ratio = turned["perplexity_ratio"]
    off = crossed[crossed["steered"] != crossed["measured"]]
    sentences = [
        f"At layer {result.layer} and strength {result.strength:g} (in units of the residual stream's length), both chosen on "
        f"select pairs with a mean perplexity of at most {config['bound']:g} times that of the model as it is, "
        f"{len(up)} of {len(turned)} personas are turned up further than by random vectors of the same length (adjusted p ≤ "
        f"{_LEVEL}): {names}; against vectors of flipped sides {int((turned['p_flipped_adjusted'] <= _LEVEL).sum())}.",
        f"The cost on other neutral texts: perplexity times {ratio.min():.3f} to {ratio.max():.3f}.",
        f"Steering one persona moves another's preference in {int((off['p_adjusted'] <= _LEVEL).sum())} of {len(off)} cases "
        f"(flips of the measured pairs, adjusted); effects and cosines correlate at "
        f"{np.corrcoef(off['effect'], off['cosine'])[0, 1]:.2f}." if len(off) > 2 else "",
    ]  # fmt: skip
    floor = len(turned) / (1 + config["n_random"]) if config["n_random"] else 1.0
    if floor > _LEVEL:
        sentences.append(
            f"With {config['n_random']} random vectors, a persona that is alone in being turned cannot have an adjusted p below "
            f"{floor:.2g}: take {int(np.ceil(len(turned) / _LEVEL))} or more."
        )
    return [sentence for sentence in sentences if sentence]


class _Tables:
    """Tables in a folder, each made once for the same inputs."""

    def __init__(self, folder: Path, key: str):
        self._folder = folder
        self._path = folder / "made.json"
        held = json.loads(self._path.read_text(encoding="utf-8")) if self._path.exists() else {}
        self._made: dict[str, str] = {name: of for name, of in held.items() if of == key}
        self._key = key

    def make(self, name: str, compute: Any) -> pd.DataFrame:
        path = self._folder / f"{name}.parquet"
        if self._made.get(name) != self._key or not path.exists():
            write_frame(path, compute())
            self._made[name] = self._key
            replace_text(self._path, json.dumps(self._made))
        return pd.read_parquet(path)


def _candidates(config: VectorsConfig, n_layers: int) -> list[int]:
    if config.layers is not None:
        return sorted(set(config.layers))
    return sorted({max(1, round(share * n_layers)) for share in np.linspace(1 / 3, 5 / 6, 5)})


def _count(turned: pd.DataFrame) -> int:
    return int((turned["p_random_adjusted"] <= _LEVEL).sum())
