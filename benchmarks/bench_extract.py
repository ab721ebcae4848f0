"""Compare the extraction of all layers with the bare forward pass and with the textbook loop, and measure its memory.

Run ``uv run python benchmarks/bench_extract.py [--statements N] [--repeats N]``. Three sides in one run, on the same
statements in the same prompts:

- bare: the decoder without hooks on the same batches;
- extract: the activations of every layer at the last token;
- textbook: one statement at a time, one pass for each third layer with ``output_hidden_states=True`` (timed on a
  sixteenth of the statements and scaled up).

The first two take turns and the median ratio counts. Memory is the peak of a fresh process that extracts 256
statements, and four copies of them (so that the lengths are alike), into a store, above what it took after loading the
model and a first 64 statements (Linux only).
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from utils.activations.extraction import extract
from utils.activations.plan import make_plan
from utils.models.forward import pad_right
from utils.models.language_model import LanguageModel
from utils.models.load import load_model
from utils.models.prompts import encode_prompts, find_template
from utils.statements.load import load_statements

MEMORY = """
import os, sys, threading, time
import pandas as pd
from utils.activations import extract
from utils.models import load_model
from utils.statements import load_statements

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

def watch():
    while True:
        peak[0] = max(peak[0], resident())
        time.sleep(0.01)

lm, frame = load_model(device="cpu"), load_statements()
extract(lm, frame.head(64), store=sys.argv[2] + "/warm", progress=False)
before = resident()
peak = [before]
threading.Thread(target=watch, daemon=True).start()
copies = [frame.head(256).assign(id=lambda own: own["id"] + f"-{i}") for i in range(int(sys.argv[1]))]
extract(lm, pd.concat(copies, ignore_index=True), store=sys.argv[2] + "/acts", progress=False)
print(peak[0] - before)
"""


def run_bare(lm: LanguageModel, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    with torch.inference_mode():
        for ids, mask in batches:
            lm.decoder(input_ids=ids, attention_mask=mask, use_cache=False)


def run_textbook(lm: LanguageModel, prompts: list) -> list[torch.Tensor]:
    found = []
    for prompt in prompts:
        ids = torch.tensor([prompt.ids])
        for layer in range(0, lm.n_layers + 1, 3):
            with torch.no_grad():
                found.append(lm.model(ids, output_hidden_states=True).hidden_states[layer][0, -1])
    return found


def seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def measure_memory(n_copies: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", MEMORY, str(n_copies), folder]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--statements", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    lm, every = load_model(), load_statements()
    frame = every.iloc[:: len(every) // options.statements].head(options.statements).reset_index(drop=True)
    prompts = encode_prompts(lm.tokenizer, frame["statement"].tolist(), find_template(lm.tokenizer))
    plan = make_plan(frame, prompts, "auto", lm.device)
    batches = [pad_right([plan.prompts[row].ids for row in rows], lm.device) for rows in plan.batches()]
    run_bare(lm, batches)
    ratios, bare_times, own_times = [], [], []
    for _ in range(options.repeats):
        bare = seconds(lambda: run_bare(lm, batches))
        own = seconds(lambda: extract(lm, frame, progress=False))
        ratios.append(own / bare)
        bare_times.append(bare)
        own_times.append(own)
    sample = prompts[::16]
    textbook = seconds(lambda: run_textbook(lm, sample)) * len(prompts) / len(sample)
    print(
        f"{len(frame)} statements, {lm.n_layers + 1} layers, {lm.name} on {lm.device}, {torch.get_num_threads()} threads"
    )
    print(f"bare forward   {statistics.median(bare_times):8.1f} s")
    ratio = statistics.median(ratios)
    print(f"extract        {statistics.median(own_times):8.1f} s   {ratio:.2f} x bare (target: at most 1.10)")
    print(
        f"textbook loop  {textbook:8.1f} s   {textbook / statistics.median(own_times):.0f} x extract (target: at least 20)"
    )
    small, large = measure_memory(1), measure_memory(4)
    print(
        f"memory beyond the model and a first batch: {small:.0f} MB for 256 statements, {large:.0f} MB for four times these"
    )


if __name__ == "__main__":
    main()
