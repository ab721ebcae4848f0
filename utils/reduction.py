"""Activations of one layer in two or three dimensions, the same picture for the same seed."""

import warnings
from typing import Literal

import numpy as np
import pandas as pd
import xarray as xr
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.manifold import TSNE
from sklearn.pipeline import make_pipeline

Method = Literal["pca", "umap", "tsne", "lda"]


def reduce(
    acts: xr.DataArray,
    *,
    method: Method = "pca",
    n_components: int = 2,
    labels: str = "direction",
    rng: int = 0,
) -> pd.DataFrame:
    """Reduce the activations of one layer to a few dimensions.

    Parameters
    ----------
    acts
        (statement, node) with the labels of :func:`utils.activations.extract`.
    method
        ``pca``, ``umap``, ``tsne`` or ``lda``. LDA knows the labels, separates even noise when there are more nodes than
        statements, and is therefore fitted after a PCA to a tenth as many dimensions as there are statements.
    n_components
        Dimensions; LDA gives at most one less than there are classes.
    labels
        For LDA: the coordinate to separate.

    Returns
    -------
    DataFrame
        One row a statement: ``x1, x2, …`` and the labels. ``attrs["explained"]`` holds PCA's shares of variance. Each axis
        is turned so that its largest value in absolute terms is positive.

    Raises
    ------
    ValueError
        Unknown method, more than one layer, fewer statements than components, or constant activations.
    """
    if acts.ndim != 2:
        raise ValueError(f"reduce takes one layer, (statement, node), not {acts.dims}; use acts.sel(layer=...).")
    x = acts.to_numpy().astype(np.float64)
    if len(x) <= n_components:
        raise ValueError(f"{len(x)} statements are too few for {n_components} components.")
    if not np.ptp(x, axis=0).max() > 0:
        raise ValueError(
            "all statements have the same activation here (layer 0 at the last token?); nothing to reduce."
        )
    explained: list[float] = []
    if method == "pca":
        model = PCA(n_components, svd_solver="full")
        points = model.fit_transform(x)
        explained = [float(share) for share in model.explained_variance_ratio_]
    elif method == "lda":
        points = _fit_lda(x, acts[labels].to_numpy(), n_components)
    elif method == "tsne":
        perplexity = min(30.0, (len(x) - 1) / 3)
        points = TSNE(n_components, perplexity=perplexity, init="pca", random_state=rng).fit_transform(x)
    elif method == "umap":
        points = _fit_umap(x, n_components, rng)
    else:
        raise ValueError(f"unknown method {method!r}; expected pca, umap, tsne or lda.")
    largest = np.abs(points).argmax(axis=0)
    points = points * np.sign(points[largest, np.arange(points.shape[1])])
    frame = pd.DataFrame(points, columns=[f"x{i + 1}" for i in range(points.shape[1])])
    names = [name for name in ("persona", "topic", "direction", "pair") if name in acts.coords]
    frame = frame.assign(id=acts["statement"].to_numpy(), **{name: acts[name].to_numpy() for name in names})
    frame.attrs["explained"] = explained
    return frame


def _fit_lda(x: np.ndarray, labels: np.ndarray, n_components: int) -> np.ndarray:
    classes = np.unique(labels)
    if len(classes) < 2:
        raise ValueError(f"LDA needs at least two classes; all statements are {classes[0]!r}.")
    n_axes = max(1, min(len(x) // 10, x.shape[1], len(x) - len(classes)))
    lda = LinearDiscriminantAnalysis(n_components=min(n_components, len(classes) - 1))
    return make_pipeline(PCA(n_axes, svd_solver="full"), lda).fit_transform(x, labels)


def _fit_umap(x: np.ndarray, n_components: int, rng: int) -> np.ndarray:
    # Imported here: umap compiles at import, which would slow down every start of the program.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import umap

        model = umap.UMAP(n_components=n_components, n_neighbors=min(15, len(x) - 1), random_state=rng, n_jobs=1)
        return np.asarray(model.fit_transform(x))
