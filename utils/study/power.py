"""How many statements? How many personas each test finds in fewer of the study's own pairs, or with a planted effect."""

import math
from collections.abc import Callable, Sequence
from typing import Any, cast, get_args

import numpy as np
import pandas as pd
from jaxtyping import Float
from joblib import Parallel, delayed
from scipy.stats import false_discovery_control
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from deepscan import calibrated_scan, detect, node_test, separation_test
from utils.options import PowerTest
from utils.statements.contrasts import Contrast, find_contrasts, restrict, subsample
from utils.statements.splits import split_parts
from utils.study.results import Study
from utils.study.settings import fit_records

PowerTests = Sequence[PowerTest]
_FEWEST = 5
# 14 personas / 300 < 0.05: one that is alone in being found can pass after correction.
_PERMUTATIONS = 299


def measure_power(
    values: Float[np.ndarray, "statements nodes"],
    contrasts: Sequence[Contrast],
    *,
    tests: PowerTests = ("separation", "calibrated", "node"),
    sizes: Sequence[int] | None = None,
    plant: tuple[int, float] | None = None,
    n_draws: int = 20,
    n_permutations: int = _PERMUTATIONS,
    level: float = 0.05,
    rng: int = 0,
    n_jobs: int = 1,
    progress: bool = True,
) -> pd.DataFrame:
    """Find out how many personas each test would have found with fewer pairs.

    Parameters
    ----------
    values
        Activations at one layer.
    contrasts
        What to compare.
    tests
        ``separation``, ``calibrated``, ``node`` (the smallest family-wise p-value of the node test) and ``scan``
        (:func:`deepscan.detect` with 20 runs, by far the slowest).
    sizes
        Pairs a persona (statements a side without pairs); by default 10, 20, 40, 80, ... and all that there are.
    plant
        ``(nodes, sd)``: remove what is there by flipping sides at random, and shift so many random nodes of the H1 side by so
        many standard deviations of the node. None: what is there.
    n_draws
        Random draws of the pairs at each size.
    n_permutations
        Of every test.
    level
        After Benjamini–Hochberg over the personas.
    n_jobs
        Threads; the result does not depend on it.

    Returns
    -------
    DataFrame
        One row a size and test: ``n, test, found`` (mean number of personas over draws), ``found_low, found_high`` (5th and 95th
        percentile of the draws, which share pairs: their spread, not a confidence interval), ``n_personas``, ``power``
        (found over all). Subsampling says what fewer of *these* pairs would have shown; draws of nearly all pairs hardly differ.

    Raises
    ------
    ValueError
        An unknown test, a size below 5 or above what every persona has, more nodes to plant than there are, so few
        permutations that no persona could be found alone.
    """
    if not tests or set(tests) - set(get_args(PowerTest)):
        raise ValueError(f"unknown tests {list(tests)}; expected one or more of {', '.join(get_args(PowerTest))}.")
    most = min(min(len(contrast.h0), len(contrast.h1)) for contrast in contrasts)
    sizes = _default_sizes(most) if sizes is None else sorted(set(sizes))
    if wrong := [size for size in sizes if not _FEWEST <= size <= most]:
        raise ValueError(f"sizes {wrong} cannot be drawn; expected {_FEWEST} to {most}, what every persona has.")
    if plant is not None and not 1 <= plant[0] <= values.shape[1]:
        raise ValueError(f"{plant[0]} nodes cannot be shifted; there are 1 to {values.shape[1]}.")
    if len(contrasts) / (1 + n_permutations) > level:
        raise ValueError(
            f"with {n_permutations} permutations none of {len(contrasts)} personas could be found alone; expected at least "
            f"{math.ceil(len(contrasts) / level) - 1}."
        )
    draws = [
        (size, draw, np.random.default_rng([rng, i, draw])) for i, size in enumerate(sizes) for draw in range(n_draws)
    ]
    options = {"plant": plant, "n_permutations": n_permutations, "level": level}
    calls = (delayed(_count_found)(values, contrasts, tests, *each, **options) for each in draws)
    parallel = Parallel(n_jobs=n_jobs, prefer="threads", return_as="generator")
    with threadpool_limits(1, user_api="blas"):
        bar = tqdm(parallel(calls), total=len(draws), desc="power", unit="draw", disable=not progress)
        counts = np.array(list(bar)).reshape(len(sizes), n_draws, len(tests))
    rows = []
    for size, by_draw in zip(sizes, counts, strict=True):
        for test, found in zip(tests, by_draw.T, strict=True):
            low, high = np.quantile(found, [0.05, 0.95])
            row = {"n": size, "test": test, "found": float(found.mean()), "found_low": low, "found_high": high}
            rows.append(row | {"n_personas": len(contrasts), "power": float(found.mean()) / len(contrasts)})
    return pd.DataFrame(rows)


