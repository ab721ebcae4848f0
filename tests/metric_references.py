"""Cluster metrics by scikit-learn or by their definitions, one labelling at a time."""

import numpy as np
from scipy.spatial.distance import cdist
from sklearn.metrics import calinski_harabasz_score, davies_bouldin_score, silhouette_score

CLASS_REFERENCES = {
    "silhouette": silhouette_score,
    "calinski_harabasz": calinski_harabasz_score,
    "davies_bouldin": davies_bouldin_score,
}


def centroid_distance(x, labels):
    """Definition: distance of the means over the root of the summed pooled within-side variances."""
    a, b = x[labels], x[~labels]
    pooled = (a.var(0, ddof=1) * (len(a) - 1) + b.var(0, ddof=1) * (len(b) - 1)) / (len(x) - 2)
    return np.linalg.norm(a.mean(0) - b.mean(0)) / np.sqrt(pooled.sum())


def fisher_ratio(x, labels):
    """Definition: rows projected on the unit vector from mean to mean."""
    line = x[labels].mean(0) - x[~labels].mean(0)
    a, b = (x[side] @ (line / np.linalg.norm(line)) for side in (labels, ~labels))
    return (a.mean() - b.mean()) ** 2 / (a.var(ddof=1) + b.var(ddof=1))


def mmd(x, labels, units, scale=None):
    """Definition: kernel averaged over all pairs of rows of different units, one by one."""
    distance = cdist(x, x)
    scale = np.median(distance[np.triu_indices(len(x), 1)]) if scale is None else scale
    sums = {"within 1": [], "within 0": [], "across": []}
    for i in range(len(x)):
        for j in range(len(x)):
            if units[i] != units[j]:
                kind = "across" if labels[i] != labels[j] else f"within {int(labels[i])}"
                sums[kind].append(np.exp(-((distance[i, j] / scale) ** 2) / 2))
    return np.mean(sums["within 1"]) + np.mean(sums["within 0"]) - 2 * np.mean(sums["across"])


def references(x, labels, units):
    """Every metric by scikit-learn or by its definition."""
    return {
        "centroid_distance": centroid_distance(x, labels),
        **{name: score(x, labels) for name, score in CLASS_REFERENCES.items()},
        "fisher_ratio": fisher_ratio(x, labels),
        "mmd": mmd(x, labels, units),
    }
