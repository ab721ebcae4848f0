"""The whole of a patching experiment on one pair of identities, written to a folder as tables and figures."""

import importlib.metadata
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from tqdm.auto import tqdm

from utils.experiments.stages import Stages
from utils.layers.thirds import THIRDS
from utils.models.language_model import LanguageModel
from utils.options import Component, Segment
from utils.patching.attention import compare_groups, persona_attention
from utils.patching.attribution import attribute, rank_agreement
from utils.patching.effects import CELL, CLAIMS, check_groups, check_thirds, choose_questions, summarise_cells
from utils.patching.grid import list_cells, patch_questions
from utils.patching.logit_terms import persona_terms
from utils.patching.runs import Cell
from utils.records import replace_text
from utils.responses.answers import LOGITS, answer_questions, compare_answers
from utils.responses.wording import LETTERS, check_identities, identity_prompt
from utils.viz.pages import write_figures
from utils.viz.patching import (
    plot_agreement,
    plot_claims,
    plot_group_attention,
    plot_head_map,
    plot_patch_grid,
    plot_terms,
)

logger = logging.getLogger(__name__)

GRID: tuple[Component, ...] = ("resid", "attn", "mlp")


@dataclass(frozen=True)
class PatchingResult:
    """Tables by name, as they lie in ``folder`` (``<name>.parquet``).

    ``answers`` (both identities), ``changes`` (what identities and groups change, see
    :func:`utils.responses.compare_answers`), ``questions`` (the chosen ones), ``grid``, ``heads``, ``cells`` (both, question
    by question), ``claim_layers`` (the cells that the claims are about, at every layer), ``attribution``, ``agreement``,
    ``terms``, ``claims``, and with identities also ``attention``, ``group_heads``, ``groups``.
    """

    folder: Path
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)


