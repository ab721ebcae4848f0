"""How a large set of statements is planned, and how a study of large arrays uses the cores.

Run ``uv run python benchmarks/bench_load.py [--what plan,study] [--personas 200] [--statements 100000] [--rows 1000]``. ``plan``:
statements of many personas are read, their contrasts and parts found, prompts made and put into batches (with a tiny tokenizer).
``study``: arrays of 33 layers and 4,096 nodes, 5 runs and 19 permutations, without pictures and report, on one core and on all:
the ratio is what can be compared.
"""

import argparse
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests")]

import utils.study.run  # noqa: E402
from utils.activations.plan import make_plan  # noqa: E402
from utils.models.prompts import encode_prompts, find_template  # noqa: E402
from utils.statements.contrasts import find_contrasts, restrict  # noqa: E402
from utils.statements.load import load_statements  # noqa: E402
from utils.statements.splits import split_parts  # noqa: E402
from utils.study.run import run_study  # noqa: E402
from utils.study.settings import StudyConfig  # noqa: E402


def timed(name: str, run: Callable[[], Any]) -> Any:
    started, used = time.perf_counter(), time.process_time()
    made = run()
    seconds = time.perf_counter() - started
    print(f"{name:>24}: {seconds:6.2f} s, {(time.process_time() - used) / seconds:.2f} cores", flush=True)
    return made


def write_statements(path: Path, n: int, n_personas: int) -> None:
    at = np.arange(n)
    pair = at // 2
    pd.DataFrame(
        {
            "id": [f"s{i}" for i in at],
            "persona": [f"persona-{i % n_personas}" for i in pair],
            "topic": "made-up",
            "direction": np.where(at % 2, "negative", "positive"),
            "statement": [
                f"I {'like' if i % 2 == 0 else 'mind'} thing number {i // 2} of all that there are." for i in at
            ],
            "pair": [f"p{i}" for i in pair],
        }
    ).to_csv(path, index=False)


def plan(folder: Path, n: int, n_personas: int) -> None:
    from tiny import make_tokenizer

    write_statements(folder / "statements.csv", n, n_personas)
    tokenizer = make_tokenizer()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    frame = timed("read", lambda: load_statements(str(folder / "statements.csv")))
    contrasts = timed("contrasts", lambda: find_contrasts(frame))
    part = timed("parts", lambda: split_parts(frame, rng=0))
    timed("restricted", lambda: [restrict(each, part == name) for each in contrasts for name in ("select", "test")])
    template = find_template(tokenizer)
    prompts = timed("prompts", lambda: encode_prompts(tokenizer, frame["statement"].tolist(), template))
    timed("batches", lambda: make_plan(frame, prompts, "auto", torch.device("cpu")))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6
    print(
        f"{n} statements of {n_personas} personas: {time.perf_counter() - started:.1f} s, {grown:.2f} GB more at the peak"
    )


def study(folder: Path, n_rows: int) -> None:
    rng = np.random.default_rng(0)
    arrays = folder / "arrays"
    arrays.mkdir()
    for persona in ("alpha", "beta"):
        for direction in ("positive", "negative"):
            values = rng.standard_normal((33, n_rows // 4, 4096), dtype=np.float32)
            values[:, :, :20] += 0.5 * (direction == "positive")
            np.save(arrays / f"{persona}_{direction}.npy", values)
            del values
    utils.study.run.draw_figures = lambda made: (made.folder / "figures").mkdir(exist_ok=True)
    utils.study.run.write_report = lambda _made: None
    seconds, cores = {}, os.cpu_count() or 1
    for jobs in sorted({1, cores}, reverse=True):
        out = folder / f"study-{jobs}"
        config = StudyConfig(activations=str(arrays), runs=5, permutations=19, jobs=jobs)
        started = time.perf_counter()
        made = timed(f"{jobs} job{'s' if jobs > 1 else ''}", lambda out=out, config=config: run_study(out, config))
        seconds[jobs] = time.perf_counter() - started
        stages = sorted(made.record["seconds"].items(), key=lambda item: -item[1])[:8]
        print("    " + ", ".join(f"{name} {value:.1f} s" for name, value in stages), flush=True)
        timed("unchanged", lambda out=out, config=config: run_study(out, config))
        shutil.rmtree(out)
    print(f"one core takes {seconds[1] / seconds[cores]:.2f} times as long as {cores}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--what", default="plan,study")
    parser.add_argument("--statements", type=int, default=100_000)
    parser.add_argument("--personas", type=int, default=200)
    parser.add_argument("--rows", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="load-") as place:
        if "plan" in options.what.split(","):
            plan(Path(place), options.statements, options.personas)
        if "study" in options.what.split(","):
            study(Path(place), options.rows)


if __name__ == "__main__":
    main()
