"""Level and power of the four tests of a persona, on a model's own activations.

Run ``uv run python benchmarks/bench_power.py [--activations FOLDER] [--part level|power|personas|all]``.

Level: the sides of a persona's test pairs are flipped at random (and, as if there were no pairs, all labels permuted),
which leaves everything but the effect; a test should then give p <= 0.05 in 5 % of the draws. Power: after such a flip,
some nodes of the h1 side are shifted by so many of their standard deviations. Personas: how many of the model's own are found
after Benjamini–Hochberg.

Activations are extracted once and kept in ``FOLDER``, by default in the user's cache folder; the store of a study
(``<study>/activations.zarr``) does as well. Statements without pairs work the same way, with permuted labels.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import binomtest, false_discovery_control

from deepscan import calibrated_scan, detect, node_test, separation_test
from utils.activations import extract, open_store
from utils.activations.store import split_positions
from utils.models import load_model
from utils.models.checkpoints import cache_folder
from utils.statements import Contrast, find_contrasts, load_statements, restrict, split_parts

LEVEL = 0.05
# Nodes, standard deviations, and the power that each test is to have there.
CELLS = {
    (5, 0.4): {"calibrated_scan": 0.9},
    (30, 0.25): {"calibrated_scan": 0.9, "separation_test": 0.95},
    (150, 0.15): {"separation_test": 0.95},
    (150, 0.25): {"calibrated_scan": 0.9, "detect": 0.7},
}
WANTED = {"separation_test": 12, "detect": 10, "calibrated_scan": 11}


@dataclass(frozen=True)
class Sides:
    """One persona's activations at one layer; with pairs, row i of both is pair i."""

    persona: str
    h0: np.ndarray
    h1: np.ndarray
    pairs: np.ndarray | None


Test = Callable[[Sides, int, int], float]


def scan_pairs(sides: Sides, n_permutations: int, rng: int, *, n_runs: int = 40, jobs: int = 2) -> float:
    options = {"n_runs": n_runs, "n_permutations": n_permutations, "rng": rng, "n_jobs": jobs}
    return detect(sides.h0, sides.h1, pairs=sides.pairs, **options).p_value


def all_tests(n_runs: int) -> dict[str, Test]:
    """p-value of each test for some sides, a number of permutations and a seed."""

    def separate(sides: Sides, n_permutations: int, rng: int) -> float:
        return separation_test(sides.h0, sides.h1, pairs=sides.pairs, n_permutations=n_permutations, rng=rng).p_value

    def calibrate(sides: Sides, n_permutations: int, rng: int) -> float:
        return calibrated_scan(sides.h0, sides.h1, pairs=sides.pairs, n_permutations=n_permutations, rng=rng).p_value

    def by_node(sides: Sides, n_permutations: int, rng: int) -> float:
        table = node_test(sides.h0, sides.h1, pairs=sides.pairs, n_permutations=n_permutations, rng=rng)
        return float(table["p_adjusted"].min())

    def scan(sides: Sides, n_permutations: int, rng: int) -> float:
        # Runs of a scan take far longer than all the rest.
        return scan_pairs(sides, min(n_permutations, 99), rng, n_runs=n_runs)

    return {"separation_test": separate, "calibrated_scan": calibrate, "node_test": by_node, "detect": scan}


def without_effect(sides: Sides, rng: np.random.Generator, *, paired: bool) -> Sides:
    """Flip the sides of random pairs, or permute all labels and forget the pairs."""
    if paired:
        flip = rng.integers(2, size=(len(sides.h0), 1)).astype(bool)
        h0, h1 = np.where(flip, sides.h1, sides.h0), np.where(flip, sides.h0, sides.h1)
        return Sides(sides.persona, h0, h1, sides.pairs)
    mixed = rng.permutation(np.concatenate([sides.h0, sides.h1]))
    return Sides(sides.persona, mixed[: len(sides.h0)], mixed[len(sides.h0) :], None)


def plant(sides: Sides, rng: np.random.Generator, n_nodes: int, shift: float, *, within: bool) -> Sides:
    """Shift random nodes of h1 by so many standard deviations: of all records, or of those of a pair about their mean."""
    nodes = rng.permutation(sides.h1.shape[1])[:n_nodes]
    h0, h1 = sides.h0[:, nodes], sides.h1[:, nodes]
    spread = (h1 - h0).std(axis=0) / np.sqrt(2) if within else np.concatenate([h0, h1]).std(axis=0)
    moved = sides.h1.copy()
    moved[:, nodes] += shift * spread
    return Sides(sides.persona, sides.h0, moved, sides.pairs)


def share(p_values: list[float]) -> dict[str, float]:
    """Share of p <= 0.05 with its 95 % interval."""
    hits = int(np.sum(np.array(p_values) <= LEVEL))
    interval = binomtest(hits, len(p_values)).proportion_ci(method="wilson")
    return {"share": hits / len(p_values), "low": interval.low, "high": interval.high, "draws": len(p_values)}


def draws(personas: list[Sides], count: int, seed: int) -> Iterator[tuple[int, Sides, np.random.Generator]]:
    """The personas in turn, each draw with a generator of its own."""
    for draw in range(count):
        yield draw, personas[draw % len(personas)], np.random.default_rng([seed, draw])


