"""How well persona vectors tell the sides of pairs that they were not fitted on, and how alike those of two halves are."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float
from scipy.stats import false_discovery_control
from tqdm.auto import tqdm

from utils.intervals import interval, resample_weights
from utils.options import VectorMethod
from utils.statements.contrasts import Contrast
from utils.vectors.differences import find_directions, side_differences

_FEWEST = 6
_N_BOOTSTRAP = 1000


def judge_vectors(
    acts: xr.DataArray,
    contrasts: Sequence[Contrast],
    *,
    layers: Sequence[int] | None = None,
    method: VectorMethod = "mean-difference",
    ridge: float = 1.0,
    n_folds: int = 5,
    n_halves: int = 10,
    n_flips: int = 199,
    rng: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Judge vectors by cross-fitting: no pair is judged by a vector that it had a part in.

    Parameters
    ----------
    acts, contrasts, layers, method, ridge
        As of :func:`utils.vectors.persona_vectors`. Without pairs, statements of both sides are matched at random.
    n_folds
        Parts of the pairs; each is judged by the vector of all others.
    n_halves
        Divisions of the pairs into halves, for the cosine.
    n_flips
        Labellings with the sides of pairs flipped at random, on which everything is done anew: the null. The same flips
        at every layer.

    Returns
    -------
    DataFrame
        One row a persona and layer: ``persona, layer, n_pairs``; ``accuracy``, the share of held-out pairs whose persona's
        side has the larger projection (0.5 is chance), with ``accuracy_low, accuracy_high`` (95 %, bootstrap over pairs);
        ``margin``, mean over standard deviation of the held-out projected differences; ``cosine`` of the vectors of
        disjoint halves, mean over divisions; each of the three with ``_null_low`` and ``_null_high`` (5th and 95th
        percentile under flips); ``p_value``: share of labellings, the true one included, with at least this margin
        (right tail); ``p_layers``: likewise for the persona's largest margin over layers, corrected for the choice of
        layer; ``p_adjusted``: ``p_layers`` with Benjamini–Hochberg over personas.

    Raises
    ------
    ValueError
        Too few pairs, an unknown layer or method.
    """
    there = [int(layer) for layer in acts["layer"].to_numpy()]
    chosen = [layer for layer in there if layer] if layers is None else list(layers)
    if outside := [layer for layer in chosen if layer not in there]:
        raise ValueError(f"layers {outside} were not extracted; there are layers {there[0]} to {there[-1]}.")
    own_values = {layer: acts.sel(layer=layer).to_numpy() for layer in chosen}
    rows = []
    for contrast in tqdm(contrasts, desc="judging vectors", disable=not progress):
        n = min(len(contrast.h0), len(contrast.h1))
        if n < max(_FEWEST, n_folds):
            raise ValueError(
                f"persona {contrast.persona!r} has {n} pairs; at least {max(_FEWEST, n_folds)} are needed to judge vectors."
            )
        generator = np.random.default_rng([rng, 3])
        signs = np.concatenate([np.ones((1, n)), generator.choice([-1.0, 1.0], size=(n_flips, n))])
        folds = np.array_split(generator.permutation(n), n_folds)
        halves = [np.array_split(generator.permutation(n), 2) for _ in range(n_halves)]
        weights = resample_weights(n, _N_BOOTSTRAP, generator) / n
        margins = []
        for layer in chosen:
            differences = side_differences(own_values[layer], contrast, rng=rng)
            options = {"method": method, "ridge": ridge}
            held_out = _cross_fit(differences, signs, folds, **options)
            right = (held_out > 0) + 0.5 * (held_out == 0)
            margins.append(_margin(held_out))
            low, high = interval(weights @ right[0])
            row = {"persona": contrast.persona, "layer": layer, "n_pairs": n}
            row |= _against_flips("accuracy", right.mean(axis=1)) | {"accuracy_low": low, "accuracy_high": high}
            row |= _against_flips("margin", margins[-1])
            row |= _against_flips("cosine", _compare_halves(differences, signs, halves, **options))
            rows.append(row | {"p_value": _right_tail(margins[-1])})
        joint = _right_tail(np.max(margins, axis=0))
        for row in rows[-len(chosen) :]:
            row["p_layers"] = joint
    table = pd.DataFrame(rows)
    by_persona = table.drop_duplicates("persona").set_index("persona")["p_layers"]
    adjusted = pd.Series(false_discovery_control(by_persona), by_persona.index)
    return table.assign(p_adjusted=table["persona"].map(adjusted))


def choose_layer(judged: pd.DataFrame) -> pd.Series:
    """The layer with the largest margin, by persona; judge on ``select`` pairs what is chosen so."""
    return judged.loc[judged.groupby("persona", sort=False)["margin"].idxmax()].set_index("persona")["layer"]


def _cross_fit(
    differences: Float[np.ndarray, "pair node"],
    signs: Float[np.ndarray, "labelling pair"],
    folds: Sequence[np.ndarray],
    **options,
) -> Float[np.ndarray, "labelling pair"]:
    """Each signed difference along the unit vector of the other folds."""
    found = np.empty_like(signs)
    for fold in folds:
        rest = np.setdiff1d(np.arange(len(differences)), fold)
        units = _units(find_directions(differences[rest], signs[:, rest], **options))
        found[:, fold] = signs[:, fold] * (units @ differences[fold].T)
    return found


def _compare_halves(
    differences: np.ndarray, signs: np.ndarray, halves: Sequence[Sequence[np.ndarray]], **options
) -> Float[np.ndarray, " labelling"]:
    found = np.zeros(len(signs))
    for pair in halves:
        a, b = (_units(find_directions(differences[half], signs[:, half], **options)) for half in pair)
        found += (a * b).sum(axis=1) / len(halves)
    return found


def _units(directions: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(directions, axis=1, keepdims=True)
    return np.divide(directions, length, out=np.zeros_like(directions), where=length > 0)


def _margin(held_out: np.ndarray) -> np.ndarray:
    spread = held_out.std(axis=1)
    return np.divide(held_out.mean(axis=1), spread, out=np.zeros(len(held_out)), where=spread > 0)


def _against_flips(name: str, values: np.ndarray) -> dict[str, float]:
    null = values[1:]
    low, high = np.quantile(null, [0.05, 0.95]) if len(null) else (np.nan, np.nan)
    return {name: float(values[0]), f"{name}_null_low": float(low), f"{name}_null_high": float(high)}


def _right_tail(values: np.ndarray) -> float:
    return float((values >= values[0]).mean())
