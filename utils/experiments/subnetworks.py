"""Does a persona have a subnetwork of its own? Calibration, masks and their measurement, written to a folder as it goes."""

import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from utils.experiments.stages import Stages, read_run, read_tables
from utils.folders import hold_folder
from utils.models.language_model import LanguageModel
from utils.options import MaskScore, Role
from utils.records import key_of
from utils.responses.big_five import find_trait
from utils.responses.evaluation import PREFERENCES, Condition, evaluate, summarise
from utils.responses.preference import neutral_texts
from utils.responses.wording import persona_prompt
from utils.statements.names import find_names
from utils.statements.questions import draw_questions, load_questions
from utils.statements.splits import draw_parts, shuffle_sides
from utils.subnetworks.build import contrastive_masks, persona_mask
from utils.subnetworks.calibration import Calibration, calibrate_labellings
from utils.subnetworks.masks import PersonaMask
from utils.subnetworks.selection import check_sparsity
from utils.subnetworks.sparsity import choose_sparsity, sweep_sparsity
from utils.viz.pages import write_figures
from utils.viz.subnetworks import plot_conditions, plot_sweep

_SIDES = ("positive", "negative")


@dataclass(frozen=True)
class SubnetworksConfig:
    """Everything that the experiment depends on besides the model and the statements.

    Attributes
    ----------
    persona, unrelated
        Whose subnetwork, and whose is made in the same way for comparison; None leaves that out.
    score, scores
        Of the masks that are measured, and of those in the sweep over sparsities.
    sparsities, most_perplexity
        Of the sweep on the ``select`` pairs; the sparsity with the largest preference is taken, see
        :func:`utils.subnetworks.choose_sparsity`. With one sparsity there is no sweep.
    n_pairs
        Pairs of each persona to calibrate on.
    n_shuffles
        Masks from sides of which half of the pairs are swapped: they have nothing to find.
    n_examples
        Statements shown with each question in the condition ``few-shot``.
    n_questions
        For the accuracy, as many of each right letter.
    role
        Turn of the chat template that holds a statement of the calibration.
    seed
        Of everything that is drawn.
    """

    persona: str
    unrelated: str | None = None
    score: MaskScore = "relu"
    scores: Sequence[MaskScore] = ("softplus", "relu")
    sparsities: Sequence[float] = (0.1, 0.2, 0.4)
    most_perplexity: float = 1.5
    n_pairs: int = 64
    n_shuffles: int = 3
    n_examples: int = 2
    n_questions: int = 16
    role: Role = "system"
    seed: int = 0


@dataclass(frozen=True)
class SubnetworksResult:
    """What :func:`run_subnetworks` wrote to ``folder``.

    Attributes
    ----------
    record
        ``subnetworks.json``: options, model, the sparsity that was chosen, the names of the masks, versions.
    sweep
        Of :func:`utils.subnetworks.sweep_sparsity`; None where there was nothing to choose.
    measured, summary
        Of :func:`utils.responses.evaluate` and :func:`utils.responses.summarise`, on the ``test`` pairs.
    """

    folder: Path
    record: dict[str, Any]
    sweep: pd.DataFrame | None
    measured: pd.DataFrame
    summary: pd.DataFrame

    @cached_property
    def masks(self) -> dict[str, PersonaMask]:
        """By condition: ``mask``, ``opposite mask``, ``wanda mask``, ``unrelated persona``, ``shuffled sides 1`` ..."""
        return {name: PersonaMask.load(self.folder / file) for name, file in self.record["masks"].items()}

    @cached_property
    def calibration(self) -> Calibration:
        """Of the true sides."""
        return Calibration.load(self.folder / _place("calibrations", "true"))


