"""Time interventions on node sets beside whole forward passes under the same interventions, both sides taken in turns.

Run ``uv run python benchmarks/bench_causal.py [--whole]``. One side starts each set from the residual stream cached at its
layer, with the beginning of the prompts run once a set; the other runs the padded prompts through the whole model under
:func:`utils.causal.intervene`. ``--whole`` also runs 100 random sets on 30 pairs under every default check.
"""

import argparse
import time

import numpy as np
import torch

from utils.causal.interventions import Intervention, ablate, intervene, scope_mask, steer
from utils.causal.scoring import mean_residuals, score_interventions
from utils.causal.settings import CHECKS, Check
from utils.models.forward import batch_rows, pad_right
from utils.models.language_model import LanguageModel
from utils.models.load import load_model
from utils.nodes.controls import random_sets
from utils.responses.measures import Readout, agreement_readout, likelihood_readout, read_batch
from utils.responses.wording import persona_prompt
from utils.statements.load import load_statements

PERSONA, N_PAIRS, N_RANDOM, SIZE = "conscientiousness", 30, 100, 30


def run_whole_passes(lm: LanguageModel, readout: Readout, interventions: list[Intervention]) -> np.ndarray:
    """What ``score_interventions`` computes, with whole passes: every token, every layer, every time."""
    found = np.empty((len(interventions), len(readout.prompts)))
    masks = scope_mask(readout, "all")
    for row, intervention in enumerate(interventions):
        for places in batch_rows(lm, [len(prompt.ids) for prompt in readout.prompts], "auto"):
            ids, mask = pad_right([readout.prompts[i].ids for i in places], lm.device)
            tokens = torch.zeros(ids.shape, dtype=torch.bool)
            for at, place in enumerate(places):
                tokens[at, : len(masks[place])] = torch.from_numpy(masks[place])
            with torch.inference_mode(), intervene(lm, intervention, tokens=tokens):
                found[row, places] = read_batch(
                    lm, readout, places, ids, skipped=0, attention_mask=mask, use_cache=False
                )
    return found


def make_readout(lm: LanguageModel, check: Check) -> Readout:
    statements = load_statements(personas=[PERSONA]).groupby("direction", sort=False).head(N_PAIRS)
    make = likelihood_readout if check.measure == "likelihood" else agreement_readout
    system = persona_prompt(PERSONA) if check.prompt == "persona" else None
    return make(lm.tokenizer, statements["statement"].tolist(), system=system)


def make_interventions(lm: LanguageModel, check: Check, readout: Readout, layer: int, n: int) -> list[Intervention]:
    sets = random_sets(SIZE, np.ones(lm.d_model, dtype=int), n, rng=0)
    residuals = mean_residuals(lm, readout, layer)
    if check.mode == "steer":
        norm = float(np.linalg.norm(residuals, axis=1).mean())
        return [steer(layer, nodes, residuals.std(axis=0), strength=0.2, norm=norm) for nodes in sets]
    return [ablate(layer, nodes, residuals.mean(axis=0)) for nodes in sets]


def compare(lm: LanguageModel, rounds: int, n_sets: int) -> None:
    print(f"{n_sets} sets of {SIZE} nodes, {2 * N_PAIRS} statements, medians of {rounds} rounds")
    print(f"{'check':32} {'layer':>5} {'whole':>8} {'ours':>8} {'ratio':>6} {'largest difference':>19}")
    for check in CHECKS:
        readout = make_readout(lm, check)
        for layer in (lm.n_layers // 3, 3 * lm.n_layers // 4):
            interventions, times = make_interventions(lm, check, readout, layer, n_sets), []
            for _ in range(rounds):
                start = time.perf_counter()
                one = run_whole_passes(lm, readout, interventions)
                middle = time.perf_counter()
                two = score_interventions(lm, readout, interventions, progress=False)
                times.append((middle - start, time.perf_counter() - middle))
            whole, ours = np.median(times, axis=0) / n_sets
            apart = np.abs(one - two).max()  # pyright: ignore[reportPossiblyUnboundVariable]
            print(f"{check!s:32} {layer:5d} {whole:6.2f} s {ours:6.2f} s {whole / ours:6.1f} {apart:19.1e}")


def run_whole(lm: LanguageModel) -> None:
    layer, total = 3 * lm.n_layers // 4, 0.0
    print(f"\n{N_RANDOM} random sets, {N_PAIRS} pairs, layer {layer}")
    for check in CHECKS:
        readout, start = make_readout(lm, check), time.perf_counter()
        score_interventions(lm, readout, make_interventions(lm, check, readout, layer, N_RANDOM))
        taken = time.perf_counter() - start
        total += taken
        print(f"{check!s:32} {taken:6.1f} s")
    print(f"{'all checks':32} {total:6.1f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder, .gguf file or hub id; the embedded model by default")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sets", type=int, default=4)
    parser.add_argument("--whole", action="store_true", help="also time 100 random sets under every check")
    given = parser.parse_args()
    loaded = load_model(given.model, device=given.device)
    compare(loaded, given.rounds, given.sets)
    if given.whole:
        run_whole(loaded)