def study_power(study: Study, *, layer: int | None = None, **options: Any) -> pd.DataFrame:
    """:func:`measure_power` of a study's ``test`` pairs, at its scanned layer or another.

    Raises
    ------
    ValueError
        A layer that the study has not, or as :func:`measure_power`.
    """
    acts, config = study.activations, study.config
    layer = study.best_layer if layer is None else layer
    if layer not in (there := acts["layer"].to_numpy().tolist()):
        raise ValueError(f"the study has no layer {layer}; it has {', '.join(map(str, there))}.")
    part = split_parts(acts, rng=config["seed"])
    contrasts = [restrict(each, part == "test") for each in find_contrasts(acts, contrast=config["contrast"])]
    return measure_power(acts.sel(layer=layer).to_numpy(), contrasts, **options)


def describe_power(table: pd.DataFrame, *, paired: bool, test: PowerTest = "separation") -> str:
    """How many personas a test would have found with fewer pairs, in a sentence; empty where no fewer were tried."""
    own = table[table["test"] == test]
    shown = own[own["n"] < own["n"].max()]
    if not len(shown):
        return ""
    told = ", ".join(f"{row.found:.0f} with {row.n}" for row in shown.itertuples())
    unit = "pairs" if paired else "statements a side"
    return f"With fewer {unit}, the {test} test would have found, of {own['n_personas'].max()}: {told}."


def _count_found(
    values: np.ndarray,
    contrasts: Sequence[Contrast],
    tests: PowerTests,
    size: int,
    draw: int,
    generator: np.random.Generator,
    *,
    plant: tuple[int, float] | None,
    n_permutations: int,
    level: float,
) -> list[int]:
    """How many personas each test finds in one draw of the pairs."""
    p: dict[str, list[float]] = {test: [] for test in tests}
    for contrast in contrasts:
        drawn = subsample(contrast, size, rng=generator)
        h0, h1 = values[drawn.h0], values[drawn.h1]
        if plant is not None:
            h0, h1 = _plant(h0, h1, drawn.paired, *plant, generator)
        pairs = np.arange(len(h0)) if drawn.paired else None
        for test in tests:
            p[test].append(_TESTS[test](h0, h1, pairs=pairs, n_permutations=n_permutations, rng=draw))
    return [int((false_discovery_control(own) <= level).sum()) for own in p.values()]


def _scan(h0: np.ndarray, h1: np.ndarray, **options: Any) -> float:
    n = fit_records(min(len(h0), len(h1)))
    return cast(float, detect(h0, h1, n_clean=n, n_anomalous=n, n_runs=20, **options).p_value)


_TESTS: dict[PowerTest, Callable[..., float]] = {
    "separation": lambda h0, h1, **options: separation_test(h0, h1, **options).p_value,
    "calibrated": lambda h0, h1, **options: calibrated_scan(h0, h1, **options).p_value,
    "node": lambda h0, h1, **options: float(node_test(h0, h1, **options)["p_adjusted"].min()),
    "scan": _scan,
}


def _default_sizes(most: int) -> list[int]:
    doubled = [10 * 2**k for k in range(20) if 10 * 2**k < most]
    return [*doubled, most]


def _plant(
    h0: np.ndarray, h1: np.ndarray, paired: bool, n_nodes: int, sd: float, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    if paired:
        flip = generator.random(len(h0)) < 0.5
        h0, h1 = np.where(flip[:, None], h1, h0), np.where(flip[:, None], h0, h1)
    else:
        mixed = generator.permutation(np.concatenate([h0, h1]))
        h0, h1 = mixed[: len(h0)], mixed[len(h0) :]
    nodes = generator.permutation(h0.shape[1])[:n_nodes]
    h1 = h1.copy()
    h1[:, nodes] += sd * np.concatenate([h0, h1])[:, nodes].std(axis=0) * generator.choice([-1, 1], len(nodes))
    return h0, h1