def run_patching(
    lm: LanguageModel,
    base: str,
    source: str,
    questions: pd.DataFrame,
    out: str | Path,
    *,
    n_questions: int = 20,
    layers: Sequence[int] | None = None,
    segments: Sequence[Segment] = ("persona", "question", "last"),
    identities: pd.DataFrame | None = None,
    asked_identities: pd.DataFrame | None = None,
    attention_questions: int = 2,
    max_tokens: int | Literal["auto"] = "auto",
    rng: int = 0,
    progress: bool = True,
) -> PatchingResult:
    """Ask, choose the questions that the identity changes, patch, approximate, decompose, and compare groups of heads.

    Parameters
    ----------
    base, source
        Identities; activations go from the source's runs into the base's.
    questions
        What is asked; at most ``n_questions`` of them are patched, see :func:`utils.patching.effects.choose_questions`.
    out
        A folder; tables are written one by one, each in one step. One that is there already and was made from the same inputs
        is not made again.
    layers
        Of the exact grid; all by default. The gradient's approximation, the heads and what the claims are about are of
        all layers anyway: a claim about thirds of the layers must not hang on which of them were taken.
    identities
        For the attention to groups, which is left out without them.
    asked_identities
        Identities and groups that are asked all questions too, for the table ``changes``, in which the source always is.
    attention_questions
        Over how many of the chosen questions attention is averaged.

    Raises
    ------
    ValueError
        As :func:`utils.patching.patch`, before anything long is done.
    """
    check_identities([base, source])
    if asked_identities is not None:
        check_identities([base, source, *asked_identities["identity"]])
    folder, started = Path(out), time.perf_counter()
    result, stages = PatchingResult(folder), Stages(folder, lm.fingerprint, base, source, questions)

    def keep(name: str, compute: Callable[[], pd.DataFrame], *inputs: object) -> pd.DataFrame:
        result.tables[name] = stages.table(name, compute, *inputs)
        return result.tables[name]

    answers = keep("answers", lambda: _ask(lm, questions, (base, source), progress))
    asked = {
        str(name): own.drop(columns="identity").reset_index(drop=True)
        for name, own in answers.groupby("identity", sort=False)
    }
    others = pd.DataFrame() if asked_identities is None else asked_identities
    keep("changes", lambda: _compare(lm, questions, asked, asked_identities, rng=rng, progress=progress), others, rng)
    chosen = keep(
        "questions", lambda: choose_questions(questions, asked[base], asked[source], n=n_questions), n_questions
    )
    given = (lm, base, source, chosen)
    parts = {"grid": list_cells(lm, GRID, layers, segments), "heads": list_cells(lm, ["heads"], None, ["last"])}
    parts["claim_layers"] = [
        cell for _, component, segment, _ in CLAIMS for cell in list_cells(lm, [component], None, [segment])
    ]
    wanted = list(dict.fromkeys(cell for part in parts.values() for cell in part))
    run = (n_questions, _places(wanted).to_dict("list"))
    cells = keep("cells", lambda: patch_questions(*given, wanted, max_tokens=max_tokens, progress=progress), *run)
    for name, part in parts.items():
        keep(name, partial(_summarise, cells, part, rng=rng), *run, rng)
    exact, segments = result.tables["grid"], list(segments)
    approximate = keep(
        "attribution",
        lambda: attribute(*given, components=GRID, segments=segments, rng=rng, progress=progress),
        n_questions,
        segments,
        rng,
    )
    keep("agreement", lambda: rank_agreement(exact, approximate), *run, segments, rng)
    keep("terms", lambda: persona_terms(*given, progress=progress), n_questions)
    if lm.n_layers >= len(THIRDS):
        keep("claims", lambda: check_thirds(cells, lm.n_layers, rng=rng), *run, rng)
    else:
        logger.warning("%s has %d layers, too few for thirds: no claims", lm.name, lm.n_layers)
    if identities is not None:
        read = (identities, n_questions, attention_questions)
        some = chosen.head(attention_questions)
        seen = keep("attention", lambda: persona_attention(lm, some, identities, progress=progress), *read)
        compared = keep("group_heads", lambda: compare_groups(seen, rng=rng), *read, rng)
        keep("groups", lambda: check_groups(compared), *read, rng)
    options = {
        "model": lm.name,
        "revision": lm.revision,
        "fingerprint": lm.fingerprint,
        "dtype": str(lm.dtype),
        "base": base,
        "source": source,
        "prompts": [identity_prompt(base), identity_prompt(source)],
        "n_asked": len(questions),
        "n_questions": n_questions,
        "layers": None if layers is None else [int(layer) for layer in layers],
        "segments": segments,
        "n_asked_identities": 0 if asked_identities is None else len(asked_identities),
        "attention_questions": attention_questions,
        "seed": rng,
        "versions": {name: importlib.metadata.version(name) for name in ("personascope", "torch", "transformers")},
        "seconds": round(time.perf_counter() - started, 1),
        "tables": list(result.tables),
    }
    replace_text(folder / "patching.json", json.dumps(options, indent=1))
    return result


def open_patching(folder: str | Path) -> PatchingResult:
    """Read back what :func:`run_patching` wrote.

    Raises
    ------
    ValueError
        The folder does not hold a finished run.
    """
    folder = Path(folder)
    path = folder / "patching.json"
    if not path.exists():
        raise ValueError(f"{folder} does not hold a finished patching run; run personascope patch first.")
    names = json.loads(path.read_text(encoding="utf-8"))["tables"]
    return PatchingResult(folder, {name: pd.read_parquet(folder / f"{name}.parquet") for name in names})


def _ask(lm: LanguageModel, questions: pd.DataFrame, identities: Sequence[str], progress: bool) -> pd.DataFrame:
    """The answers of some identities, with a column ``identity``."""
    asked = [
        answer_questions(lm, questions, system=identity_prompt(name), progress=progress).assign(identity=name)
        for name in identities
    ]
    return pd.concat(asked, ignore_index=True)


def _places(part: Sequence[Cell]) -> pd.DataFrame:
    return pd.DataFrame([[getattr(cell, name) for name in CELL] for cell in part], columns=CELL)


