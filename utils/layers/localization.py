"""Where the sides of a persona can be told apart: pair accuracy over layers, its onset, peak and plateau.

Pair accuracy is how often a ridge rule, fitted to all other pairs, knows which of the two statements of a pair is the
persona's; it is exact leave-one-out, and 0.5 is chance. Without pairs it is the mean of the two sides' shares of right
answers. See :func:`deepscan.separation_test`.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Bool, Float
from scipy.stats import false_discovery_control, rankdata
from tqdm.auto import tqdm

from deepscan import SeparationTest, separation_test
from utils.intervals import resample_weights
from utils.statements.contrasts import Contrast, find_contrasts

# Share of the largest gain over chance from which a layer counts as having it.
ONSET_SHARE = 0.9


def layer_accuracy(
    acts: xr.DataArray,
    contrasts: list[Contrast] | None = None,
    *,
    n_permutations: int = 999,
    rng: int = 0,
    n_jobs: int = 1,
    progress: bool = True,
) -> pd.DataFrame:
    """Pair accuracy of every persona at every layer, and whether it is above chance.

    Parameters
    ----------
    acts
        (layer, statement, node), as :func:`utils.activations.extract` returns it.
    contrasts
        What to compare; by default positive with negative statements of every persona in ``acts``.
    n_permutations
        Flips of the sides within pairs (permuted labels without pairs), the same at all layers; 0 for accuracy alone.
    n_jobs
        Threads over layers; results do not depend on it.

    Returns
    -------
    DataFrame
        One row a persona and layer: ``persona, topic, layer, n`` (pairs, or statements), ``paired``, ``accuracy`` with its 95 %
        interval ``accuracy_low, accuracy_high``, ``p_value`` of the layer by itself, ``p_adjusted`` over the layers
        (family-wise, by the largest statistic), and ``p_joint`` of all layers together, the same in each row of a persona. A
        layer where all statements have the same activation (layer 0 at the last token) is NaN.

    Raises
    ------
    ValueError
        Fewer than two pairs, or whatever :func:`deepscan.separation_test` refuses.
    """
    frames = []
    options = {"n_permutations": n_permutations, "rng": rng, "n_jobs": n_jobs}
    for contrast, varies, test in _tests(acts, contrasts, progress=progress, **options):
        layers = acts["layer"].to_numpy()
        columns = test.table.drop(columns=["layer", "statistic"]).set_index(layers[varies]).reindex(layers)
        columns = columns.assign(p_joint=test.p_value).rename_axis("layer").reset_index()
        about = {"persona": contrast.persona, "topic": contrast.topic, "n": test.n, "paired": test.paired}
        frames.append(columns.assign(**about))
    order = ["persona", "topic", "layer", "n", "paired", "accuracy", "accuracy_low", "accuracy_high"]
    return pd.concat(frames, ignore_index=True)[[*order, "p_value", "p_adjusted", "p_joint"]]


def layer_onset(
    acts: xr.DataArray,
    contrasts: list[Contrast] | None = None,
    *,
    accuracy: pd.DataFrame | None = None,
    n_resamples: int = 1000,
    rng: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Where each persona begins to be told apart, where most, and how far that lasts.

    Parameters
    ----------
    acts, contrasts
        As for :func:`layer_accuracy`.
    accuracy
        What :func:`layer_accuracy` gave for them, for the p-values.
    n_resamples
        Bootstrap resamples of the pairs (of the statements of each side without pairs).

    Returns
    -------
    DataFrame
        One row a persona: ``onset``, the first layer with 90 % of the largest gain over chance, ``peak``, the layer with the
        largest gain, and ``plateau_end``, the last layer with 90 % of it, each with its 95 % interval ``_low, _high``;
        ``peak_accuracy`` (the largest of many, and so too high: not an estimate of what other pairs would give), and with
        ``accuracy`` also ``p_value`` (all layers together), ``p_adjusted`` (Benjamini–Hochberg over personas) and
        ``first_significant``, the first layer with an adjusted p up to 0.05 (NaN without any).

    Notes
    -----
    What is resampled are the left-out answers, pair by pair and at all layers at once; the rules are not fitted
    again, so that no pair is ever judged by a rule that has seen it. The intervals are therefore about the pairs that
    are judged, not about the fits.
    """
    rows = []
    for contrast, varies, test in _tests(acts, contrasts, progress=progress, n_permutations=0):
        layers = acts["layer"].to_numpy()[varies]
        observed, resampled = _accuracies(test, contrast, n_resamples, rng)
        places = np.array([_find_places(curve) for curve in resampled.T])
        row = {"persona": contrast.persona, "topic": contrast.topic, "peak_accuracy": float(observed.max())}
        named = layers[places[~np.isnan(places).any(axis=1)].astype(int)]
        for i, (name, place) in enumerate(zip(("onset", "peak", "plateau_end"), _find_places(observed), strict=True)):
            low, high = np.quantile(named[:, i], [0.025, 0.975], method="nearest") if len(named) else (np.nan, np.nan)
            row |= {name: np.nan if np.isnan(place) else layers[int(place)], f"{name}_low": low, f"{name}_high": high}
        rows.append(row)
    table = pd.DataFrame(rows)
    if accuracy is None:
        return table
    joint = accuracy.groupby("persona")["p_joint"].first()
    first = accuracy[accuracy["p_adjusted"] <= 0.05].groupby("persona")["layer"].min()
    table = table.assign(p_value=table["persona"].map(joint), first_significant=table["persona"].map(first))
    return table.assign(p_adjusted=false_discovery_control(table["p_value"]))


