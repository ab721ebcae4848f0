"""What a causal check measures: the preference of every held-out pair under every node set, and what interventions cost.

Preferences are run in parts that survive an interruption. The cost is how well the model still predicts neutral text and
answers questions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from utils.causal.effects import ASKED, CLEAN
from utils.causal.interventions import Intervention
from utils.causal.plan import Cell, Replacements, first_checks, make_intervention
from utils.causal.scoring import CachedPrompts, mean_residuals, score_interventions
from utils.causal.settings import CausalConfig, Check
from utils.intervals import interval, resample_ratio, resample_weights
from utils.models.language_model import LanguageModel
from utils.nodes.scans import LayerNodes
from utils.options import Scope
from utils.records import is_intact, key_of, write_frame
from utils.responses.measures import (
    Readout,
    agreement_readout,
    likelihood_readout,
    question_readout,
    score_prompts,
    text_readout,
)
from utils.responses.preference import neutral_texts
from utils.responses.wording import persona_prompt
from utils.statements.questions import draw_questions, load_questions
from utils.statements.splits import HeldOut

# Cells that are run and written together: what an interruption costs at most.
_TOGETHER = 25

# Statements of a side that means are taken over.
_BACKGROUND = 40


@dataclass(frozen=True)
class PersonaPrompts:
    """What the statements of a persona say.

    Attributes
    ----------
    h1, h0
        Of the pairs that are measured on, pair by pair.
    rest_h1, rest_h0
        Some of the others.
    """

    persona: str
    h1: tuple[str, ...]
    h0: tuple[str, ...]
    rest_h1: tuple[str, ...]
    rest_h0: tuple[str, ...]

    @classmethod
    def of(cls, held: HeldOut, texts: Sequence[str]) -> "PersonaPrompts":
        """``texts`` are those of all statements, in their order."""

        def pick(places: np.ndarray) -> tuple[str, ...]:
            return tuple(texts[int(at)] for at in places)

        rest_h1, rest_h0 = (
            # Spread over all, as the order goes by persona where several make up a side.
            pick(side[np.linspace(0, len(side) - 1, min(_BACKGROUND, len(side))).astype(int)])
            for side in (held.rest.h1, held.rest.h0)
        )
        return cls(held.persona, pick(held.h1), pick(held.h0), rest_h1, rest_h0)

    def readout(self, tokenizer: PreTrainedTokenizerBase, check: Check, texts: Sequence[str] | None = None) -> Readout:
        """A check's measure of other texts, or of the measured ones, the persona's before those of the other side."""
        make = likelihood_readout if check.measure == "likelihood" else agreement_readout
        system = persona_prompt(self.persona) if check.prompt == "persona" else None
        return make(tokenizer, [*self.h1, *self.h0] if texts is None else texts, system=system)

    def difference(self, scores: Float[np.ndarray, "n prompts"]) -> Float[np.ndarray, "n pairs"]:
        """The persona's statement minus the other one, of scores of the measured texts."""
        return scores[:, : len(self.h1)] - scores[:, len(self.h1) :]


def find_replacements(
    lm: LanguageModel, prompts: PersonaPrompts, check: Check, layer: int, *, scope: Scope = "all", rng: int = 0
) -> Replacements:
    """What nodes of a layer can be overwritten with in the prompts of a check, see :class:`Replacements`.

    All of it comes from the same request and the same tokens as those that are changed, so that an overwritten node gets
    a value that it could have there. Means and other statements come from under the neutral prompt also where the check
    asks for the persona: they would keep what asking adds to all statements alike. Matched statements are under the
    check's own prompt.
    """

    def read(asked: Check, texts: Sequence[str] | None) -> np.ndarray:
        return mean_residuals(lm, prompts.readout(lm.tokenizer, asked, texts), layer, scope=scope)

    neutral, n = replace(check, prompt="neutral"), len(prompts.h1)
    own, h1, h0 = read(check, None), read(neutral, prompts.rest_h1), read(neutral, prompts.rest_h0)
    generator = np.random.default_rng([rng, layer, 4])
    other = [h0[generator.integers(len(h0), size=n)], h1[generator.integers(len(h1), size=n)]]
    return Replacements(h0.mean(axis=0), np.concatenate(other), np.concatenate([own[n:], own[:n]]))


def collect_values(
    cells: Sequence[Cell],
    run: Callable[[Sequence[Cell]], pd.DataFrame],
    *,
    base: str,
    folder: Path,
    progress: bool = True,
) -> pd.DataFrame:
    """Run cells layer by layer and check by check, each with the model as it is beside them.

    Parameters
    ----------
    run
        Gives the values of cells of one layer and check, as :func:`run_cells` does.
    base
        Changes with everything that values depend on besides the cells.
    folder
        For one file a part; those that are there are read and not run.

    Returns
    -------
    DataFrame
        As :func:`utils.causal.summarise_effects` takes it.
    """
    frames = []
    rank = {check: place for place, check in enumerate(dict.fromkeys(cell.check for cell in cells))}
    ordered = sorted(cells, key=lambda cell: (cell.layer, rank[cell.check]))
    with tqdm(total=len(cells), desc="node sets", disable=not progress) as bar:
        for (layer, check), group in groupby(ordered, key=lambda cell: (cell.layer, cell.check)):
            own = [Cell(layer, check, 0.0, CLEAN, -1, 0, frozenset()), *group]
            for first in range(0, len(own), _TOGETHER):
                part = own[first : first + _TOGETHER]
                path = folder / f"{key_of(base, [_describe(cell) for cell in part])}.parquet"
                if not is_intact(path, {}):
                    write_frame(path, run(part))
                frames.append(pd.read_parquet(path))
                bar.update(sum(cell.selector != CLEAN for cell in part))
    return pd.concat(frames, ignore_index=True)


