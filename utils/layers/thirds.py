"""Whether large differences lie only within the last third of the layers, as Cintas et al. 2025 (arXiv 2505.24539) report.

Two questions, fixed in advance. *Is the difference largest there?* Layers 1 to L in thirds, pair accuracy (or, as the
paper's metric, the silhouette), d = mean(last) − max(mean(first), mean(middle)): *supported* where the 95 % interval of d
lies above 0, *not supported* where it lies below, else *mixed*. *Is it there only?* Not where the sides are told apart in
the first two thirds already (:func:`early_separation`, one test over all their layers, adjusted over personas). A
difference that is there before is not shown by its absence: without a finding the answer is that none was found.

A layer belongs to the third in which its relative depth k/L lies: up to 1/3 the first, up to 2/3 the middle, else the
last. Of 32 layers these are 10, 11 and 11.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float, Int
from scipy.stats import false_discovery_control
from threadpoolctl import threadpool_limits

from deepscan import separation_test
from utils.layers.clusters import distances, gram_matrix, mean_silhouettes, stack_members
from utils.layers.localization import answers, layer_accuracy, side_weights
from utils.layers.separation import check_contrast
from utils.options import ThirdsMetric, Verdict
from utils.statements.contrasts import Contrast, find_contrasts

THIRDS = ("first", "middle", "last")
_QUANTITIES = (*THIRDS, "d")
_Z95 = 1.959963984540054


def layer_thirds(
    acts: xr.DataArray,
    contrasts: list[Contrast] | None = None,
    *,
    metric: ThirdsMetric = "accuracy",
    n_layers: int | None = None,
) -> pd.DataFrame:
    """The thirds and the verdict, persona by persona.

    Parameters
    ----------
    acts
        (layer, statement, node) with every layer from 1 to the last; layer 0 takes no part.
    contrasts
        As for :func:`utils.layers.divergence`.
    metric
        ``accuracy``: pair accuracy; ``silhouette``.
    n_layers
        L, the number of blocks of the model; by default the last layer in ``acts``.

    Returns
    -------
    DataFrame
        One row a persona: ``persona, topic``, the means ``first, middle, last`` and ``d``, each with its 95 % interval
        ``_low, _high``, and ``verdict``. The interval of d is a delete-one-pair jackknife of d itself: each pair is
        left out at all layers at once (of accuracies its answers, not its part in the other pairs' rules). Where the
        first and the middle third are equally high, d has a kink and the interval is rough. A persona with a layer of
        constant activations has NaN and is mixed.

    Raises
    ------
    ValueError
        Layers that are missing, fewer than three of them, a side with fewer than 5 statements.
    """
    rows = []
    for contrast, replicate in _replicates(acts, contrasts, n_layers, metric):
        error = np.sqrt((replicate.influence**2).sum(axis=1))
        rows.append({"persona": contrast.persona, "topic": contrast.topic, **_describe(replicate.value, error)})
    return pd.DataFrame(rows)


def model_thirds(
    acts: xr.DataArray,
    contrasts: list[Contrast] | None = None,
    *,
    metric: ThirdsMetric = "accuracy",
    n_layers: int | None = None,
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
    found = _replicates(acts, contrasts, n_layers, metric)
    value = np.mean([replicate.value for _, replicate in found], axis=0)
    influence = np.zeros((len(_QUANTITIES), acts.sizes["statement"]))
    for _, replicate in found:
        influence[:, replicate.position] += replicate.influence / len(found)
    return pd.DataFrame([{"n_personas": len(found), **_describe(value, np.sqrt((influence**2).sum(axis=1)))}])


def early_separation(
    acts: xr.DataArray,
    contrasts: list[Contrast] | None = None,
    *,
    n_layers: int | None = None,
    n_permutations: int = 999,
    rng: int = 0,
) -> pd.DataFrame:
    """Whether the sides are told apart before the last third of the layers.

    Returns
    -------
    DataFrame
        One row a persona: ``persona``, ``early_p``, the p-value of :func:`deepscan.separation_test` over all layers of the
        first and middle third together, ``early_p_adjusted`` (Benjamini–Hochberg over personas), and
        ``first_layer``, the first of these layers with a p-value up to 0.05, adjusted over them (NaN without any).
    """
    thirds = _assign_thirds(acts["layer"].to_numpy(), n_layers)
    early = acts.sel(layer=[layer for layer, third in thirds.items() if third < 2])
    table = layer_accuracy(early, contrasts, n_permutations=n_permutations, rng=rng, progress=False)
    p = table.groupby("persona", sort=False)["p_joint"].first()
    first = table[table["p_adjusted"] <= 0.05].groupby("persona")["layer"].min().reindex(p.index)
    columns = {"early_p": p, "early_p_adjusted": false_discovery_control(p), "first_layer": first}
    return pd.DataFrame(columns).rename_axis("persona").reset_index()


class _Replicates(NamedTuple):
    """The four quantities of a persona, what each unit changes in them, and the unit's first statement.

    ``influence`` is scaled so that its squares sum to the jackknife variance.
    """

    value: Float[np.ndarray, "4"]
    influence: Float[np.ndarray, "4 units"]
    position: Int[np.ndarray, "units"]


def _replicates(
    acts: xr.DataArray, contrasts: list[Contrast] | None, n_layers: int | None, metric: ThirdsMetric
) -> list[tuple[Contrast, _Replicates]]:
    thirds = _assign_thirds(acts["layer"].to_numpy(), n_layers)
    contrasts = find_contrasts(acts) if contrasts is None else contrasts
    for contrast in contrasts:
        check_contrast(contrast)
    with threadpool_limits(1, user_api="blas"):
        return [(contrast, _measure(acts, contrast, thirds, metric)) for contrast in contrasts]


def _measure(acts: xr.DataArray, contrast: Contrast, thirds: dict[int, int], metric: ThirdsMetric) -> _Replicates:
    units = contrast.units
    n_units = int(units.max()) + 1
    measure = _accuracies if metric == "accuracy" else _silhouettes
    curves = [[], [], []]
    for layer, third in thirds.items():
        x = acts.sel(layer=layer).isel(statement=contrast.rows).to_numpy().astype(np.float64)
        constant = not np.ptp(x, axis=0).max() > 0
        curves[third].append(np.full(1 + n_units, np.nan) if constant else measure(x, contrast))
    first, middle, last = (np.mean(own, axis=0) for own in curves)  # (1 + n_units,)
    columns = np.stack([first, middle, last, last - np.maximum(first, middle)])
    left_out = columns[:, 1:]
    influence = (left_out - left_out.mean(axis=1, keepdims=True)) * np.sqrt((n_units - 1) / n_units)
    position = np.full(n_units, acts.sizes["statement"])
    np.minimum.at(position, units, contrast.rows)
    return _Replicates(columns[:, 0], influence, position)


def _silhouettes(x: np.ndarray, contrast: Contrast) -> Float[np.ndarray, " columns"]:
    """The mean silhouette, and the same without each unit."""
    members = stack_members(contrast.labels, contrast.units, np.empty((len(x), 0), bool))
    return mean_silhouettes(distances(gram_matrix(x)), members)


def _accuracies(x: np.ndarray, contrast: Contrast) -> Float[np.ndarray, " columns"]:
    """The pair accuracy, and the same without the answer of each unit."""
    n_h0 = len(contrast.h0)
    pairs = np.arange(n_h0) if contrast.paired else None
    hits = answers(separation_test(x[:n_h0], x[n_h0:], pairs=pairs, n_permutations=0), n_h0)[0]
    weights = side_weights(contrast)
    # Without pairs, a side with a statement less is still half of the mean.
    sides = np.zeros(len(hits), int) if contrast.paired else np.repeat([0, 1], [n_h0, len(hits) - n_h0])
    total, mass = np.bincount(sides, hits * weights), np.bincount(sides, weights)
    left_out = mass[sides] * (total[sides] - hits * weights) / (mass[sides] - weights) + (total.sum() - total[sides])
    # Rounded, so that equal shares of right answers differ by nothing.
    return np.round(np.r_[total.sum(), left_out], 12)


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
