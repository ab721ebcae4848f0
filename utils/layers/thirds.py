"""Whether personas lie furthest apart in the last third of the layers, as Cintas et al. 2025 (arXiv 2505.24539) report.

Fixed in advance: layers 1 to L in thirds, silhouette, d = mean(last) − max(mean(first), mean(middle)). The claim is
*supported* where the 95 % interval of d lies above 0, *not supported* where it lies below, else the answer is *mixed*.
It is about where the sides lie furthest apart; whether they lie apart at all is for the flips of
:func:`utils.layers.divergence` to say.

A layer belongs to the third in which its relative depth k/L lies: up to 1/3 the first, up to 2/3 the middle, else the
last. Of 32 layers these are 10, 11 and 11.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float, Int
from threadpoolctl import threadpool_limits

from utils.layers.clusters import distances, gram_matrix, mean_silhouettes, stack_members
from utils.layers.separation import check_contrast
from utils.options import Verdict
from utils.statements.contrasts import Contrast, find_contrasts

THIRDS = ("first", "middle", "last")
_QUANTITIES = (*THIRDS, "d")
_Z95 = 1.959963984540054


def layer_thirds(
    acts: xr.DataArray, contrasts: list[Contrast] | None = None, *, n_layers: int | None = None
) -> pd.DataFrame:
    """The thirds and the verdict, persona by persona.

    Parameters
    ----------
    acts
        (layer, statement, node) with every layer from 1 to the last; layer 0 takes no part.
    contrasts
        As for :func:`utils.layers.divergence`.
    n_layers
        L, the number of blocks of the model; by default the last layer in ``acts``.

    Returns
    -------
    DataFrame
        One row a persona: ``persona, topic``, the mean silhouettes ``first, middle, last`` and ``d``, each with its
        95 % interval ``_low, _high``, and ``verdict``. The interval of d is a delete-one-pair jackknife of d itself:
        each pair is left out at all layers at once. Where the first and the middle third are equally high, d has a kink and the
        interval is rough. A persona with a layer of constant activations has NaN and is mixed.

    Raises
    ------
    ValueError
        Layers that are missing, fewer than three of them, a side with fewer than 5 statements.
    """
    rows = []
    for contrast, replicate in _replicates(acts, contrasts, n_layers):
        error = np.sqrt((replicate.influence**2).sum(axis=1))
        rows.append({"persona": contrast.persona, "topic": contrast.topic, **_describe(replicate.value, error)})
    return pd.DataFrame(rows)


def model_thirds(
    acts: xr.DataArray, contrasts: list[Contrast] | None = None, *, n_layers: int | None = None
) -> pd.DataFrame:
    """The verdict on the model: the mean over personas of what :func:`layer_thirds` gives each.

    Returns
    -------
    DataFrame
        One row: ``n_personas``, then the columns of :func:`layer_thirds` without ``persona, topic``. The interval is for these
        personas and other statements, not for other personas, which are too few and no random sample of any. What a
        pair changes is summed over all personas that it belongs to, so that statements shared between
        personas (contrast one-vs-rest) count as what they are.

    Raises
    ------
    ValueError
        As :func:`layer_thirds`.
    """
    found = _replicates(acts, contrasts, n_layers)
    value = np.mean([replicate.value for _, replicate in found], axis=0)
    influence = np.zeros((len(_QUANTITIES), acts.sizes["statement"]))
    for _, replicate in found:
        influence[:, replicate.position] += replicate.influence / len(found)
    return pd.DataFrame([{"n_personas": len(found), **_describe(value, np.sqrt((influence**2).sum(axis=1)))}])


class _Replicates(NamedTuple):
    """The four quantities of a persona, what each unit changes in them, and the unit's first statement.

    ``influence`` is scaled so that its squares sum to the jackknife variance.
    """

    value: Float[np.ndarray, "4"]
    influence: Float[np.ndarray, "4 units"]
    position: Int[np.ndarray, "units"]


def _replicates(
    acts: xr.DataArray, contrasts: list[Contrast] | None, n_layers: int | None
) -> list[tuple[Contrast, _Replicates]]:
    thirds = _assign_thirds(acts["layer"].to_numpy(), n_layers)
    contrasts = find_contrasts(acts) if contrasts is None else contrasts
    for contrast in contrasts:
        check_contrast(contrast)
    with threadpool_limits(1, user_api="blas"):
        return [(contrast, _measure(acts, contrast, thirds)) for contrast in contrasts]


def _measure(acts: xr.DataArray, contrast: Contrast, thirds: dict[int, int]) -> _Replicates:
    labels, units = contrast.labels, contrast.units
    n_units = int(units.max()) + 1
    members = stack_members(labels, units, np.empty((len(labels), 0), bool))
    curves = [[], [], []]
    for layer, third in thirds.items():
        x = acts.sel(layer=layer).isel(statement=contrast.rows).to_numpy().astype(np.float64)
        constant = not np.ptp(x, axis=0).max() > 0
        curve = np.full(1 + n_units, np.nan) if constant else mean_silhouettes(distances(gram_matrix(x)), members)
        curves[third].append(curve)
    first, middle, last = (np.mean(own, axis=0) for own in curves)  # (1 + n_units,)
    columns = np.stack([first, middle, last, last - np.maximum(first, middle)])
    left_out = columns[:, 1:]
    influence = (left_out - left_out.mean(axis=1, keepdims=True)) * np.sqrt((n_units - 1) / n_units)
    position = np.full(n_units, acts.sizes["statement"])
    np.minimum.at(position, units, contrast.rows)
    return _Replicates(columns[:, 0], influence, position)


def _assign_thirds(layers: np.ndarray, n_layers: int | None) -> dict[int, int]:
    """The third, 0 to 2, of every layer from 1 to the last."""
    last = int(layers.max()) if n_layers is None else n_layers
    wanted = range(1, last + 1)
    if missing := sorted(set(wanted) - set(layers.tolist())):
        raise ValueError(
            f"layers {missing} are missing; the thirds need every layer from 1 to {last}: extract all layers for them."
        )
    if last < len(THIRDS):
        raise ValueError(f"there are {last} layers above layer 0; three thirds need at least 3.")
    return {layer: find_third(layer, last) for layer in wanted}


def _describe(value: np.ndarray, error: np.ndarray) -> dict[str, float | str]:
    row: dict[str, float | str] = {}
    for name, middle, margin in zip(_QUANTITIES, value, _Z95 * error, strict=True):
        row |= {name: float(middle), f"{name}_low": float(middle - margin), f"{name}_high": float(middle + margin)}
    return row | {"verdict": judge_interval(value[3] - _Z95 * error[3], value[3] + _Z95 * error[3])}


def judge_interval(low: float, high: float) -> Verdict:
    """What an interval of d says about the claim."""
    if low > 0:
        return "supported"
    return "not supported" if high < 0 else "mixed"


def find_third(layer: int, n_layers: int) -> int:
    """The third, 0 to 2, in which the relative depth of layer 1 to ``n_layers`` lies: up to 1/3, up to 2/3, beyond."""
    return (3 * layer - 1) // n_layers