def run_subnetworks(
    lm: LanguageModel,
    statements: pd.DataFrame,
    config: SubnetworksConfig,
    out: str | Path,
    *,
    progress: bool = True,
) -> SubnetworksResult:
    """Calibrate, choose the sparsity, build masks and controls, and measure them beside asking in words.

    Parameters
    ----------
    statements
        Of the persona and of the unrelated one, in whole pairs: some to calibrate on, the ``select`` pairs to choose the
        sparsity on, the rest to measure on.
    out
        A folder. What is there already and was made from the same inputs is not made again.

    Raises
    ------
    ValueError
        Too few pairs, an unknown persona or score, or no sparsity within the limit of perplexity.
    OSError
        The folder cannot be written to, or another process holds it.
    """
    folder = Path(out)
    personas = find_names(
        "persona", [config.persona, *([config.unrelated] if config.unrelated else [])], statements["persona"]
    )
    config = replace(config, persona=personas[0], unrelated=personas[1] if config.unrelated else None)
    _check_config(config)
    statements = statements[statements["persona"].isin(personas)].reset_index(drop=True)
    part = draw_parts(statements, n_pairs=config.n_pairs, rng=config.seed)
    own = statements["persona"] == config.persona
    known, select, test = (statements[own & (part == name)] for name in ("calibrate", "select", "test"))
    with hold_folder(folder, record="subnetworks.json"):
        stages = Stages(folder, lm.fingerprint, statements, config.persona, config.n_pairs, config.role, config.seed)
        labellings = {"true": _by_side(known)}
        if config.unrelated:
            labellings["unrelated"] = _by_side(statements[~own & (part == "calibrate")])
        for i in range(config.n_shuffles):
            labellings[f"shuffled {i + 1}"] = shuffle_sides(known, rng=config.seed + i)
        calibrations = _calibrate(lm, stages, labellings, config, progress)
        texts, sparsity, sweep = neutral_texts(), float(config.sparsities[0]), None
        if len(config.sparsities) > 1:
            options = {"sparsities": list(config.sparsities), "scores": list(config.scores), "rng": config.seed}
            run = partial(sweep_sparsity, lm, calibrations["true"], select, texts[::20], **options, progress=progress)
            sweep = stages.table("sweep", run, options)
            sparsity = choose_sparsity(sweep, score=config.score, most_perplexity=config.most_perplexity)
        masks = _build(lm, stages, calibrations, config, sparsity)
        read = {name: PersonaMask.load(folder / file) for name, file in masks.items()}
        measure = partial(_measure, lm, read, known, test, config, texts[10::20], progress)
        chosen = (sparsity, config.score, config.unrelated, config.n_shuffles, config.n_examples, config.n_questions)
        measured = stages.table("measured", measure, *chosen)
        summary = stages.table("summary", partial(summarise, measured, baseline="dense", rng=config.seed), *chosen)
        record = {
            "config": asdict(config),
            "model": lm.name,
            "fingerprint": lm.fingerprint,
            "statements": key_of(statements),
            "n_pairs": {
                name: len(each) // 2 for name, each in (("calibrate", known), ("select", select), ("test", test))
            },
            "sparsity": sparsity,
            "masks": masks,
            "versions": {name: importlib.metadata.version(name) for name in ("personascope", "torch", "transformers")},
        }
        record = stages.finish("subnetworks.json", record)
        return SubnetworksResult(folder, record, sweep, measured, summary)


def _check_config(config: SubnetworksConfig) -> None:
    if config.unrelated == config.persona:
        raise ValueError(f"the unrelated persona is {config.persona!r} itself; expected another one.")
    for sparsity in config.sparsities:
        check_sparsity(sparsity)


def open_subnetworks(folder: str | Path) -> SubnetworksResult:
    """Read back what :func:`run_subnetworks` wrote.

    Raises
    ------
    FileNotFoundError
        The folder does not hold a finished run.
    ValueError
        A file of it is damaged.
    """
    folder, command = Path(folder), "personascope mask run"
    record = read_run(folder, "subnetworks.json", kind="run", command=command)
    swept = len(record["config"]["sparsities"]) > 1
    tables = read_tables(folder, ["measured", "summary", *(["sweep"] if swept else [])], command=command)
    return SubnetworksResult(folder, record, tables.get("sweep"), tables["measured"], tables["summary"])


def draw_subnetworks(result: SubnetworksResult) -> list[Path]:
    """Draw the sweep, and the change of every measure from the dense model, into ``figures/`` as PNG and SVG."""
    return write_figures(_draw(result), result.folder / "figures")


