"""Time the exact layer x segment x component grid against one full forward pass a cell, and compare the numbers.

Run ``uv run python benchmarks/bench_patch.py [--questions 3] [--rounds 2] [--layer-step 2] [--model PATH]``, some three
minutes on two cores. The plain way runs the questions of a cell together, as one padded batch, through ``model(ids)``.
Before the persona nothing differs and ``patch`` runs nothing, so that those cells are left out. The two sides take turns,
each round with other questions. Times are of this machine at this moment; the ratio is what can be compared. Where other
programs keep the cores busy, set ``OMP_NUM_THREADS=1``.
"""

import argparse
import time
from collections.abc import Sequence

import numpy as np
import torch

from utils.models.components import hook_component
from utils.models.forward import logits_at, pad_right
from utils.models.language_model import LanguageModel
from utils.models.load import load_model
from utils.patching.alignment import SEGMENTS, Pair, pair_prompts
from utils.patching.grid import letters_of, list_cells, patch_questions
from utils.patching.runs import Cell, run_clean
from utils.responses.wording import letter_tokens, render_questions
from utils.statements.questions import load_questions

TARGET, TOLERANCE = 4.0, 1e-4
COMPONENTS = ("resid", "attn", "mlp")


def patch_plainly(lm: LanguageModel, pairs: list[Pair], tokens: Sequence[int], cells: list[Cell]) -> np.ndarray:
    """The m of every cell and question, (cell, question): the source's values kept once, then one full pass a cell."""
    sources = [run_clean(lm, pair.source, COMPONENTS) for pair in pairs]
    ids, mask = pad_right([pair.base.ids for pair in pairs], lm.device)
    last = mask.sum(dim=1) - 1
    with torch.inference_mode():
        base = logits_at(lm, ids, last, attention_mask=mask)
    letters = [letters_of(tokens, own, source.logits)[0] for own, source in zip(base, sources, strict=True)]
    found = np.empty((len(cells), len(pairs)))
    for at, cell in enumerate(cells):

        def replace(layer: int, value: torch.Tensor, cell: Cell = cell) -> torch.Tensor:
            changed = value.clone()
            for row, (pair, source) in enumerate(zip(pairs, sources, strict=True)):
                to, taken = pair.places(cell.segment)
                changed[row, to] = source.values[cell.component][layer][taken]
            return changed

        with torch.inference_mode(), hook_component(lm, cell.component, [cell.layer], replace):
            whole = lm.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        logits = whole[torch.arange(len(pairs)), last]
        found[at] = [float(logits[row, a] - logits[row, b]) for row, (a, b) in enumerate(letters)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--base", default="person")
    parser.add_argument("--source", default="weak student")
    parser.add_argument("--questions", type=int, default=3, help="of each round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--layer-step", type=int, default=2, help="take every second layer; 1 for all")
    parser.add_argument("--segments", default="persona,question,last")
    arguments = parser.parse_args()
    lm = load_model(arguments.model)
    n = arguments.questions * arguments.rounds
    questions = load_questions().iloc[:: 240 // n].head(n)
    # Every step-th layer from the first block's on, so that the mean depth of a cell is that of the whole grid.
    layers = range(1 + arguments.layer_step // 2, lm.n_layers + 1, arguments.layer_step)
    cells = list_cells(lm, COMPONENTS, layers, [name for name in SEGMENTS if name in arguments.segments.split(",")])
    tokens = letter_tokens(lm.tokenizer, render_questions(lm.tokenizer, questions)[0])
    print(f"{lm.name}: {len(cells)} cells ({arguments.segments}), {torch.get_num_threads()} threads")
    seconds, apart = np.zeros((arguments.rounds, 2)), 0.0
    for turn, taken in enumerate(seconds):
        own = questions.iloc[turn :: arguments.rounds]
        started = time.perf_counter()
        table = patch_questions(lm, arguments.base, arguments.source, own, cells, progress=False)
        taken[0] = time.perf_counter() - started
        pairs = pair_prompts(lm.tokenizer, arguments.base, arguments.source, own)
        started = time.perf_counter()
        plain = patch_plainly(lm, pairs, tokens, cells)
        taken[1] = time.perf_counter() - started
        found = table["m_patched"].to_numpy().reshape(len(pairs), len(cells)).T
        apart = max(apart, float(np.abs(found - plain).max()))
        print(
            f"round {turn + 1}, {len(pairs)} questions: patch {taken[0]:.1f} s, one full pass a cell {taken[1]:.1f} s, "
            f"ratio {taken[1] / taken[0]:.2f}"
        )
    ratio = seconds[:, 1].sum() / seconds[:, 0].sum()
    print(f"largest difference of m {apart:.1e} logits, tolerance {TOLERANCE:.0e}")
    print(f"{ratio:.2f} times, target {TARGET:.0f}: {'met' if ratio >= TARGET and apart <= TOLERANCE else 'missed'}")


if __name__ == "__main__":
    main()
