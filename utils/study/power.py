"""How many statements? How many personas each test finds in fewer of the study's own pairs, or with a planted effect."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import false_discovery_control
from tqdm.auto import tqdm

from deepscan import calibrated_scan, separation_test
from utils.statements.contrasts import Contrast, subsample

TESTS = {"separation": separation_test, "calibrated": calibrated_scan}
_FEWEST = 5


def measure_power(
    values: Float[np.ndarray, "statements nodes"],
    contrasts: Sequence[Contrast],
    *,
    sizes: Sequence[int] | None = None,
    plant: tuple[int, float] | None = None,
    n_draws: int = 20,
    n_permutations: int = 199,
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
    sizes
        Pairs a persona (statements a side without pairs); by default 10, 20, 40, 80, ... and all that there are.
    plant
        ``(nodes, sd)``: remove what is there by flipping sides at random, and shift so many random nodes of the H1 side by so
        many standard deviations of the node. None: what is there.
    n_draws
        Random draws of the pairs at each size.
    level
        After Benjamini–Hochberg over the personas.

    Returns
    -------
    DataFrame
        One row a size and test: ``n, test, found`` (mean number of personas over draws), ``found_low, found_high`` (5th and 95th
        percentile of the draws, which share pairs: their spread, not a confidence interval), ``n_personas``, ``power``
        (found over all). Subsampling says what fewer of *these* pairs would have shown; draws of nearly all pairs hardly differ.

    Raises
    ------
    ValueError
        A size below 5 or above what every persona has, more nodes to plant than there are.
    """
    most = min(min(len(contrast.h0), len(contrast.h1)) for contrast in contrasts)
    sizes = _default_sizes(most) if sizes is None else sorted(set(sizes))
    if wrong := [size for size in sizes if not _FEWEST <= size <= most]:
        raise ValueError(f"sizes {wrong} cannot be drawn; expected {_FEWEST} to {most}, what every persona has.")
    if plant is not None and not 1 <= plant[0] <= values.shape[1]:
        raise ValueError(f"{plant[0]} nodes cannot be shifted; there are 1 to {values.shape[1]}.")
    found = {(size, test): [] for size in sizes for test in TESTS}
    with tqdm(total=len(sizes) * n_draws, desc="power", unit="draw", disable=not progress) as bar:
        for i, size in enumerate(sizes):
            for draw in range(n_draws):
                generator = np.random.default_rng([rng, i, draw])
                p = {test: [] for test in TESTS}
                for contrast in contrasts:
                    drawn = subsample(contrast, size, rng=generator)
                    h0, h1 = values[drawn.h0], values[drawn.h1]
                    if plant is not None:
                        h0, h1 = _plant(h0, h1, drawn.paired, *plant, generator)
                    pairs = np.arange(len(h0)) if drawn.paired else None
                    options = {"pairs": pairs, "n_permutations": n_permutations, "rng": draw, "n_jobs": n_jobs}
                    for test, run in TESTS.items():
                        p[test].append(run(h0, h1, **options).p_value)
                for test, own in p.items():
                    found[size, test].append(int((false_discovery_control(own) <= level).sum()))
                bar.update()
    rows = []
    for (size, test), counts in found.items():
        low, high = np.quantile(counts, [0.05, 0.95])
        row = {"n": size, "test": test, "found": float(np.mean(counts)), "found_low": low, "found_high": high}
        rows.append(row | {"n_personas": len(contrasts), "power": float(np.mean(counts)) / len(contrasts)})
    return pd.DataFrame(rows)


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
