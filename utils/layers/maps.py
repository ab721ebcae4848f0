"""Maps of statements: every statement as a point in two dimensions, at every layer, raw and pair-centred."""

from typing import Literal

import numpy as np
import pandas as pd
import xarray as xr

from utils.layers.reduction import Method, reduce
from utils.statements.contrasts import label_frame

# More points than that hide each other, and a page that holds them grows.
MOST = 1200
# Neighbours among fewer say little, and UMAP compiles for seconds before it begins.
FEWEST_UMAP = 100


def map_statements(
    acts: xr.DataArray, *, umap_layers: tuple[int, ...] = (), most: int = MOST, rng: int = 0
) -> pd.DataFrame:
    """Reduce the statements of every layer to two dimensions, all personas on the same axes.

    Parameters
    ----------
    acts
        (layer, statement, node), read layer by layer.
    umap_layers
        Layers at which UMAP is fitted as well, which takes seconds each; not with fewer than a hundred statements.
    most
        Statements on a map at most; of more, whole pairs are drawn, as many of each persona.

    Returns
    -------
    DataFrame
        One row a map and statement: ``method`` ("pca" | "umap"), ``center`` ("none" | "pairs", where all statements have
        partners), ``layer, id, x1, x2``. Each layer has axes of its own, turned to the side on which most statements
        lie as they did at the layer before. Layers where all statements are the same are left out.
    """
    acts = acts.isel(statement=draw_statements(acts, most, rng=rng))
    pairs = label_pairs(acts)
    paired = bool((pairs.groupby(pairs).transform("size") == 2).all())
    if acts.sizes["statement"] < FEWEST_UMAP:
        umap_layers = ()
    centers: list[Literal["none", "pairs"]] = ["none", *(["pairs"] if paired else [])]
    frames = []
    for layer in acts["layer"].to_numpy().tolist():
        held = acts.sel(layer=layer).compute()
        values = held.to_numpy()
        if not np.ptp(values, axis=0).max() > 0:
            continue
        methods: list[Method] = ["pca", *(["umap"] if layer in umap_layers else [])]
        for method in methods:
            for center in centers:
                points = reduce(held, method=method, center=center, rng=rng)[["id", "x1", "x2"]]
                frames.append(points.assign(method=method, center=center, layer=layer))
    columns = ["method", "center", "layer", "id", "x1", "x2"]
    if not frames:
        return pd.DataFrame(columns=columns)
    return pd.concat(_turn(frames), ignore_index=True)[columns]


def draw_statements(acts: xr.DataArray, most: int, *, rng: int = 0) -> np.ndarray:
    """Positions of at most so many statements, in whole pairs, as many of each persona, in their order."""
    if acts.sizes["statement"] <= most:
        return np.arange(acts.sizes["statement"])
    frame = pd.DataFrame({"persona": acts["persona"].to_numpy(), "unit": label_pairs(acts)})
    n_each = max(1, most // frame["persona"].nunique())
    generator = np.random.default_rng([rng, 11])
    kept = []
    for _, own in frame.groupby("persona", sort=False):
        sizes = own.groupby("unit", sort=False).size()
        order = sizes.iloc[generator.permutation(len(sizes))]
        chosen = order.index[order.cumsum() <= n_each]
        kept.append(own.index[own["unit"].isin(chosen)].to_numpy())
    return np.sort(np.concatenate(kept))


def label_pairs(acts: xr.DataArray) -> pd.Series:
    """A name of each statement's pair that no other persona's pair has; its own where it is in none."""
    frame = label_frame(acts)
    return pd.Series(
        [
            f"{persona}\n{pair}" if pair else f"\n{place}"
            for persona, pair, place in zip(frame["persona"], frame["pair"].fillna(""), frame["id"], strict=True)
        ]
    )


def _turn(frames: list[pd.DataFrame]) -> list[pd.DataFrame]:
    """Axes turned so that they follow those of the layer before: a slider over layers should not mirror the picture."""
    before: dict[tuple[str, str], pd.DataFrame] = {}
    for frame in frames:
        key = frame["method"].iloc[0], frame["center"].iloc[0]
        if key in before:
            for axis in ("x1", "x2"):
                if frame[axis].to_numpy() @ before[key][axis].to_numpy() < 0:
                    frame[axis] *= -1
        before[key] = frame
    return frames
