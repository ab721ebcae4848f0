"""The whole of a patching experiment on one pair of identities, written to a folder as tables and figures."""

import importlib.metadata
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from utils.answers import answer_questions
from utils.attribution import attribute, rank_agreement
from utils.choice_prompts import check_identities, identity_prompt
from utils.choices import Component, Segment
from utils.effects import choose_questions, summarise_cells
from utils.logit_terms import persona_terms
from utils.models import LanguageModel
from utils.patch_claims import check_groups, check_thirds
from utils.patching import list_cells, patch_questions
from utils.persona_attention import compare_groups, persona_attention
from utils.stages import replace_text, write_frame

logger = logging.getLogger(__name__)

GRID: tuple[Component, ...] = ("resid", "attn", "mlp")


@dataclass(frozen=True)
class PatchingResult:
    """Tables by name, as they lie in ``folder`` (``<name>.parquet``).

    ``answers`` (both identities), ``questions`` (the chosen ones), ``grid``, ``heads``, ``cells`` (question by question),
    ``attribution``, ``agreement``, ``terms``, ``claims``, and with identities also ``attention``, ``group_heads``, ``groups``.
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
        What is asked; at most ``n_questions`` of them are patched, see :func:`utils.effects.choose_questions`.
    out
        A folder; tables are written one by one, each in one step.
    layers
        Of the exact grid; all by default. The gradient's approximation is of all layers anyway.
    identities
        For the attention to groups, which is left out without them.
    attention_questions
        Over how many of the chosen questions attention is averaged.

    Raises
    ------
    ValueError
        As :func:`utils.patching.patch`, before anything long is done.
    """
    check_identities([base, source])
    folder, started = Path(out), time.perf_counter()
    result = PatchingResult(folder)

    def keep(name: str, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        result.tables[name] = compute()
        write_frame(folder / f"{name}.parquet", result.tables[name])
        return result.tables[name]

    asked = {
        name: answer_questions(lm, questions, system=identity_prompt(name), progress=progress)
        for name in (base, source)
    }
    keep(
        "answers", lambda: pd.concat([table.assign(identity=name) for name, table in asked.items()], ignore_index=True)
    )
    chosen = keep("questions", lambda: choose_questions(questions, asked[base], asked[source], n=n_questions))
    given = (lm, base, source, chosen)
    grid = list_cells(lm, GRID, layers, segments)
    cells = keep("cells", lambda: patch_questions(*given, grid, max_tokens=max_tokens, progress=progress))
    exact = keep("grid", lambda: summarise_cells(cells, rng=rng))
    heads = list_cells(lm, ["heads"], None, ["last"])
    keep(
        "heads",
        lambda: summarise_cells(patch_questions(*given, heads, max_tokens=max_tokens, progress=progress), rng=rng),
    )
    approximate = keep(
        "attribution", lambda: attribute(*given, components=GRID, segments=segments, rng=rng, progress=progress)
    )
    keep("agreement", lambda: rank_agreement(exact, approximate))
    keep("terms", lambda: persona_terms(*given, progress=progress))
    if {("mlp", "persona"), ("attn", "last")} <= set(zip(cells["component"], cells["segment"], strict=True)):
        keep("claims", lambda: check_thirds(cells, lm.n_layers, rng=rng))
    if identities is not None:
        seen = keep(
            "attention", lambda: persona_attention(lm, chosen.head(attention_questions), identities, progress=progress)
        )
        keep("groups", lambda: check_groups(keep("group_heads", lambda: compare_groups(seen, rng=rng))))
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
        "segments": list(segments),
        "attention_questions": attention_questions,
        "seed": rng,
        "versions": {name: importlib.metadata.version(name) for name in ("personascope", "torch", "transformers")},
        "seconds": round(time.perf_counter() - started, 1),
    }
    replace_text(folder / "patching.json", json.dumps(options, indent=1))
    return result


def flip_summary(answers: pd.DataFrame) -> pd.DataFrame:
    """Accuracy and changed answers of the two identities of a run, one row an identity."""
    wide = answers.pivot(index="id", columns="identity", values="answer")
    changed = float((wide.iloc[:, 0] != wide.iloc[:, 1]).mean())
    table = answers.groupby("identity", sort=False).agg(
        n_questions=("id", "size"), accuracy=("correct", "mean"), letter_mass=("letter_mass", "mean")
    )
    return table.assign(changed=np.round(changed, 4)).reset_index()
