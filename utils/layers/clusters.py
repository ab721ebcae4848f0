"""How far classes lie apart, for many labellings of the same rows at once, from one Gram matrix.

Own code and not scikit-learn's, because jackknife, flips and halves need hundreds of labellings of one set of rows: all
of them, in every metric and in PCA space too, follow from one Gram matrix and a few matrix products.

A labelling is a column of ``members``, (class, n, labelling): 1 where a row belongs to the class, else 0. A row that
belongs to no class is left out. Every class needs two rows or more. The columns are in this order throughout: the truth,
one column a left-out unit, then the shuffled labels. A unit is a pair, or a single statement.
"""

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.linalg import eigh

CLASS_METRICS = ("silhouette", "calinski_harabasz", "davies_bouldin")
CLUSTER_METRICS = ("centroid_distance", *CLASS_METRICS, "fisher_ratio", "mmd")


def gram_matrix(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n n"]:
    """Inner products of the rows about their mean."""
    centred = x - x.mean(axis=0)
    return centred @ centred.T


def principal_gram(gram: Float[np.ndarray, "n n"], n_components: int) -> Float[np.ndarray, "n n"]:
    """The Gram matrix of the rows' first principal components.

    Its eigenvectors, scaled by the roots of their eigenvalues, are the coordinates that a PCA of the rows gives. All
    rows take part, whatever their labels.

    Raises
    ------
    ValueError
        Fewer rows than components, or no component.
    """
    n = len(gram)
    if not 1 <= n_components <= n:
        raise ValueError(f"n_components must be from 1 to the number of statements, {n}, not {n_components}.")
    values, vectors = eigh(gram, subset_by_index=[n - n_components, n - 1])
    return (vectors * np.maximum(values, 0)) @ vectors.T


def class_metrics(
    gram: Float[np.ndarray, "n n"], members: Float[np.ndarray, "c n k"]
) -> dict[str, Float[np.ndarray, "k"]]:
    """Silhouette, Calinski–Harabasz and Davies–Bouldin index of c classes, as in scikit-learn.

    Classes whose centroids coincide have a Davies–Bouldin index of infinity (scikit-learn says 0, which is its best).
    """
    n_classes, size = len(members), members.sum(1)  # (c, k)
    n = size.sum(0)
    square = np.diag(gram)
    products = gram @ members  # (c, n, k): n_c times the inner product of row and centroid
    norm = (members * products).sum(1) / size**2  # squared norms of the centroids
    inner = np.einsum("ank,bnk->abk", members, products) / (size[:, None] * size)
    apart = np.maximum(norm[:, None] + norm - 2 * inner, 0)  # squared distances of the centroids
    # A sum over pairs of centroids and not the total less the within scatter, which would cancel.
    between = (size[:, None] * size * apart).sum((0, 1)) / (2 * n)
    within = (square @ members - size * norm).sum(0)
    to_centroid = np.sqrt(np.maximum(square[:, None] - 2 * products / size[:, None] + norm[:, None], 0))
    scatter = (members * to_centroid).sum(1) / size
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (scatter[:, None] + scatter) / np.sqrt(apart)
        calinski_harabasz = between / (n_classes - 1) / (within / (n - n_classes))
    ratio[np.arange(n_classes), np.arange(n_classes)] = -np.inf
    return {
        "silhouette": mean_silhouettes(distances(gram), members),
        "calinski_harabasz": calinski_harabasz,
        "davies_bouldin": ratio.max(1).mean(0),
    }


def cluster_metrics(
    gram: Float[np.ndarray, "n n"], members: Float[np.ndarray, "2 n k"], units: Int[np.ndarray, "n"]
) -> dict[str, Float[np.ndarray, "k"]]:
    """Metrics of two sides: those of :func:`class_metrics` and three for two sides only.

    ``centroid_distance``
        Distance of the means over the root of the summed variances, pooled over the sides.
    ``fisher_ratio``
        Fisher's criterion, (difference of the means)² / (sum of the two variances), of the rows projected on the line
        through the two means: spread across that line does not count, which sets it apart from ``centroid_distance``.
        With more nodes than rows the best direction of LDA separates anything; this one is not fitted to the spread,
        but it is still fitted to these rows, so that noise alone gives much more than 0.
    ``mmd``
        Squared maximum mean discrepancy, unbiased and therefore at times below 0 (Gretton et al. 2012, JMLR 13), with the
        kernel exp(−distance² / 2s²); s is the median of all distances above 0. Two rows of one unit are not compared,
        so that the estimate stays unbiased where the statements of a pair resemble each other.
    """
    found = class_metrics(gram, members)
    size = members.sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        centroid_distance = np.sqrt(found["calinski_harabasz"] * size.sum(0) / size.prod(0))
        fisher_ratio = _fisher_ratio(gram, members, size)
    return (
        {"centroid_distance": centroid_distance}
        | found
        | {"fisher_ratio": fisher_ratio, "mmd": _mmd(gram, members, units)}
    )


def distances(gram: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """Euclidean distances of the rows."""
    square = np.diag(gram)
    squared = np.maximum(square[:, None] + square - 2 * gram, 0)
    np.fill_diagonal(squared, 0)
    return np.sqrt(squared)


def mean_silhouettes(distance: Float[np.ndarray, "n n"], members: Float[np.ndarray, "c n k"]) -> Float[np.ndarray, "k"]:
    """Mean silhouette of each labelling."""
    size = members.sum(1)[:, None]  # (c, 1, k)
    near = distance @ members  # (c, n, k): summed distances of each row to each class
    own = (members * near / (size - 1)).sum(0)
    other = np.where(members > 0, np.inf, near / size).min(0)
    widest = np.maximum(own, other)
    values = np.divide(other - own, widest, out=np.zeros_like(own), where=widest > 0)
    present = members.sum(0)
    return (present * values).sum(0) / present.sum(0)


def _fisher_ratio(gram: np.ndarray, members: np.ndarray, size: np.ndarray) -> np.ndarray:
    weights = members[1] / size[1] - members[0] / size[0]
    projected = gram @ weights  # inner product of each row with the difference of the means
    between = (weights * projected).sum(0)  # the squared distance of the means: their distance along the line, unscaled
    spread = 0
    for side, n in zip(members, size, strict=True):
        mean = (side * projected).sum(0) / n
        spread = spread + (side * (projected - mean) ** 2).sum(0) / (n - 1)
    return between**2 / spread


def _mmd(gram: np.ndarray, members: np.ndarray, units: np.ndarray) -> np.ndarray:
    distance = distances(gram)
    scale = np.median(distance[distance > 0])
    compared = (units[:, None] != units).astype(float)
    kernel = np.exp(-((distance / scale) ** 2) / 2) * compared
    sums, counts = (np.einsum("ank,bnk->abk", members, matrix @ members) for matrix in (kernel, compared))
    mean = sums / counts
    return mean[0, 0] + mean[1, 1] - 2 * mean[0, 1]


def flip_sides(
    labels: Bool[np.ndarray, "n"], units: Int[np.ndarray, "n"], n_flips: int, rng: np.random.Generator
) -> Bool[np.ndarray, "n flips"]:
    """Labels as they could have been without an effect.

    A unit with both sides has them swapped or not; units with one side only, such as single statements, exchange theirs.
    """
    first = np.unique(units, return_index=True)[1]
    n_units = len(first)
    n_h1, n_rows = np.bincount(units, labels, minlength=n_units), np.bincount(units, minlength=n_units)
    single = (n_h1 == 0) | (n_h1 == n_rows)
    flipped = np.empty((len(labels), n_flips), bool)
    for flip in range(n_flips):
        flipped[:, flip] = labels
        if not single.all():
            flipped[:, flip] ^= ((rng.random(n_units) < 0.5) & ~single)[units]
        if single.any():
            exchanged = labels[first]
            exchanged[single] = rng.permutation(exchanged[single])
            flipped[:, flip] = np.where(single[units], exchanged[units], flipped[:, flip])
    return flipped


def stack_members(
    labels: Bool[np.ndarray, "n"] | Int[np.ndarray, "n"],
    units: Int[np.ndarray, "n"],
    shuffled: Bool[np.ndarray, "n s"] | Int[np.ndarray, "n s"],
) -> Float[np.ndarray, "c n k"]:
    """Class memberships (see :mod:`utils.layers.clusters`) of the truth, of each left-out unit, and of shuffled labels."""
    n_units = int(units.max()) + 1
    columns = np.hstack([np.repeat(labels[:, None], 1 + n_units, axis=1), shuffled])
    present = np.ones(columns.shape, bool)
    present[:, 1 : 1 + n_units] = units[:, None] != np.arange(n_units)
    return np.stack([((columns == label) & present).astype(float) for label in np.unique(labels)])


def draw_halves(
    labels: Bool[np.ndarray, "n"], units: Int[np.ndarray, "n"], n_halves: int, rng: np.random.Generator
) -> Float[np.ndarray, "2 n halves"]:
    """Class memberships of the two sides in random halves of the units (one more of an odd number).

    Units with both sides are halved together, units with one side only within their side.
    """
    n_units = int(units.max()) + 1
    n_h1, n_rows = np.bincount(units, labels, minlength=n_units), np.bincount(units, minlength=n_units)
    stratum = np.where(n_h1 == 0, 0, np.where(n_h1 == n_rows, 1, 2))
    half = np.zeros((n_units, n_halves), bool)
    for column in half.T:
        for kind in np.unique(stratum):
            own = np.flatnonzero(stratum == kind)
            column[rng.permutation(own)[: (len(own) + 1) // 2]] = True
    present = half[units]
    return np.stack([present & (labels == side)[:, None] for side in (False, True)]).astype(float)
