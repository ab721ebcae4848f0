"""Activations of one layer, or of several together, in two or three dimensions, the same picture for the same seed."""

import warnings
from typing import Literal

import numpy as np
import pandas as pd
import xarray as xr
from scipy.linalg import eigh
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
    center: Literal["none", "pairs"] = "none",
    rng: int = 0,
) -> pd.DataFrame:
    """Reduce the activations of one layer to a few dimensions, or of several layers to the same few.

    Parameters
    ----------
    acts
        (statement, node) with the labels of :func:`utils.activations.extract`, or (layer, statement, node) for one fit
        shared by the layers, so that an axis means the same in all pictures. The residual stream grows and drifts with
        depth, which would leave nothing else to see; each layer is therefore first centred on its mean and
        scaled to a mean squared distance of 1 from it.
    method
        ``pca``, ``umap``, ``tsne`` or ``lda``. LDA knows the labels, separates even noise when there are more nodes than
        statements, and is therefore fitted after a PCA to a tenth as many dimensions as there are statements. Of a
        shared fit, neighbours in UMAP and t-SNE are often one statement at two layers.
    n_components
        Dimensions; LDA gives at most one less than there are classes.
    labels
        For LDA: the coordinate to separate.
    center
        ``pairs``: each statement minus the mean of its pair, which takes out the subject that partners share; partners are
        then mirror images. No side is used for it.

    Returns
    -------
    DataFrame
        One row a statement: ``x1, x2, …`` and the labels, of a shared fit one row a layer and statement with a column
        ``layer``. ``attrs["explained"]`` holds PCA's shares of variance. Each axis
        is turned so that its largest value in absolute terms is positive; of equal ones, such as mirror images, that of the
        statement whose id comes first.

    Raises
    ------
    ValueError
        Unknown method, other dimensions, fewer statements than components, a layer of constant activations, or
        ``center="pairs"`` with a statement that is in no pair.
    """
    shared = acts.dims == ("layer", "statement", "node")
    if not shared and acts.dims != ("statement", "node"):
        raise ValueError(f"reduce takes (statement, node) or (layer, statement, node), not {acts.dims}.")
    n_statements = acts.sizes["statement"]
    if n_statements <= n_components:
        raise ValueError(f"{n_statements} statements are too few for {n_components} components.")
    values = acts.to_numpy().astype(np.float64)
    if not np.ptp(values, axis=-2).max(axis=-1).min() > 0:
        raise ValueError(
            "all statements have the same activation in a layer (layer 0 at the last token?); leave that layer out."
        )
    if center == "pairs":
        values = _center_pairs(values, acts)
    x = _scale_layers(values).reshape(-1, values.shape[-1]) if shared else values
    n_layers = len(x) // n_statements
    explained: list[float] = []
    if method == "pca":
        points, explained = _fit_pca(x, n_components)
    elif method == "lda":
        points = _fit_lda(x, np.tile(acts[labels].to_numpy(), n_layers), n_components, n_statements // 10)
    elif method == "tsne":
        perplexity = min(30.0, (len(x) - 1) / 3)
        points = TSNE(n_components, perplexity=perplexity, init="pca", random_state=rng).fit_transform(x)
    elif method == "umap":
        points = _fit_umap(x, n_components, rng)
    else:
        raise ValueError(f"unknown method {method!r}; expected pca, umap, tsne or lda.")
    points = points * _find_signs(points, np.tile(acts["statement"].to_numpy().astype(str), n_layers))
    frame = pd.DataFrame(points, columns=[f"x{i + 1}" for i in range(points.shape[1])])
    names = [name for name in ("persona", "topic", "direction", "pair") if name in acts.coords]
    # Layers come one after another, so that the labels of the statements repeat.
    columns = {"id": acts["statement"].to_numpy()} | {name: acts[name].to_numpy() for name in names}
    frame = frame.assign(**{name: np.tile(column, n_layers) for name, column in columns.items()})
    if shared:
        frame["layer"] = np.repeat(acts["layer"].to_numpy(), n_statements)
    frame.attrs["explained"] = explained
    return frame


def _find_signs(points: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The sign of each axis's largest value, whatever the order of the statements."""
    size = np.abs(points)
    order = np.argsort(ids, kind="stable")
    first = order[(size >= size.max(axis=0) * (1 - 1e-6))[order].argmax(axis=0)]
    return np.sign(points[first, np.arange(points.shape[1])])


def _center_pairs(values: np.ndarray, acts: xr.DataArray) -> np.ndarray:
    """Statements minus the mean of their persona's pair; (..., statement, node)."""
    names = zip(acts["persona"].to_numpy(), acts["pair"].to_numpy(), strict=True)
    codes, _ = pd.factorize(pd.MultiIndex.from_tuples(names))
    lonely = np.flatnonzero(np.bincount(codes)[codes] != 2)
    if len(lonely):
        name = str(acts["statement"].to_numpy()[lonely[0]])
        raise ValueError(f"statement {name!r} is in no pair of two; center='pairs' needs partners: use center='none'.")
    order = np.argsort(codes, kind="stable").reshape(-1, 2)  # (pair, 2)
    centred = values.copy()
    centred[..., order.ravel(), :] -= np.repeat(values[..., order, :].mean(axis=-2), 2, axis=-2)
    return centred


def _scale_layers(values: np.ndarray) -> np.ndarray:
    """Each layer about its mean, with a mean squared norm of 1; (layer, statement, node)."""
    centred = values - values.mean(axis=1, keepdims=True)
    return centred / np.sqrt((centred**2).sum(axis=2).mean(axis=1))[:, None, None]


def _fit_pca(x: np.ndarray, n_components: int) -> tuple[np.ndarray, list[float]]:
    """Coordinates on the first components, and their shares of the variance.

    Where nodes outnumber statements both follow from the Gram matrix of the statements, for which scikit-learn has no
    solver: the same numbers in a tenth of the time, which a live picture needs.
    """
    n, n_nodes = x.shape
    if n_nodes <= n:
        model = PCA(n_components, svd_solver="full")
        return model.fit_transform(x), model.explained_variance_ratio_.tolist()
    centred = x - x.mean(axis=0)
    gram = centred @ centred.T
    squares, axes = eigh(gram, subset_by_index=[n - n_components, n - 1])
    squares = np.maximum(squares[::-1], 0)
    return axes[:, ::-1] * np.sqrt(squares), (squares / np.trace(gram)).tolist()


def _fit_lda(x: np.ndarray, labels: np.ndarray, n_components: int, most_axes: int) -> np.ndarray:
    classes = np.unique(labels)
    if len(classes) < 2:
        raise ValueError(f"LDA needs at least two classes; all statements are {classes[0]!r}.")
    n_axes = max(1, min(most_axes, x.shape[1], len(x) - len(classes)))
    lda = LinearDiscriminantAnalysis(n_components=min(n_components, len(classes) - 1))
    return make_pipeline(PCA(n_axes, svd_solver="full"), lda).fit_transform(x, labels)


def _fit_umap(x: np.ndarray, n_components: int, rng: int) -> np.ndarray:
    if len(x) < n_components + 2:
        raise ValueError(
            f"UMAP needs at least {n_components + 2} statements for {n_components} components, and there are {len(x)}; "
            "give more, or take method pca."
        )
    # Imported here: umap compiles at import, which would slow down every start of the program.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import umap

        model = umap.UMAP(n_components=n_components, n_neighbors=min(15, len(x) - 1), random_state=rng, n_jobs=1)
        return np.asarray(model.fit_transform(x))
