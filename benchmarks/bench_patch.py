"""Time the exact layer x segment x component grid against one full forward pass a cell, and compare the numbers.

Run ``uv run python benchmarks/bench_patch.py [--questions 20] [--layer-step 3] [--model PATH]``. The plain way runs all
questions of a cell together, as one padded batch, through the whole model. It is timed twice: as ``model(ids)`` is, with
logits of every token, which the target is for, and with those of the last tokens only. Before the persona nothing differs
and ``patch`` runs nothing, so that those cells are left out. Times are of this machine at this moment; the ratio is what
can be compared. Where other programs keep the cores busy, set ``OMP_NUM_THREADS=1``.
"""

import argparse
import time
from collections.abc import Sequence

import numpy as np
import torch

from utils.alignment import Pair, pair_prompts
from utils.answers import answer_questions
from utils.batches import pad_right
from utils.choice_prompts import identity_prompt, letter_tokens, render_questions
from utils.clean_runs import run_clean
from utils.components import hook_component
from utils.effects import choose_questions
from utils.models import LanguageModel, load_model
from utils.next_token import logits_at
from utils.patched_runs import Cell
from utils.patching import letters_of, list_cells, patch_questions
from utils.questions import load_questions

TARGET, TOLERANCE = 4.0, 1e-4
COMPONENTS = ("resid", "attn", "mlp")


def patch_plainly(
    lm: LanguageModel, pairs: list[Pair], tokens: Sequence[int], cells: list[Cell], *, every_token: bool
) -> np.ndarray:
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
            if every_token:
                whole = lm.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
                logits = whole[torch.arange(len(pairs)), last]
            else:
                logits = logits_at(lm, ids, last, attention_mask=mask)
        found[at] = [float(logits[row, a] - logits[row, b]) for row, (a, b) in enumerate(letters)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--base", default="person")
    parser.add_argument("--source", default="weak student")
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--layer-step", type=int, default=3, help="take every third layer; 1 for all")
    parser.add_argument("--segments", default="persona,question,last")
    arguments = parser.parse_args()
    lm = load_model(arguments.model)
    asked = load_questions().iloc[:: max(1, 240 // (3 * arguments.questions))]
    answers = [answer_questions(lm, asked, system=identity_prompt(name)) for name in (arguments.base, arguments.source)]
    questions = choose_questions(asked, *answers, n=arguments.questions)
    # Every step-th layer from the first block's on, so that the mean depth of a cell is that of the whole grid.
    layers = range(1 + arguments.layer_step // 2, lm.n_layers + 1, arguments.layer_step)
    cells = list_cells(lm, COMPONENTS, layers, arguments.segments.split(","))
    pairs = pair_prompts(lm.tokenizer, arguments.base, arguments.source, questions)
    tokens = letter_tokens(lm.tokenizer, render_questions(lm.tokenizer, questions)[0])

    started = time.perf_counter()
    table = patch_questions(lm, arguments.base, arguments.source, questions, cells)
    fast = time.perf_counter() - started
    found = table["m_patched"].to_numpy().reshape(len(pairs), len(cells)).T
    print(
        f"{lm.name}: {len(cells)} cells ({arguments.segments}), {len(pairs)} questions, {torch.get_num_threads()} threads"
    )
    print(f"patch {fast:.1f} s")
    ratios, apart = {}, 0.0
    for every_token in (True, False):
        started = time.perf_counter()
        plain = patch_plainly(lm, pairs, tokens, cells, every_token=every_token)
        slow = time.perf_counter() - started
        ratios[every_token], apart = slow / fast, max(apart, float(np.abs(found - plain).max()))
        name = "every token's" if every_token else "the last token's"
        print(f"one full pass a cell, {name} logits: {slow:.1f} s, {slow / fast:.2f} times patch's")
    print(f"largest difference of m {apart:.1e} logits, tolerance {TOLERANCE:.0e}")
    print(f"{'met' if ratios[True] >= TARGET and apart <= TOLERANCE else 'missed'}: target {TARGET:.0f} times")


if __name__ == "__main__":
    main()
