import numpy as np
import pandas as pd
import pytest
import xarray as xr
from metric_references import references
from planted import draw_layers, draw_pairs, make_acts
from sklearn.decomposition import PCA

from utils.layers.separation import (
    CLUSTER_METRICS,
    PCA_METRICS,
    PROBE_METRICS,
    best_layer,
    divergence,
    layer_stability,
)
from utils.statements.contrasts import find_contrasts


@pytest.mark.parametrize(("paired", "n_h1"), [(True, 12), (False, 9)])
def test_values_and_jackknife_are_those_of_leaving_out_and_recomputing(paired, n_h1):
    rng = np.random.default_rng(1)
    values = rng.normal(size=(3, 24, 7)) + 20
    values[2, :n_h1] += 1
    acts = make_acts(values, paired=paired, n_h1=n_h1)
    table = divergence(acts, probe=False, n_components=3, progress=False)
    assert table["layer"].tolist() == [0, 1, 2]
    assert table[["n_h1", "n_h0"]].to_numpy().tolist() == [[n_h1, 24 - n_h1]] * 3
    labels = np.arange(24) < n_h1
    units = np.r_[np.arange(12), np.arange(12)] if paired else np.arange(24)
    for layer, row in table.iterrows():
        points = PCA(3, svd_solver="full").fit_transform(
            values[layer]
        )  # fitted to all rows, also where one is left out
        for prefix, x in (("", values[layer]), ("pca_", points)):
            expected = references(x, labels, units)
            kept = [units != unit for unit in range(units.max() + 1)]
            left_out = pd.DataFrame([references(x[rows], labels[rows], units[rows]) for rows in kept])
            error = 1.959964 * np.sqrt((len(kept) - 1) * left_out.var(ddof=0))
            for name in CLUSTER_METRICS:
                assert row[prefix + name] == pytest.approx(expected[name], rel=1e-6)
                if name != "mmd":  # its scale is of all rows; compared with the definition in test_clusters
                    margin = row[f"{prefix}{name}_high"] - row[prefix + name]
                    assert margin == pytest.approx(error[name], rel=1e-5)
                    assert row[prefix + name] - row[f"{prefix}{name}_low"] == pytest.approx(margin)


def test_flips_keep_pairs():
    """Both statements of a pair are alike: flipped within pairs the centroids coincide, permuted freely they do not."""
    x = np.random.default_rng(0).normal(size=(15, 6))
    twice = np.concatenate([x, x])[None]
    paired = divergence(make_acts(twice), probe=False, progress=False).iloc[0]
    free = divergence(make_acts(twice, paired=False), probe=False, progress=False).iloc[0]
    assert paired["centroid_distance_null_high"] < 1e-6
    assert free["centroid_distance_null_low"] > 0.05
    assert paired["davies_bouldin"] > 1e6


def test_flips_are_of_both_kinds_and_follow_the_seed():
    acts = make_acts(draw_pairs(np.random.default_rng(0), 12, 5, effect=3.0))
    first, again, other = (divergence(acts, probe=False, rng=seed, progress=False) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again, check_exact=True)
    assert first["silhouette"].equals(other["silhouette"])
    assert not first["silhouette_null_high"].equals(other["silhouette_null_high"])
    assert first["silhouette_null_low"].item() < first["silhouette_null_high"].item() < first["silhouette"].item()


@pytest.mark.parametrize("paired", [True, False])
def test_flip_band_holds_what_data_without_effect_give(paired):
    """The band is of 5 to 95 %, so it should hold about 90 % of 100 data sets."""
    inside = dict.fromkeys((*CLUSTER_METRICS, *PCA_METRICS), 0)
    for seed in range(100):
        rng = np.random.default_rng(seed)
        values = draw_pairs(rng, 12, 6) if paired else rng.normal(size=(1, 24, 6))
        acts = make_acts(values, paired=paired)
        row = divergence(acts, probe=False, n_components=3, rng=seed, progress=False).iloc[0]
        for name in inside:
            inside[name] += row[f"{name}_null_low"] <= row[name] <= row[f"{name}_null_high"]
    # Standard error of a share of 0.9 over 100 is 0.03; the quantiles of 100 flips add some.
    assert all(0.79 < count / 100 < 0.98 for count in inside.values()), inside


@pytest.mark.parametrize("effect", [0.0, 2.0])
def test_jackknife_intervals_cover_what_such_statements_give_on_average(effect):
    """Their estimand: the expected value at this number of statements, here the mean over the simulated data."""
    rows = []
    for seed in range(100):
        values = draw_pairs(np.random.default_rng(seed), 30, 20, effect=effect) * np.arange(1, 21) ** -0.5
        acts = make_acts(values)
        rows.append(divergence(acts, probe=False, n_flips=20, rng=seed, progress=False).iloc[0])
    table = pd.DataFrame(rows)
    for name in (*CLUSTER_METRICS, *PCA_METRICS):
        truth = table[name].mean()
        covered = ((table[f"{name}_low"] <= truth) & (truth <= table[f"{name}_high"])).mean()
        assert covered >= 0.9, (name, covered)  # 0.95 expected, more without effect; standard error 0.02
        width = (table[f"{name}_high"] - table[f"{name}_low"]).median()
        assert width < 1.6 * 2 * 1.96 * table[name].std(), name  # and not by being far too wide
    if not effect:
        assert ((table["mmd_low"] <= 0) & (table["mmd_high"] >= 0)).mean() >= 0.9


