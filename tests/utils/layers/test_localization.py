import numpy as np
import pytest
from planted import draw_layers, make_acts
from scipy.stats import rankdata
from sklearn.kernel_ridge import KernelRidge

from utils.layers.localization import accuracy_stability, layer_accuracy, layer_onset
from utils.layers.separation import best_layer
from utils.statements.contrasts import find_contrasts


def refitted_accuracy(x):
    """Definition: for every pair, ridge on the scaled differences of all others, fitted anew; H1 rows come first."""
    n = len(x) // 2
    d = x[:n] - x[n:]
    z = d / np.sqrt((d**2).sum(axis=0))
    kernel = n / z.shape[1] * z @ z.T
    hits = []
    for i in range(n):
        kept = np.arange(n) != i
        rule = KernelRidge(alpha=1.0, kernel="precomputed").fit(kernel[np.ix_(kept, kept)], np.ones(n - 1))
        hits.append(rule.predict(kernel[i : i + 1, kept])[0] > 0)
    return np.mean(hits)


def test_accuracy_is_that_of_rules_fitted_without_the_pair():
    values = draw_layers(np.random.default_rng(0), 14, 6, [0, 0.5, 1, 2])
    table = layer_accuracy(make_acts(values), n_permutations=19, progress=False)
    assert table["layer"].tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(table["accuracy"], [refitted_accuracy(x) for x in values])
    assert (table["p_adjusted"] >= table["p_value"]).all()
    assert table["p_joint"].nunique() == 1
    assert table["p_joint"][0] == table["p_adjusted"].min()
    assert table["accuracy"].between(table["accuracy_low"], table["accuracy_high"]).all()


def test_a_layer_without_variation_is_nan_and_the_others_are_as_without_it():
    values = draw_layers(np.random.default_rng(1), 12, 5, [0, 1, 2])
    constant = values.copy()
    constant[0] = 3.0
    table = layer_accuracy(make_acts(constant), n_permutations=19, progress=False)
    assert table.loc[0, ["accuracy", "p_value", "p_adjusted"]].isna().all()
    alone = layer_accuracy(make_acts(values[1:], first_layer=1), n_permutations=19, progress=False)
    np.testing.assert_array_equal(table["accuracy"][1:], alone["accuracy"])
    np.testing.assert_array_equal(table["p_adjusted"][1:], alone["p_adjusted"])
    with pytest.raises(ValueError, match="same activation at every layer"):
        layer_accuracy(make_acts(np.ones((2, 24, 5))), progress=False)


def test_places_of_a_planted_rise():
    values = draw_layers(np.random.default_rng(2), 60, 5, [0, 0, 0, 8, 8, 8, 0], kept=0)
    acts = make_acts(values)
    accuracy = layer_accuracy(acts, n_permutations=99, progress=False)
    row = layer_onset(acts, accuracy=accuracy, progress=False).iloc[0]
    assert (row["onset"], row["plateau_end"], row["first_significant"]) == (3, 5, 3)
    assert row["peak"] in (3, 4, 5)
    assert (row["onset_low"], row["onset_high"], row["plateau_end_low"]) == (3, 3, 5)
    assert row["p_value"] == row["p_adjusted"] == 0.01
    assert row["peak_accuracy"] == pytest.approx(accuracy["accuracy"].max())


def test_without_effect_the_places_are_anywhere():
    values = draw_layers(np.random.default_rng(3), 40, 5, [0] * 8, kept=0)
    row = layer_onset(make_acts(values), progress=False).iloc[0]
    assert row["peak_high"] - row["peak_low"] >= 4


def test_unpaired_accuracy_is_the_mean_of_the_sides():
    values = draw_layers(np.random.default_rng(4), 20, 4, [0, 3])
    acts = make_acts(values[:, :33], paired=False, n_h1=20)
    table = layer_accuracy(acts, n_permutations=99, progress=False)
    assert table["n"].tolist() == [33, 33]
    assert table["accuracy"][1] > 0.8
    assert table["p_adjusted"][1] == 0.01
    row = layer_onset(acts, progress=False).iloc[0]
    assert row["onset"] == 1


def test_resamples_pick_what_best_layer_picks():
    acts = make_acts(draw_layers(np.random.default_rng(5), 30, 5, [0, 0, 6, 0], kept=0))
    table = accuracy_stability(acts, n_resamples=50)
    assert table["share"].tolist() == [0, 0, 1, 0]
    assert best_layer(layer_accuracy(acts, n_permutations=0, progress=False)) == 2
    assert accuracy_stability(acts, n_resamples=50).equals(table)


def test_ties_of_ranks_go_to_the_earlier_layer():
    assert rankdata([-0.9, -0.9, -0.5]).argmin() == 0
    acts = make_acts(np.repeat(draw_layers(np.random.default_rng(6), 30, 5, [4]), 3, axis=0))
    assert best_layer(layer_accuracy(acts, find_contrasts(acts), n_permutations=0, progress=False)) == 1
    assert accuracy_stability(acts, n_resamples=20)["share"].tolist() == [0, 1, 0]
