"""Time what a turn of each knob of the explorer takes, from the change to the finished picture, against 300 ms.

Run ``uv run python benchmarks/bench_explorer.py [--nodes 4096] [--pairs 125] [--turns 9]``. Synthetic activations in memory:
two personas, eight layers; of 125 pairs 94 are in the test part, with which each knob begins.
Measured in the kernel: the way to the browser is not in it.
"""

import argparse
import gc
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle, islice

import numpy as np
import xarray as xr

from utils.explorer.widget import Explorer, Setting, explore

TARGET = 300


def make_activations(*, n_nodes: int, n_pairs: int, n_layers: int = 8, seed: int = 0) -> xr.DataArray:
    """Two personas; in the positive statements a twentieth of the nodes is shifted."""
    rng = np.random.default_rng(seed)
    personas = np.repeat(["openness", "neuroticism"], 2 * n_pairs)
    positive = np.tile(np.repeat([True, False], n_pairs), 2)
    values = rng.normal(size=(n_layers, len(personas), n_nodes)).astype(np.float32)
    values[:, positive, : n_nodes // 20] += 0.7
    labels = {
        "persona": personas,
        "topic": np.full(len(personas), "personality"),
        "direction": np.where(positive, "positive", "negative"),
        "pair": [f"{name}-{i % n_pairs}" for i, name in enumerate(personas)],
    }
    return xr.DataArray(
        values,
        dims=("layer", "statement", "node"),
        coords={
            "layer": np.arange(1, n_layers + 1),
            "statement": [f"s{i}" for i in range(len(personas))],
            **{name: ("statement", label) for name, label in labels.items()},
        },
    )


def list_values(explorer: Explorer, name: str, start: Setting) -> Iterator:
    """Values to turn a knob to, over and over, its ends among them; never twice the same in a row."""
    control = explorer.controls[name]
    if hasattr(control, "options"):
        values = [option[1] if isinstance(option, tuple) else option for option in control.options]
    else:
        middle = getattr(start, name)
        values = [control.max, control.min, control.min + (control.max - control.min) // 2 or middle]
    return cycle(values[::-1])


def time_knob(acts: xr.DataArray, name: str, start: Setting, turns: int) -> list[float]:
    """Milliseconds of each turn of one knob, the others at their start."""
    explorer = explore(acts, start=start)
    gc.collect()  # what building twelve explorers leaves behind is no part of a turn
    taken = []
    for value in islice(list_values(explorer, name, start), turns):
        before = time.perf_counter()
        explorer.controls[name].value = value
        explorer.wait()
        if explorer.message.value:
            raise RuntimeError(f"{name} = {value}: {explorer.message.value}")
        if explorer.found is None or explorer.found.setting != replace(start, **{name: value}):
            raise RuntimeError(f"{name} = {value} was not scanned")
        taken.append(1e3 * (time.perf_counter() - before))
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=4096)
    parser.add_argument("--pairs", type=int, default=125)
    parser.add_argument("--turns", type=int, default=9)
    arguments = parser.parse_args()
    acts = make_activations(n_nodes=arguments.nodes, n_pairs=arguments.pairs)
    start = Setting("openness", 4, part="test", n_clean=15, n_anomalous=15)
    print(
        f"{arguments.nodes} nodes, 2 x {arguments.pairs} statements, {start.n_runs} runs, {start.n_permutations} flips"
    )
    print(f"{'knob':12s} {'median ms':>10} {'worst ms':>10}   target {TARGET} ms")
    time_knob(acts, "rng", start, 2)
    for name in explore(acts, start=start).controls:
        taken = time_knob(acts, name, start, arguments.turns)
        print(f"{name:12s} {np.median(taken):10.0f} {max(taken):10.0f}   {'met' if max(taken) <= TARGET else 'missed'}")


if __name__ == "__main__":
    main()