def accuracy_stability(
    acts: xr.DataArray, contrasts: list[Contrast] | None = None, *, n_resamples: int = 200, rng: int = 0
) -> pd.DataFrame:
    """How often resamples of the pairs pick each layer, by the rule of :func:`utils.layers.best_layer` and pair accuracy.

    Returns
    -------
    DataFrame
        ``layer, share``: one row a layer of ``acts``, shares of the resamples summing to 1.
    """
    layers, ranks = acts["layer"].to_numpy(), []
    usable = layers > 0
    for i, (contrast, varies, test) in enumerate(_tests(acts, contrasts, progress=False, n_permutations=0)):
        curves = np.full((len(layers), n_resamples), np.nan)
        curves[varies] = _accuracies(test, contrast, n_resamples, [rng, i])[1]
        usable &= varies
        ranks.append(-curves)
    if not usable.any():
        raise ValueError("no layer above 0 has an accuracy for every persona.")
    mean_rank = np.mean([rankdata(curves[usable], axis=0) for curves in ranks], axis=0)
    picked = layers[usable][mean_rank.argmin(axis=0)]
    return pd.DataFrame({"layer": layers.astype(int), "share": [float((picked == layer).mean()) for layer in layers]})


def answers(test: SeparationTest, n_h0: int) -> Float[np.ndarray, "layers units"]:
    """Whether each left-out pair (or statement, those of H0 first) was told right, 1 or 0; a tie is a half."""
    right = np.atleast_2d(test.predictions) * (1 if test.paired else np.where(np.arange(test.n) < n_h0, -1, 1))
    return (1 + np.sign(right)) / 2


def side_weights(contrast: Contrast) -> Float[np.ndarray, " units"]:
    """What each pair, or statement, counts for in the accuracy; without pairs both sides count the same."""
    if contrast.paired:
        return np.full(len(contrast.h0), 1 / len(contrast.h0))
    return np.repeat([0.5 / len(contrast.h0), 0.5 / len(contrast.h1)], [len(contrast.h0), len(contrast.h1)])


def _tests(
    acts: xr.DataArray, contrasts: list[Contrast] | None, *, progress: bool, **options: int
) -> Iterator[tuple[Contrast, Bool[np.ndarray, " layers"], SeparationTest]]:
    """For every persona, which layers vary, and the separation test over these."""
    contrasts = find_contrasts(acts) if contrasts is None else contrasts
    for contrast in tqdm(contrasts, desc="separation", unit="persona", disable=not progress):
        values = acts.isel(statement=contrast.rows).to_numpy()  # (layer, n, node)
        varies = np.ptp(values, axis=1).max(axis=1) > 0
        if not varies.any():
            raise ValueError(f"all statements of persona {contrast.persona!r} have the same activation at every layer.")
        h0, h1 = np.split(values[varies], [len(contrast.h0)], axis=1)
        pairs = np.arange(len(contrast.h0)) if contrast.paired else None
        yield contrast, varies, separation_test(h0, h1, pairs=pairs, **options)


def _accuracies(
    test: SeparationTest, contrast: Contrast, n_resamples: int, rng: int | list[int]
) -> tuple[Float[np.ndarray, " layers"], Float[np.ndarray, "layers resamples"]]:
    """The accuracy of every layer, and the same over resampled pairs (within sides without pairs)."""
    hits, weights = answers(test, len(contrast.h0)), side_weights(contrast)
    generator = np.random.default_rng(rng)
    sizes = [test.n] if contrast.paired else [len(contrast.h0), len(contrast.h1)]
    drawn = np.hstack([resample_weights(size, n_resamples, generator) for size in sizes])
    # Rounded, so that equal shares of right answers are equal, and ties go to the earlier layer.
    return np.round(hits @ weights, 12), np.round(hits @ (weights[:, None] * drawn.T), 12)


def _find_places(accuracy: np.ndarray) -> tuple[float, float, float]:
    """Onset, peak and end of the plateau, as places in the curve; NaN where nothing is above chance."""
    gain = accuracy - 0.5
    if not gain.max() > 0:
        return np.nan, np.nan, np.nan
    reached = np.flatnonzero(gain >= ONSET_SHARE * gain.max())
    return float(reached[0]), float(gain.argmax()), float(reached[-1])
