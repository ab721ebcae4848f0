import numpy as np
import pandas as pd
import pytest
import xarray as xr
from sklearn.metrics import calinski_harabasz_score, davies_bouldin_score, silhouette_score

from utils.contrasts import find_contrasts
from utils.layers import CLUSTER_METRICS, PROBE_METRICS, best_layer, cluster_metrics, divergence

REFERENCES = {
    "silhouette": silhouette_score,
    "calinski_harabasz": calinski_harabasz_score,
    "davies_bouldin": davies_bouldin_score,
}


def make_acts(values, *, paired=True, n_h1=None, persona="a", first_layer=0):
    """Activations (layer, statement, node) with labels: H1 (positive) statements before H0 (negative)."""
    n_layers, n, _ = values.shape
    n_h1 = n // 2 if n_h1 is None else n_h1
    pair = [f"{persona}{i}" if paired else "" for i in [*range(n_h1), *range(n - n_h1)]]
    columns = {
        "persona": [persona] * n,
        "topic": ["t"] * n,
        "direction": ["positive"] * n_h1 + ["negative"] * (n - n_h1),
        "pair": pair,
    }
    coords = {name: ("statement", np.array(column)) for name, column in columns.items()}
    coords |= {"statement": [f"{persona}-{i}" for i in range(n)], "layer": np.arange(n_layers) + first_layer}
    return xr.DataArray(values, dims=("layer", "statement", "node"), coords=coords)


def draw_pairs(rng, n_pairs, d, *, effect=0.0):
    """Pairs that share a topic, H1 before H0, moved apart along the first node; (1, 2 * n_pairs, d)."""
    shared = rng.normal(size=(n_pairs, d))
    x = np.concatenate([shared, shared]) + rng.normal(size=(2 * n_pairs, d))
    x[:n_pairs, 0] += effect
    return x[None]


def centroid_distance(x, labels):
    """Definition: distance of the means over the root of the summed pooled within-side variances."""
    a, b = x[labels], x[~labels]
    pooled = (a.var(0, ddof=1) * (len(a) - 1) + b.var(0, ddof=1) * (len(b) - 1)) / (len(x) - 2)
    return np.linalg.norm(a.mean(0) - b.mean(0)) / np.sqrt(pooled.sum())


def references(x, labels):
    """Every cluster metric by scikit-learn or by its definition."""
    return {"centroid_distance": centroid_distance(x, labels)} | {
        name: score(x, labels) for name, score in REFERENCES.items()
    }


@pytest.mark.parametrize("seed", range(6))
def test_cluster_metrics_are_those_of_scikit_learn_for_many_labellings_at_once(seed):
    rng = np.random.default_rng(seed)
    n, d = int(rng.integers(12, 60)), int(rng.integers(2, 300))
    x = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + 50 * rng.normal(size=d)
    labels = rng.random((n, 25)) < rng.uniform(0.3, 0.7, 25)
    present = rng.random((n, 25)) < 0.9
    present[:, 0] = True
    labels[:3], labels[3:6], present[:6] = True, False, True
    x[:, 0] += 3 * labels[:, 0]
    found = cluster_metrics(x, (labels & present).astype(float), (~labels & present).astype(float))
    for k in range(25):
        expected = references(x[present[:, k]], labels[present[:, k], k])
        for name in CLUSTER_METRICS:
            assert found[name][k] == pytest.approx(expected[name], rel=1e-6, abs=1e-9), name


def test_centroid_distance_in_closed_form():
    """Two sides at distance 6, each spread by 1 about its mean along one axis: variance 4/3, pooled the same."""
    x = np.array([[-1, 0], [-1, 0], [1, 0], [1, 0], [-1, 6], [-1, 6], [1, 6], [1, 6]], dtype=float)
    side = np.repeat([1.0, 0.0], 4)[:, None]
    metrics = cluster_metrics(x, side, 1 - side)
    assert metrics["centroid_distance"][0] == pytest.approx(6 / np.sqrt(4 / 3))


def test_repeated_rows_count_as_scikit_learn_counts_them():
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=(8, 3)), 3, axis=0)
    labels = rng.permutation(24) % 2 == 0
    found = cluster_metrics(x, labels[:, None].astype(float), (~labels)[:, None].astype(float))
    assert found["silhouette"][0] == pytest.approx(silhouette_score(x, labels), abs=1e-6)