def test_probe_columns_are_there_only_when_asked_for():
    acts = make_acts(draw_pairs(np.random.default_rng(0), 10, 5, effect=3.0))
    with_probe = divergence(acts, progress=False)
    without = divergence(acts, probe=False, progress=False)
    unflipped = divergence(acts, probe_flips=0, progress=False)
    expected = {name + suffix for name in PROBE_METRICS for suffix in ("", "_low", "_high")}
    assert set(unflipped) - set(without) == expected
    band = {name + suffix for name in PROBE_METRICS for suffix in ("_null_low", "_null_high")}
    assert set(with_probe) - set(unflipped) == band
    pd.testing.assert_frame_equal(with_probe[list(without)], without)
    pd.testing.assert_frame_equal(with_probe[list(unflipped)], unflipped)
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
    names = [name for name in table if name.startswith((*CLUSTER_METRICS, *PCA_METRICS, *PROBE_METRICS))]
    assert len(names) == (6 + 6 + 2) * 5
    assert table.loc[0, names].isna().all()
    assert table.loc[1, names].notna().all()


@pytest.mark.parametrize(("n", "n_h1"), [(8, 4), (14, 4), (14, 10)])
def test_too_few_statements_on_a_side(n, n_h1):
    values = np.random.default_rng(0).normal(size=(1, n, 3))
    with pytest.raises(ValueError, match="at least 5 on each side"):
        divergence(make_acts(values, paired=False, n_h1=n_h1), progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_flips": 19}, "n_flips must be at least 20"),
        ({"probe_flips": 5}, "probe_flips must be 0, or at least 20"),
        ({"n_components": 13}, "n_components must be from 1 to the number of statements, 12 for persona 'a'"),
        ({"n_components": 0}, "n_components must be from 1"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        divergence(make_acts(draw_pairs(np.random.default_rng(0), 6, 3)), progress=False, **options)


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
        ("pca_davies_bouldin", {"a": [0, 3, 1, 2]}, 2),
        ("mmd", {"a": [0, -1, 0.5, 0.2]}, 2),
    ],
)
def test_best_layer(metric, personas, expected):
    assert best_layer(make_table(metric, **personas), metric=metric) == expected


def test_best_layer_does_not_depend_on_the_order_of_rows():
    table = make_table(a=[0, 1, 3, 2, 3], b=[0, 2, 3, 1, 3])
    assert {best_layer(table.sample(frac=1, random_state=seed), metric="silhouette") for seed in range(10)} == {2}


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (make_table(a=[0, 1]), {"metric": "entropy"}, "no metric 'entropy'"),
        (make_table(a=[0, 1]), {"metric": "davies_bouldin"}, "no metric 'davies_bouldin'"),
        (make_table(a=[3]), {"metric": "silhouette"}, "no layer above 0"),
        (make_table(a=[0, np.nan, 1], b=[0, 1, np.nan]), {"metric": "silhouette"}, "no layer above 0"),
    ],
)
def test_best_layer_refuses(table, options, message):
    with pytest.raises(ValueError, match=message):
        best_layer(table, **options)


def test_halves_agree_on_a_layer_far_ahead_and_scatter_without_effect():
    rng = np.random.default_rng(0)
    clear = layer_stability(make_acts(draw_layers(rng, 20, 8, [0, 0, 6, 0])), n_halves=50)
    assert list(clear) == ["layer", "share"]
    assert clear["share"].tolist() == [0, 0, 1, 0]
    chance = layer_stability(make_acts(draw_layers(rng, 20, 8, [0] * 5, kept=0)), n_halves=50)
    assert chance["share"].sum() == pytest.approx(1)
    assert chance["share"][0] == 0  # layer 0 takes no part
    assert chance["share"].max() < 1


@pytest.mark.parametrize("metric", ["silhouette", "davies_bouldin"])
def test_halves_pick_what_best_layer_picks_from_their_statements_alone(metric):
    """One persona, 5 pairs: halves are 3 pairs, and every half that can be drawn is measured on its own."""
    acts = make_acts(draw_pairs(np.random.default_rng(3), 5, 4, effect=1.0) + np.zeros((4, 1, 1)))
    acts[:] += np.random.default_rng(4).normal(size=acts.shape)
    found = layer_stability(acts, metric=metric, n_halves=300).set_index("layer")["share"]
    picks = []
    labels, units = np.arange(10) < 5, np.r_[0:5, 0:5]
    for left_out in [(a, b) for a in range(5) for b in range(a)]:
        kept = ~np.isin(units, left_out)
        values = [references(x[kept], labels[kept], units[kept])[metric] for x in acts.to_numpy()[1:]]
        picks.append(1 + int(np.argmin(values) if metric == "davies_bouldin" else np.argmax(values)))
    expected = [picks.count(layer) / 10 for layer in range(4)]
    np.testing.assert_allclose(found, expected, atol=0.1)  # standard error at most 0.03


def test_stability_refuses_a_metric_it_cannot_halve():
    acts = make_acts(draw_pairs(np.random.default_rng(0), 6, 3))
    with pytest.raises(ValueError, match="unknown metric 'probe_auroc'"):
        layer_stability(acts, metric="probe_auroc")
    with pytest.raises(ValueError, match="no layer above 0"):
        layer_stability(acts)