def _summarise(cells: pd.DataFrame, part: Sequence[Cell], *, rng: int) -> pd.DataFrame:
    """Effects of some of the cells, over the questions."""
    return summarise_cells(_places(part).merge(cells, on=CELL), rng=rng)


def _compare(
    lm: LanguageModel,
    questions: pd.DataFrame,
    asked: dict[str, pd.DataFrame],
    identities: pd.DataFrame | None,
    *,
    rng: int,
    progress: bool,
) -> pd.DataFrame:
    """What the source, and identities that are asked here, change of the base's answers."""
    base, source = asked
    names = pd.DataFrame({"identity": [source], "group": ["source"]})
    answered = [asked[source]]
    if identities is not None:
        names = pd.concat([names, identities[["identity", "group"]]], ignore_index=True)
        for identity in tqdm(identities["identity"], desc="identities", unit="identity", disable=not progress):
            answered.append(answer_questions(lm, questions, system=identity_prompt(identity), progress=False))
    right = questions["answer"].map(LETTERS.index).to_numpy()
    logits = np.stack([table[LOGITS].to_numpy() for table in answered])
    return compare_answers(asked[base][LOGITS].to_numpy(), logits, right, names, rng=rng)


def flip_summary(answers: pd.DataFrame) -> pd.DataFrame:
    """Accuracy and changed answers of the two identities of a run, one row an identity."""
    wide = answers.pivot(index="id", columns="identity", values="answer")
    changed = float((wide.iloc[:, 0] != wide.iloc[:, 1]).mean())
    table = answers.groupby("identity", sort=False).agg(
        n_questions=("id", "size"), accuracy=("correct", "mean"), letter_mass=("letter_mass", "mean")
    )
    return table.assign(changed=np.round(changed, 4)).reset_index()


def list_changes(changes: pd.DataFrame) -> pd.DataFrame:
    """The table ``changes`` of a run as it is read: one row an identity or group, each interval in one cell."""
    shown = changes[["kind", "group", "identity"]].copy()
    for name in ("accuracy", "changed", "right_shift", "shift"):
        bounds = zip(changes[name], changes[f"{name}_low"], changes[f"{name}_high"], strict=True)
        shown[name] = [f"{value:.2f} ({low:.2f} to {high:.2f})" for value, low, high in bounds]
    # The source is a group of its own, which would say the same twice.
    shown = shown.join(changes[["gained", "lost", "p_value", "p_adjusted"]])
    return shown[(changes["kind"] == "identity") | (changes["group"] != "source")]


def draw_patching(result: PatchingResult) -> list[Path]:
    """Draw every figure of a run as PNG and SVG beside its tables; flipped and fallback questions apart."""
    return write_figures(_draw(result.tables), result.folder)


def _draw(tables: Mapping[str, pd.DataFrame]) -> Iterator[tuple[str, Axes]]:
    for fallback, own in tables["grid"].groupby("fallback"):
        kind = "-fallback" if fallback else ""
        yield f"grid{kind}", plot_patch_grid(own)[0]
        yield f"direct{kind}", plot_patch_grid(own[own["segment"] == "last"], value="direct")[0]
        yield f"heads{kind}", plot_head_map(tables["heads"][tables["heads"]["fallback"] == fallback])
        yield f"terms{kind}", plot_terms(tables["terms"][tables["terms"]["fallback"] == fallback])
        if "claims" in tables:
            claimed = tables["claim_layers"]
            yield f"claims{kind}", plot_claims(claimed[claimed["fallback"] == fallback])[0]
        yield f"attribution{kind}", plot_agreement(own, tables["attribution"])
    if "group_heads" in tables:
        first = tables["group_heads"].drop_duplicates(["layer", "head"]).head(6)
        heads = list(zip(first["layer"], first["head"], strict=True))
        yield "group_attention", plot_group_attention(tables["attention"], heads).flat[0]