def _draw(result: SubnetworksResult) -> Iterator[tuple[str, Axes]]:
    if result.sweep is not None:
        for measure in ("likelihood", "perplexity"):
            yield f"sweep_{measure}", plot_sweep(result.sweep, measure=measure)
    names = result.summary["condition"].unique()
    nulls = [name for name in names if name.startswith("shuffled")]
    for measure in (*PREFERENCES, "perplexity"):
        yield measure, plot_conditions(result.summary, measure=measure, change=True, nulls=nulls)


def _place(kind: str, name: str) -> str:
    return f"{kind}/{name.replace(' ', '-')}.safetensors"


def _by_side(statements: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    positive, negative = (statements[statements["direction"] == side] for side in _SIDES)
    return positive, negative


def _calibrate(
    lm: LanguageModel,
    stages: Stages,
    labellings: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]],
    config: SubnetworksConfig,
    progress: bool,
) -> dict[str, Calibration]:
    """By labelling; those that are missing are made together, so that each statement is run once."""
    made: dict[str, Calibration] = {}

    def write(name: str, path: Path) -> None:
        if not made:
            found = calibrate_labellings(lm, list(labellings.values()), role=config.role, progress=progress)
            made.update(zip(labellings, found, strict=True))
        made[name].save(path)

    places = {}
    for name, (positive, negative) in labellings.items():
        places[name] = stages.file(_place("calibrations", name), partial(write, name), positive, negative)
    return {name: Calibration.load(path) for name, path in places.items()}


def _build(
    lm: LanguageModel,
    stages: Stages,
    calibrations: Mapping[str, Calibration],
    config: SubnetworksConfig,
    sparsity: float,
) -> dict[str, str]:
    """The files of the masks, by condition."""
    options: dict[str, Any] = {"sparsity": sparsity, "score": config.score, "rng": config.seed, "progress": False}
    build = partial(persona_mask, lm, calibrations["true"], **options)
    wanted = {"mask": build}
    if config.score in ("relu", "softplus", "disjoint"):
        both = partial(contrastive_masks, lm, calibrations["true"], **options)
        wanted = {"mask": lambda: both()[0], "opposite mask": lambda: both()[1]}
    wanted["wanda mask"] = partial(build, score="wanda")
    for name, calibration in calibrations.items():
        if name != "true":
            condition = "unrelated persona" if name == "unrelated" else name.replace("shuffled", "shuffled sides")
            wanted[condition] = partial(persona_mask, lm, calibration, **options)
    places = {name: _place("masks", name) for name in wanted}
    for name, make in wanted.items():
        stages.file(places[name], lambda path, make=make: make().save(path), sparsity, config.score, config.unrelated)
    return places


def _measure(
    lm: LanguageModel,
    masks: Mapping[str, PersonaMask],
    known: pd.DataFrame,
    test: pd.DataFrame,
    config: SubnetworksConfig,
    texts: Sequence[str],
    progress: bool,
) -> pd.DataFrame:
    """The mask beside asking in words in all measures, the controls in the two cheaper preferences and their cost."""
    prompt, mask = persona_prompt(config.persona), masks["mask"]
    examples = tuple(known.loc[known["direction"] == "positive", "statement"])
    conditions = [
        Condition("dense"),
        Condition("system prompt", system=prompt),
        Condition("few-shot", examples=examples, n_examples=config.n_examples),
        Condition("mask", mask),
        Condition("mask + prompt", mask, system=prompt),
    ]
    compared = [Condition(name, each) for name, each in masks.items() if name != "mask"]
    questions, trait = draw_questions(load_questions(), config.n_questions, rng=config.seed), find_trait(config.persona)
    options: dict[str, Any] = {"texts": texts, "progress": progress}
    measured = evaluate(lm, conditions, test, questions=questions, trait=trait, **options)
    cheap = evaluate(lm, compared, test, preferences=["likelihood", "self_report"], **options)
    return pd.concat([measured, cheap], ignore_index=True)
