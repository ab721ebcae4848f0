import numpy as np
import pytest
from metric_references import CLASS_REFERENCES, mmd, references
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score

from utils.layers.clusters import (
    CLASS_METRICS,
    CLUSTER_METRICS,
    class_metrics,
    cluster_metrics,
    distances,
    gram_matrix,
    mean_silhouettes,
    principal_gram,
)


def members_of(*columns, n_classes=2, present=None):
    """Memberships of labellings, each (n,) of class numbers."""
    labels = np.stack(columns, axis=1)
    present = np.ones(labels.shape) if present is None else present
    return np.stack([(labels == label) * present for label in range(n_classes)]).astype(float)


@pytest.mark.parametrize("seed", range(6))
def test_many_labellings_at_once_are_those_of_the_definitions(seed):
    rng = np.random.default_rng(seed)
    n, d = int(rng.integers(12, 40)), int(rng.integers(2, 300))
    x = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + 50 * rng.normal(size=d)
    labels = rng.random((n, 15)) < rng.uniform(0.3, 0.7, 15)
    present = rng.random((n, 15)) < 0.9
    present[:, 0] = True
    labels[:3], labels[3:6], present[:6] = True, False, True
    x[:, 0] += 3 * labels[:, 0]
    units = np.arange(n) // 2
    found = cluster_metrics(gram_matrix(x), members_of(*labels.T, present=present), units)
    assert tuple(found) == CLUSTER_METRICS
    scale = np.median(cdist(x, x)[np.triu_indices(n, 1)])
    for k in range(15):
        kept = present[:, k]
        expected = references(x[kept], labels[kept, k], units[kept])
        expected["mmd"] = mmd(x[kept], labels[kept, k], units[kept], scale)  # the scale is of all rows
        for name in CLUSTER_METRICS:
            assert found[name][k] == pytest.approx(expected[name], rel=1e-6, abs=1e-9), name


@pytest.mark.parametrize("n_classes", [2, 3, 5])
def test_classes_are_measured_as_scikit_learn_measures_them(n_classes):
    rng = np.random.default_rng(n_classes)
    x = rng.normal(size=(50, 7)) + 30
    columns = [rng.permutation(np.arange(50) % n_classes) for _ in range(10)]
    uneven = np.minimum(rng.geometric(0.5, 50) - 1, n_classes - 1)
    uneven[: 2 * n_classes] = np.repeat(np.arange(n_classes), 2)
    x[:, 0] += uneven
    columns.append(uneven)
    found = class_metrics(gram_matrix(x), members_of(*columns, n_classes=n_classes))
    assert tuple(found) == CLASS_METRICS
    for name, score in CLASS_REFERENCES.items():
        np.testing.assert_allclose(found[name], [score(x, column) for column in columns], rtol=1e-7, atol=1e-10)


def test_closed_forms():
    """Two sides at distance 6, each spread by 1 about its mean across the line between them and by 2 along it."""
    corners = np.array([[-1, -2], [-1, 2], [1, -2], [1, 2]], dtype=float)
    x = np.concatenate([corners, corners + np.array([0, 6])])
    found = cluster_metrics(gram_matrix(x), members_of(np.repeat([0, 1], 4)), np.arange(8))
    assert found["centroid_distance"][0] == pytest.approx(6 / np.sqrt(4 / 3 + 16 / 3))
    assert found["fisher_ratio"][0] == pytest.approx(36 / (2 * 16 / 3))


def test_spread_across_the_line_between_the_means_lowers_only_the_centroid_distance():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 500)
    x = np.column_stack([rng.normal(size=1000) + 4 * labels, rng.normal(size=1000)])
    x[:, 1] -= np.where(labels, x[500:, 1].mean(), x[:500, 1].mean())
    narrow, wide = (
        cluster_metrics(gram_matrix(x * [1, scale]), members_of(labels), np.arange(1000)) for scale in (1, 9)
    )
    assert wide["centroid_distance"][0] < 0.3 * narrow["centroid_distance"][0]
    assert wide["fisher_ratio"][0] == pytest.approx(narrow["fisher_ratio"][0])


def test_mmd_is_unbiased_without_effect_also_where_the_statements_of_a_pair_resemble_each_other():
    values = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        subject = 2 * rng.normal(size=(10, 3))
        x = np.concatenate([subject, subject]) + rng.normal(size=(20, 3))
        members, units = members_of(np.repeat([0, 1], 10)), np.tile(np.arange(10), 2)
        values.append([cluster_metrics(gram_matrix(x), members, u)["mmd"][0] for u in (units, np.arange(20))])
    mean, error = np.mean(values, axis=0), np.std(values, axis=0) / np.sqrt(400)
    assert abs(mean[0]) < 3 * error[0]
    assert mean[1] < -10 * error[1]  # pairs taken for single statements: the test can see a bias


@pytest.mark.parametrize(("n", "d", "n_components"), [(30, 8, 3), (20, 100, 10), (12, 4, 12), (10, 50, 10)])
def test_pca_space_is_that_of_scikit_learn(n, d, n_components):
    x = np.random.default_rng(0).normal(size=(n, d)) * np.linspace(5, 1, d) + 100
    points = PCA(min(n_components, n, d), svd_solver="full").fit_transform(x)
    found = principal_gram(gram_matrix(x), n_components)
    np.testing.assert_allclose(found, points @ points.T, atol=1e-7)
    np.testing.assert_allclose(distances(found), cdist(points, points), atol=1e-5)


@pytest.mark.parametrize("n_components", [0, 11])
def test_components_out_of_range(n_components):
    with pytest.raises(ValueError, match="from 1 to the number of statements, 10"):
        principal_gram(np.eye(10), n_components)


def test_repeated_rows_count_as_scikit_learn_counts_them():
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=(8, 3)), 3, axis=0)
    labels = rng.permutation(24) % 2
    found = mean_silhouettes(distances(gram_matrix(x)), members_of(labels))
    assert found[0] == pytest.approx(silhouette_score(x, labels), abs=1e-6)


def test_centroids_that_coincide_are_infinitely_bad_for_davies_bouldin():
    x = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    found = cluster_metrics(gram_matrix(x), members_of([0, 0, 1, 1]), np.arange(4))
    assert found["davies_bouldin"][0] == np.inf
    assert found["centroid_distance"][0] == 0


def test_sides_without_spread_are_infinitely_far_apart():
    x = np.repeat([[0.0, 0], [3, 4]], 5, axis=0)
    found = cluster_metrics(gram_matrix(x), members_of(np.repeat([0, 1], 5)), np.arange(10))
    assert found["silhouette"][0] == 1
    assert found["davies_bouldin"][0] == pytest.approx(0, abs=1e-6)
    assert found["mmd"][0] == pytest.approx(2 - 2 * np.exp(-0.5))  # the only distance above 0 is the scale
