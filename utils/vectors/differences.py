"""Differences within pairs, and the directions along which they lie; what fitting and judging share."""

import numpy as np
from jaxtyping import Float

from utils.options import VectorMethod
from utils.statements.contrasts import Contrast


def side_differences(
    values: Float[np.ndarray, "statement node"], contrast: Contrast, *, rng: int = 0
) -> Float[np.ndarray, "pair node"]:
    """H1 minus H0 of each pair; without pairs, statements of the two sides are matched at random."""
    h0, h1 = contrast.h0, contrast.h1
    if not contrast.paired:
        n, generator = min(len(h0), len(h1)), np.random.default_rng([rng, 2])
        h0, h1 = generator.permutation(h0)[:n], generator.permutation(h1)[:n]
    return values[h1].astype(np.float64) - values[h0].astype(np.float64)


def find_directions(
    differences: Float[np.ndarray, "pair node"],
    signs: Float[np.ndarray, "labelling pair"],
    *,
    method: VectorMethod,
    ridge: float = 1.0,
) -> Float[np.ndarray, "labelling node"]:
    """Directions of any length along which the signed differences lie.

    Parameters
    ----------
    signs
        +1, or −1 where a pair is flipped; one row a labelling.
    method
        ``mean-difference``: their mean. ``ridge``: the weights of a ridge regression of 1 on differences standardised node
        by node, by their kernel, as :func:`deepscan.separation_test` fits it. ``pca``: the first right singular vector,
        with the sign of their mean (flips do not change it but for that sign).
    ridge
        The penalty, with a kernel whose mean eigenvalue is 1.
    """
    if method == "mean-difference":
        return signs @ differences / len(differences)
    if method == "ridge":
        spread = np.sqrt((differences**2).sum(axis=0))
        scaled = np.divide(differences, spread, out=np.zeros_like(differences), where=spread > 0)
        kernel = scaled @ scaled.T * (len(differences) / max(1, (spread > 0).sum()))
        weights = np.linalg.solve(kernel + ridge * np.eye(len(kernel)), signs.T)
        return np.divide(weights.T @ scaled, spread, out=np.zeros((len(signs), len(spread))), where=spread > 0)
    if method == "pca":
        axis = np.linalg.svd(differences, full_matrices=False)[2][0]
        side = np.sign(signs @ (differences @ axis))
        return np.where(side == 0, 1.0, side)[:, None] * axis
    raise ValueError(f"unknown method {method!r}; expected mean-difference, ridge or pca.")