def run_cells(
    lm: LanguageModel,
    prompts: PersonaPrompts,
    nodes_at: Callable[[int], LayerNodes],
    replacements_at: Callable[[int, Check], Replacements],
    cached_at: Callable[[int, Check], CachedPrompts],
    cells: Sequence[Cell],
) -> pd.DataFrame:
    """Values of cells of one layer and check; ``cached_at`` gives the prompts of a check, run up to a layer."""
    layer, check = cells[0].layer, cells[0].check
    changes = [make_intervention(cell, nodes_at(layer), partial(replacements_at, layer, check)) for cell in cells]
    cached = cached_at(layer, check)
    scores = score_interventions(lm, cached, changes, progress=False)
    return _label(cells, prompts.difference(scores / cached.readout.n_read), lm.d_model)


def ask_in_words(
    lm: LanguageModel, prompts: PersonaPrompts, check: Check, layer: int, size: int, strength: float
) -> pd.DataFrame:
    """Values under a prompt that asks for the persona, for comparison with a check under the neutral one; else none."""
    if check.prompt != "neutral":
        return pd.DataFrame()
    readout = prompts.readout(lm.tokenizer, replace(check, prompt="persona"))
    scores = score_prompts(lm, readout, progress=False) / readout.n_read
    cell = Cell(layer, check, strength, ASKED, -1, size, frozenset())
    return _label([cell], prompts.difference(scores[None]), lm.d_model)


def _describe(cell: Cell) -> list:
    nodes = None if cell.nodes is None else [list(node) for node in sorted(cell.nodes)]
    return [cell.layer, str(cell.check), cell.strength, cell.selector, cell.draw, cell.size, nodes]


def _label(cells: Sequence[Cell], preference: np.ndarray, width: int) -> pd.DataFrame:
    n_pairs = preference.shape[1]
    rows = [
        {
            "layer": cell.layer,
            "mode": cell.check.mode,
            "measure": cell.check.measure,
            "prompt": cell.check.prompt,
            "strength": cell.strength,
            "size": cell.size,
            "selector": cell.selector,
            "draw": cell.draw,
            "n_nodes": width if cell.nodes is None else len(cell.nodes),
        }
        for cell in cells
    ]
    frame = pd.DataFrame(rows).loc[np.repeat(np.arange(len(cells)), n_pairs)].reset_index(drop=True)
    return frame.assign(pair=np.tile(np.arange(n_pairs), len(cells)), value=preference.ravel())


def measure_costs(
    lm: LanguageModel,
    cells: Sequence[Cell],
    found: LayerNodes,
    replacements: Callable[[Check], Replacements],
    config: CausalConfig,
    *,
    n_bootstrap: int = 2000,
    progress: bool = True,
) -> pd.DataFrame:
    """Perplexity on neutral texts and accuracy on questions under every cell of the first check of each mode.

    All tokens but the first are changed, whatever the scope of the check.

    Parameters
    ----------
    cells
        At one layer; those of other checks are left out.
    replacements
        What nodes are overwritten with under a check; only means can be used on other texts, so that ``resample`` and
        ``patch`` are left out.

    Returns
    -------
    DataFrame
        One row a mode and selector, random sets together: ``mode, strength, selector, n_sets``; ``perplexity`` and
        ``perplexity_ratio`` to the model as it is, ``accuracy`` and ``accuracy_change``, both changes with ``_low`` and
        ``_high`` (95 %, bootstrap over texts and questions). The model as it is has a row of selector ``none``.
    """
    questions = draw_questions(load_questions(), config.n_cost, rng=config.seed)
    texts = text_readout(lm.tokenizer, neutral_texts(questions))
    asked = question_readout(lm.tokenizer, questions)
    kept = [cell for cell in cells if cell.check in first_checks(config) and cell.check.mode in ("steer", "ablate")]
    changes = [Intervention(found.layer)]
    changes += [make_intervention(cell, found, lambda: replacements(cell.check)) for cell in kept]  # noqa: B023
    options = {"scope": "all", "progress": progress}
    likelihood = score_interventions(lm, texts, changes, name="neutral texts", **options)
    correct = score_interventions(lm, asked, changes, name="questions", **options)
    labels = pd.DataFrame(
        [("", 0.0, CLEAN), *((cell.check.mode, cell.strength, cell.selector) for cell in kept)],
        columns=["mode", "strength", "selector"],
    )
    weights = resample_weights(len(questions), n_bootstrap, config.seed)
    rows = []
    for (mode, strength, selector), group in labels.groupby(["mode", "strength", "selector"], sort=False):
        at = group.index.to_numpy()
        change, low, high = _compare(correct[at].mean(0) - correct[0], np.ones(len(questions)), weights)
        loss, loss_low, loss_high = _compare(likelihood[0] - likelihood[at].mean(0), texts.n_read, weights)
        rows.append(
            {
                "mode": mode,
                "strength": strength,
                "selector": selector,
                "n_sets": len(at),
                "perplexity": np.exp(-likelihood[at].mean(0).sum() / texts.n_read.sum()),
                "perplexity_ratio": np.exp(loss),
                "perplexity_ratio_low": np.exp(loss_low),
                "perplexity_ratio_high": np.exp(loss_high),
                "accuracy": correct[at].mean(),
                "accuracy_change": change,
                "accuracy_change_low": low,
                "accuracy_change_high": high,
            }
        )
    return pd.DataFrame(rows)


def _compare(values: np.ndarray, sizes: np.ndarray, weights: np.ndarray) -> tuple[float, float, float]:
    point, resampled = resample_ratio(values, sizes, weights)
    low, high = interval(resampled)
    return point, float(low), float(high)
