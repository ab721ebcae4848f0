"""The preference of every held-out pair under every cell of a causal check, run in parts that survive an interruption."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from utils.causal.effects import ASKED, CLEAN
from utils.causal.plan import Cell, Replacements, make_intervention
from utils.causal.scoring import CachedPrompts, score_interventions
from utils.causal.settings import Check
from utils.causal_prompts import PersonaPrompts
from utils.models.load import LanguageModel
from utils.nodes.scans import LayerNodes
from utils.prompt_scores import score_prompts
from utils.records import key_of, write_frame

# Cells that are run and written together: what an interruption costs at most.
_TOGETHER = 25


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
                if not path.exists():
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