def print_level(personas: list[Sides], count: int) -> None:
    rows = []
    for paired in (True, False) if personas[0].pairs is not None else (False,):
        for name, test in all_tests(n_runs=5).items():
            found = []
            for draw, sides, rng in draws(personas, count, 1):
                found.append(test(without_effect(sides, rng, paired=paired), 19 if name == "detect" else 199, draw))
            rows.append({"test": name, "labels": "flipped" if paired else "permuted", **share(found)})
    table = pd.DataFrame(rows)
    print("\nlevel: share of p <= 0.05 without an effect; wanted: 0.03 to 0.07", table.round(3).to_string(), sep="\n")


def print_power(personas: list[Sides], count: int, scans: int, *, within: bool) -> None:
    """One row a cell and test; the scan, which takes far longer than the others, only where it has a target."""
    paired = personas[0].pairs is not None
    unit = "their pairs" if within else "all records"
    print(f"\npower: share of p <= 0.05 with planted shifts, in standard deviations of {unit}")
    header = True
    for (n_nodes, shift), wanted in CELLS.items():
        rows = []
        for name, test in all_tests(n_runs=40).items():
            if name == "detect" and name not in wanted:
                continue
            found = []
            for draw, sides, rng in draws(personas, scans if name == "detect" else count, 2):
                planted = plant(without_effect(sides, rng, paired=paired), rng, n_nodes, shift, within=within)
                found.append(test(planted, 199, draw))
            row = {"nodes": n_nodes, "shift": shift, "test": name, **share(found)}
            rows.append(row | {"wanted": wanted.get(name, np.nan)})
        print(pd.DataFrame(rows).round(3).to_string(header=header), flush=True)
        header = False


def print_personas(personas: list[Sides]) -> None:
    p_values = {
        name: [test(sides, 999, 0) for sides in personas]
        for name, test in all_tests(n_runs=40).items()
        if name != "detect"
    }
    p_values["detect"] = [scan_pairs(sides, 299, 0) for sides in personas]
    separated = [separation_test(each.h0, each.h1, pairs=each.pairs, n_permutations=0) for each in personas]
    table = pd.DataFrame(p_values, index=[each.persona for each in personas]).apply(false_discovery_control)
    table["accuracy"] = [found.accuracy for found in separated]
    table["low"], table["high"] = zip(*(found.accuracy_interval for found in separated), strict=True)
    print("\nadjusted p-values, and the accuracy of the separation test", table.round(4).to_string(), sep="\n")
    for name in p_values:
        wanted = f", wanted at least {WANTED[name]} of 14" if name in WANTED and len(table) == 14 else ""
        print(f"{name}: {(table[name] <= LEVEL).sum()} of {len(table)} personas{wanted}")


def choose_layer(acts: xr.DataArray, contrasts: list[Contrast]) -> int:
    """Layer of the highest mean accuracy on ``select``; layer 0 takes no part."""
    layers = [layer for layer in acts["layer"].to_numpy().tolist() if layer]
    accuracy = np.zeros(len(layers))
    for contrast in contrasts:
        h0, h1 = (acts.sel(layer=layers).isel(statement=rows).to_numpy() for rows in (contrast.h0, contrast.h1))
        pairs = np.arange(len(contrast.h0)) if contrast.paired else None
        accuracy += separation_test(h0, h1, pairs=pairs, n_permutations=0).accuracy
    return layers[int(accuracy.argmax())]


def read_personas(options: argparse.Namespace) -> list[Sides]:
    statements = load_statements(options.statements)
    name = Path(options.statements).stem if options.statements else "default"
    model = Path(options.model).stem if options.model else "default"
    folder = options.activations or cache_folder() / "benchmarks" / f"{model}-{name}.zarr"
    if options.activations and folder.exists():
        # The position of the scans, where a study holds several.
        acts = next(iter(split_positions(open_store(folder)).values()))
    else:
        acts = extract(load_model(options.model), statements, store=folder)
    part = split_parts(acts)
    contrasts = find_contrasts(acts)
    layer = options.layer or choose_layer(acts, [restrict(each, part == "select") for each in contrasts])
    values = acts.sel(layer=layer).to_numpy()
    personas = []
    for contrast in (restrict(each, part == "test") for each in contrasts):
        pairs = np.arange(len(contrast.h0)) if contrast.paired else None
        personas.append(Sides(contrast.persona, values[contrast.h0], values[contrast.h1], pairs))
    chosen = "given" if options.layer else "chosen on select"
    units = "pairs" if personas[0].pairs is not None else "H0 statements"
    print(f"layer {layer} ({chosen}), {len(personas)} personas, {len(personas[0].h0)} {units}, {values.shape[1]} nodes")
    return personas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["all", "level", "power", "personas"], default="all", help="what to measure")
    parser.add_argument("--activations", type=Path, help="store of activations: read if it is there, else made")
    parser.add_argument("--model", help="as of load_model; the default model if not given")
    parser.add_argument("--statements", help="as of load_statements; the shipped ones if not given")
    parser.add_argument("--layer", type=int, help="by default that of the highest accuracy on the select part")
    parser.add_argument("--sd", choices=["records", "pairs"], default="records", help="whose SD a shift is in")
    parser.add_argument("--draws", type=int, default=420, help="draws for the level; half as many for the power")
    parser.add_argument("--scans", type=int, default=56, help="draws for the power of detect")
    options = parser.parse_args()
    started = time.perf_counter()
    personas = read_personas(options)
    if options.part in ("all", "personas"):
        print_personas(personas)
    if options.part in ("all", "level"):
        print_level(personas, options.draws)
    if options.part in ("all", "power"):
        print_power(personas, options.draws // 2, options.scans, within=options.sd == "pairs")
    print(f"\n{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