@pytest.mark.parametrize(("paired", "n_h1"), [(True, 12), (False, 9)])
def test_values_and_jackknife_are_those_of_leaving_out_and_recomputing(paired, n_h1):
    rng = np.random.default_rng(1)
    values = rng.normal(size=(3, 24, 7)) + 20
    values[2, :n_h1] += 1
    table = divergence(make_acts(values, paired=paired, n_h1=n_h1), probe=False, progress=False)
    assert table["layer"].tolist() == [0, 1, 2]
    assert table[["n_h1", "n_h0"]].to_numpy().tolist() == [[n_h1, 24 - n_h1]] * 3
    labels = np.arange(24) < n_h1
    units = np.r_[np.arange(12), np.arange(12)] if paired else np.arange(24)
    for layer, row in table.iterrows():
        expected = references(values[layer], labels)
        kept = [units != unit for unit in range(units.max() + 1)]
        left_out = pd.DataFrame([references(values[layer][rows], labels[rows]) for rows in kept])
        error = 1.959964 * np.sqrt((len(kept) - 1) * left_out.var(ddof=0))
        for name in CLUSTER_METRICS:
            assert row[name] == pytest.approx(expected[name], rel=1e-6)
            assert row[f"{name}_high"] == pytest.approx(expected[name] + error[name], rel=1e-5)
            assert row[f"{name}_low"] == pytest.approx(expected[name] - error[name], rel=1e-5, abs=1e-6)


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # Davies–Bouldin of centroids that coincide
def test_flips_keep_pairs():
    """Both statements of a pair are alike: flipped within pairs the centroids coincide, permuted freely they do not."""
    x = np.random.default_rng(0).normal(size=(15, 6))
    twice = np.concatenate([x, x])[None]
    paired = divergence(make_acts(twice), probe=False, progress=False).iloc[0]
    free = divergence(make_acts(twice, paired=False), probe=False, progress=False).iloc[0]
    assert paired["centroid_distance_null_high"] < 1e-6
    assert free["centroid_distance_null_low"] > 0.05


def test_flips_are_of_both_kinds_and_follow_the_seed():
    acts = make_acts(draw_pairs(np.random.default_rng(0), 12, 5, effect=3.0))
    first, again, other = (divergence(acts, probe=False, rng=seed, progress=False) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again, check_exact=True)
    assert first["silhouette"].equals(other["silhouette"])
    assert not first["silhouette_null_high"].equals(other["silhouette_null_high"])
    assert first["silhouette_null_low"].item() < first["silhouette_null_high"].item() < first["silhouette"].item()


@pytest.mark.parametrize("paired", [True, False])
def test_flip_band_holds_what_data_without_effect_give(paired):
    """The band is of 5 to 95 %, so it should hold about 90 % of 120 data sets."""
    inside = dict.fromkeys(CLUSTER_METRICS, 0)
    for seed in range(120):
        rng = np.random.default_rng(seed)
        values = draw_pairs(rng, 12, 6) if paired else rng.normal(size=(1, 24, 6))
        row = divergence(make_acts(values, paired=paired), probe=False, rng=seed, progress=False).iloc[0]
        for name in CLUSTER_METRICS:
            inside[name] += row[f"{name}_null_low"] <= row[name] <= row[f"{name}_null_high"]
    # Standard error of a share of 0.9 over 120 is 0.027; the quantiles of 100 flips add some.
    assert all(0.79 < count / 120 < 0.98 for count in inside.values()), inside


def test_jackknife_interval_covers_the_truth():
    """Centroid distance of normal data with a real effect: the interval holds the population's value in most samples."""
    d, effect, covered = 5, 2.0, 0
    truth = effect / np.sqrt(d)
    for seed in range(100):
        values = np.random.default_rng(seed).normal(size=(1, 80, d))
        values[0, :40, 0] += effect
        acts = make_acts(values, paired=False)
        row = divergence(acts, probe=False, n_flips=20, rng=seed, progress=False).iloc[0]
        covered += row["centroid_distance_low"] <= truth <= row["centroid_distance_high"]
    assert covered >= 87  # 95 expected, standard error 2.2


def test_probe_columns_are_there_only_when_asked_for():
    acts = make_acts(draw_pairs(np.random.default_rng(0), 10, 5, effect=3.0))
    with_probe = divergence(acts, progress=False)
    without = divergence(acts, probe=False, progress=False)
    suffixes = ("", "_low", "_high")
    expected = {name + suffix for name in PROBE_METRICS for suffix in suffixes}
    assert set(with_probe) - set(without) == expected
    pd.testing.assert_frame_equal(with_probe[list(without)], without)
    assert with_probe["probe_auroc"].item() > 0.8


