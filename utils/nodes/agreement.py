"""How far node sets agree: between rules, between personas, between halves of the pairs, each beside flipped sides."""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import false_discovery_control

from utils.nodes.sets import NodeSet, compare_sets
from utils.statements.contrasts import Contrast


def rule_agreement(sets: Mapping[str, Mapping[str, NodeSet]]) -> pd.DataFrame:
    """How much the node sets of one persona by different rules agree.

    Parameters
    ----------
    sets
        By rule, then by persona.

    Returns
    -------
    DataFrame
        One row a persona and two rules: ``persona, a, b`` and the columns of :func:`utils.nodes.sets.compare_sets`.
    """
    personas = list(next(iter(sets.values()), {}))
    rows = [
        {"persona": persona, "a": a, "b": b, **compare_sets(sets[a][persona], sets[b][persona])}
        for persona in personas
        for a, b in combinations(sets, 2)
    ]
    return pd.DataFrame(rows)


def vector_overlap(
    values: Float[np.ndarray, "statements nodes"],
    contrasts: Sequence[Contrast],
    *,
    n_permutations: int = 4999,
    rng: int = 0,
) -> pd.DataFrame:
    """How far every two personas differ along the same direction: the cosine of their z-vectors.

    The z-vector sums the differences of the pairs, each node over its root mean square (without pairs: the standardised
    nodes by side). Under no effect cosines are not small where nodes are correlated; the p-value compares with the
    cosines after flipping the sides of both personas, independently of each other.

    Returns
    -------
    DataFrame
        One row a pair: ``a, b, cosine, expected_cosine`` (mean absolute cosine under flips), ``cosine_p`` (two-sided) and
        ``cosine_p_adjusted`` (Benjamini–Hochberg over the pairs). NaN where two personas share statements (contrast
        one-vs-rest), which cannot be flipped independently.
    """
    vectors = {
        contrast.persona: _z_vectors(values, contrast, n_permutations, np.random.default_rng([rng, i]))
        for i, contrast in enumerate(contrasts)
    }
    rows = []
    for a, b in combinations(contrasts, 2):
        row = {"a": a.persona, "b": b.persona, "cosine": np.nan, "expected_cosine": np.nan, "cosine_p": np.nan}
        if not set(a.rows.tolist()) & set(b.rows.tolist()):
            cosine = np.einsum("pb,pb->b", vectors[a.persona], vectors[b.persona])
            size = np.abs(cosine)
            row |= {"cosine": cosine[0], "expected_cosine": size[1:].mean() if n_permutations else np.nan}
            row["cosine_p"] = float(np.mean(size >= size[0] - 1e-12))
        rows.append(row)
    table = pd.DataFrame(rows, columns=["a", "b", "cosine", "expected_cosine", "cosine_p"])
    tested = table["cosine_p"].notna()
    adjusted = pd.Series(np.nan, index=table.index)
    if tested.any():
        adjusted[tested] = false_discovery_control(table.loc[tested, "cosine_p"])
    return table.assign(cosine_p_adjusted=adjusted)