def test_personas_are_measured_on_their_own_statements():
    rng = np.random.default_rng(0)
    a, b = (make_acts(draw_pairs(rng, 8, 4, effect=effect), persona=name) for name, effect in (("a", 0), ("b", 5)))
    both = xr.concat([a, b], dim="statement")
    table = divergence(both, probe=False, progress=False)
    alone = pd.concat([divergence(each, probe=False, progress=False) for each in (a, b)], ignore_index=True)
    pd.testing.assert_frame_equal(table, alone)
    only_b = divergence(both, find_contrasts(both, personas=["b"]), probe=False, progress=False)
    pd.testing.assert_frame_equal(only_b, alone[1:].reset_index(drop=True))


def test_a_layer_where_all_statements_are_the_same_is_nan():
    values = np.concatenate([np.full((1, 20, 4), 3.0), draw_pairs(np.random.default_rng(0), 10, 4, effect=1.0)])
    table = divergence(make_acts(values.astype(np.float32)), progress=False)
    names = [name for name in table if name.startswith((*CLUSTER_METRICS, *PROBE_METRICS))]
    assert len(names) == 4 * 5 + 2 * 3
    assert table.loc[0, names].isna().all()
    assert table.loc[1, names].notna().all()


@pytest.mark.parametrize(("n", "n_h1"), [(8, 4), (14, 4), (14, 10)])
def test_too_few_statements_on_a_side(n, n_h1):
    values = np.random.default_rng(0).normal(size=(1, n, 3))
    with pytest.raises(ValueError, match="at least 5 on each side"):
        divergence(make_acts(values, paired=False, n_h1=n_h1), progress=False)


def test_too_few_flips():
    with pytest.raises(ValueError, match="at least 20"):
        divergence(make_acts(draw_pairs(np.random.default_rng(0), 6, 3)), n_flips=19, progress=False)


def make_table(metric="silhouette", **personas):
    """A table of divergence with one metric; values are for layers 0, 1, 2, …"""
    rows = [
        {"persona": persona, "layer": layer, metric: value}
        for persona, values in personas.items()
        for layer, value in enumerate(values)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("metric", "personas", "expected"),
    [
        ("silhouette", {"a": [0, 1, 3, 2]}, 2),
        # Ranks and not values: layer 1 is far ahead for a alone, layer 3 is second for all.
        ("silhouette", {"a": [0, 99, 1, 2], "b": [0, 1, 2, 3], "c": [0, 1, 3, 2]}, 3),
        ("silhouette", {"a": [9, 1, 2, 2]}, 2),  # layer 0 takes no part; ties go to the earlier layer
        ("silhouette", {"a": [0, 5, 4], "b": [0, 4, 5]}, 1),
        ("silhouette", {"a": [0, np.nan, 2, 3], "b": [0, 9, 3, np.nan]}, 2),
        ("davies_bouldin", {"a": [0, 3, 1, 2]}, 2),
        ("davies_bouldin", {"a": [0, 2, 2, 3]}, 1),
        ("calinski_harabasz", {"a": [0, 3, 1, 2]}, 1),
        ("centroid_distance", {"a": [0, 3, 1, 5]}, 3),
        ("probe_auroc", {"a": [1, 0.5, 0.9, 0.7]}, 2),
    ],
)
def test_best_layer(metric, personas, expected):
    assert best_layer(make_table(metric, **personas), metric=metric) == expected


def test_best_layer_does_not_depend_on_the_order_of_rows():
    table = make_table(a=[0, 1, 3, 2, 3], b=[0, 2, 3, 1, 3])
    assert {best_layer(table.sample(frac=1, random_state=seed)) for seed in range(10)} == {2}


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (make_table(a=[0, 1]), {"metric": "entropy"}, "no metric 'entropy'"),
        (make_table(a=[0, 1]), {"metric": "davies_bouldin"}, "no metric 'davies_bouldin'"),
        (make_table(a=[3]), {}, "no layer above 0"),
        (make_table(a=[0, np.nan, 1], b=[0, 1, np.nan]), {}, "no layer above 0"),
    ],
)
def test_best_layer_refuses(table, options, message):
    with pytest.raises(ValueError, match=message):
        best_layer(table, **options)