def set_recurrence(
    values: Float[np.ndarray, "statements nodes"],
    contrasts: Sequence[Contrast],
    sizes: Mapping[str, int],
    *,
    n_splits: int = 10,
    n_permutations: int = 199,
    rng: int = 0,
) -> pd.DataFrame:
    """Whether disjoint halves of the pairs rank the same nodes first.

    The pairs (statements of each side without pairs) are halved at random, ``n_splits`` times; the set of either half are the
    nodes with the largest z, as many as the persona's set of the whole holds. Flips swap sides in the whole and repeat
    everything with the same splits. Halves have half the statements: a lower bound for the set of the whole.

    Parameters
    ----------
    sizes
        Nodes of a set, by persona, such as those of :func:`rule_sets`.

    Returns
    -------
    DataFrame
        One row a persona: ``persona, size, jaccard`` over (node, sign), the mean over splits, ``expected_jaccard`` and
        ``null_high`` (mean and 95th percentile under flips), ``p_value`` and ``p_adjusted`` (Benjamini–Hochberg over personas
        with a set; NaN for those without).
    """
    rows = []
    for i, contrast in enumerate(contrasts):
        size, row = int(sizes[contrast.persona]), {"persona": contrast.persona, "size": int(sizes[contrast.persona])}
        generator = np.random.default_rng([rng, i])
        if size:
            x, labels = _differences(values, contrast, n_permutations, generator)
            found = np.mean([_compare_halves(x, labels, contrast, size, generator) for _ in range(n_splits)], axis=0)
            row |= {
                "jaccard": found[0],
                "expected_jaccard": found[1:].mean(),
                "null_high": np.quantile(found[1:], 0.95),
            }
            row |= {"p_value": float(np.mean(found >= found[0] - 1e-12))}
        rows.append(row)
    table = pd.DataFrame(rows, columns=["persona", "size", "jaccard", "expected_jaccard", "null_high", "p_value"])
    tested, adjusted = table["p_value"].notna(), pd.Series(np.nan, index=table.index)
    if tested.any():
        adjusted[tested] = false_discovery_control(table.loc[tested, "p_value"])
    return table.assign(p_adjusted=adjusted)


def _compare_halves(
    x: np.ndarray, labels: np.ndarray, contrast: Contrast, size: int, generator: np.random.Generator
) -> Float[np.ndarray, " labellings"]:
    """Jaccard of the ``size`` largest z of two random halves, under every labelling."""
    n_h0 = len(contrast.h0)
    sides = [np.arange(len(x))] if contrast.paired else [np.arange(n_h0), np.arange(n_h0, len(x))]
    parts = [np.array_split(generator.permutation(side), 2) for side in sides]
    held = []
    for half in (np.concatenate([part[k] for part in parts]) for k in (0, 1)):
        z = _scale(x[half]).T @ labels[half]  # (node, labelling)
        first = np.argpartition(-np.abs(z), min(size, len(z)) - 1, axis=0)[:size]
        chosen = np.zeros(z.shape, np.int8)
        np.put_along_axis(chosen, first, np.sign(np.take_along_axis(z, first, axis=0)).astype(np.int8), axis=0)
        held.append(chosen)
    shared = ((held[0] == held[1]) & (held[0] != 0)).sum(axis=0)
    return shared / np.maximum((held[0] != 0).sum(axis=0) + (held[1] != 0).sum(axis=0) - shared, 1)


def _scale(x: np.ndarray) -> np.ndarray:
    spread = np.sqrt((x**2).sum(axis=0))
    return x / np.where(spread > 0, spread, 1)


def _differences(
    values: np.ndarray, contrast: Contrast, n_permutations: int, generator: np.random.Generator
) -> tuple[Float[np.ndarray, "units nodes"], Float[np.ndarray, "units labellings"]]:
    """Differences of the pairs and their signs (statements about their mean, and labels about theirs), observed first."""
    h0, h1 = values[contrast.h0].astype(np.float64), values[contrast.h1].astype(np.float64)
    if contrast.paired:
        labels = generator.choice([-1.0, 1.0], size=(len(h0), 1 + n_permutations))
        labels[:, 0] = 1.0
        return h1 - h0, labels
    x = np.concatenate([h0, h1])
    observed = np.repeat([-1.0, 1.0], [len(h0), len(h1)])
    observed -= observed.mean()
    labels = np.stack([observed, *(generator.permutation(observed) for _ in range(n_permutations))], axis=1)
    return x - x.mean(axis=0), labels


def _z_vectors(
    values: np.ndarray, contrast: Contrast, n_permutations: int, generator: np.random.Generator
) -> Float[np.ndarray, "nodes labellings"]:
    """Unit vectors under the observed sides, first, and under random flips or permuted labels."""
    x, labels = _differences(values, contrast, n_permutations, generator)
    z = _scale(x).T @ labels
    return z / np.maximum(np.linalg.norm(z, axis=0), np.finfo(float).tiny)
