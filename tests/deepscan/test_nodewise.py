import numpy as np
import pytest
from scipy import stats

from deepscan import node_test
from deepscan.splits import label_records, permute_labels


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    topic = rng.normal(size=(20, 30))
    h0, h1 = topic + rng.normal(size=(20, 30)), topic + 2 * rng.normal(size=(20, 30))
    h1[:, :5] += 2
    h1[:, 5:8] -= 2
    return h0, h1


def test_paired_t_is_that_of_scipy(data):
    h0, h1 = data
    table = node_test(h0, h1, pairs=np.arange(20), n_permutations=0)
    expected = stats.ttest_rel(h1, h0)
    np.testing.assert_allclose(table["t"], expected.statistic, rtol=1e-10)
    np.testing.assert_allclose(table["p_value"], expected.pvalue, rtol=1e-10)
    assert table.columns.tolist() == ["node", "effect", "low", "high", "t", "p_value", "p_adjusted", "sign"]


def test_welch_t_is_that_of_scipy(data):
    h0, h1 = data[0][:13], data[1]
    table = node_test(h0, h1, n_permutations=0)
    expected = stats.ttest_ind(h1, h0, equal_var=False)
    np.testing.assert_allclose(table["t"], expected.statistic, rtol=1e-10)
    np.testing.assert_allclose(table["p_value"], expected.pvalue, rtol=1e-10)
    np.testing.assert_array_equal(table["sign"], np.sign(expected.statistic))


@pytest.mark.parametrize("paired", [True, False])
def test_max_t_counts_labellings_whose_largest_t_reaches_a_node(data, paired):
    h0, h1 = data if paired else (data[0][:13], data[1])
    pairs = np.arange(20) if paired else None
    table = node_test(h0, h1, pairs=pairs, n_permutations=60, rng=3)
    values, labels = np.concatenate([h0, h1]), label_records(len(h0), len(h1), pairs)
    largest = []
    for each in [labels, *(permute_labels(labels, 3, k) for k in range(60))]:
        one, two = values[each.h1], values[each.h0]
        test = stats.ttest_rel(one, two) if paired else stats.ttest_ind(one, two, equal_var=False)
        largest.append(np.abs(test.statistic).max())
    expected = [np.mean(np.array(largest) >= abs(t) - 1e-9) for t in table["t"]]
    np.testing.assert_allclose(table["p_adjusted"], expected)
    assert (table["p_adjusted"] <= 0.05).any()


def test_bh_is_that_of_scipy(data):
    table = node_test(*data, pairs=np.arange(20), correction="bh")
    np.testing.assert_allclose(table["p_adjusted"], stats.false_discovery_control(table["p_value"]))


@pytest.mark.parametrize("paired", [True, False])
def test_family_wise_error_with_correlated_nodes(paired):
    rng = np.random.default_rng(1)
    loads = rng.normal(size=(2, 25))
    rejected = 0
    for draw in range(150):
        topic = rng.normal(size=(14, 25)) if paired else 0.0
        h0, h1 = (topic + rng.normal(size=(14, 2)) @ loads + rng.normal(size=(14, 25)) for _ in range(2))
        options = {"pairs": np.arange(14)} if paired else {}
        rejected += node_test(h0, h1, n_permutations=39, rng=draw, **options)["p_adjusted"].min() <= 0.05
    low, high = stats.binom.interval(0.999, 150, 0.05)
    assert low <= rejected <= high


@pytest.mark.parametrize("correction", ["max-t", "bh"])
@pytest.mark.parametrize("paired", [True, False])
def test_planted_nodes_are_found_and_few_others(correction, paired):
    rng = np.random.default_rng(2)
    right = wrong = 0
    for draw in range(10):
        topic = rng.normal(size=(50, 100)) if paired else 0.0
        h0, h1 = (topic + rng.normal(size=(50, 100)) for _ in range(2))
        h1[:, :10] -= 1.2
        options = {"pairs": np.arange(50)} if paired else {}
        found = node_test(h0, h1, correction=correction, n_permutations=99, rng=draw, **options)
        chosen = found[found["p_adjusted"] <= 0.05]
        right += (chosen["node"] < 10).sum()
        wrong += (chosen["node"] >= 10).sum()
        assert (chosen.loc[chosen["node"] < 10, "sign"] == -1).all()
    assert right >= 85
    assert right / (right + wrong) >= 0.9


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("n", [15, 80])
def test_intervals_hold_the_effect(paired, n):
    """The truth: a shift of 0.8 over the root mean of the variances 1 + 1 and 1 + 4 (topics, then noise)."""
    rng = np.random.default_rng(3)
    topic = rng.normal(size=(n, 2000))
    h0 = (topic if paired else rng.normal(size=(n, 2000))) + rng.normal(size=(n, 2000))
    h1 = topic + 2 * rng.normal(size=(n, 2000)) + 0.8
    table = node_test(h0, h1, pairs=np.arange(n) if paired else None, correction="bh")
    truth = 0.8 / np.sqrt(3.5)
    held = ((table["low"] <= truth) & (truth <= table["high"])).mean()
    assert 0.92 <= held <= 0.98
    assert abs(table["effect"].mean() - truth) < 0.05


@pytest.mark.parametrize("paired", [True, False])
def test_several_layers_are_corrected_together(data, paired):
    h0, h1 = data
    rng = np.random.default_rng(4)
    other = rng.normal(size=(2, 20, 12))
    options = {"pairs": np.arange(20) if paired else None, "n_permutations": 60, "rng": 2}
    both = node_test([h0, other[0]], [h1, other[1]], **options)
    jobs = node_test([h0, other[0]], [h1, other[1]], n_jobs=2, **options)
    assert both.equals(jobs)
    joined = node_test(np.hstack([h0, other[0]]), np.hstack([h1, other[1]]), **options)
    np.testing.assert_allclose(both["p_adjusted"], joined["p_adjusted"])
    np.testing.assert_allclose(both["t"], joined["t"])
    assert both["layer"].tolist() == [0] * 30 + [1] * 12
    assert both["node"].tolist() == [*range(30), *range(12)]


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("correction", ["max-t", "bh"])
def test_nodes_without_spread(paired, correction):
    rng = np.random.default_rng(5)
    # Multiples of an eighth, so that the differences of pairs are the same to the last bit.
    h0 = np.round(8 * rng.normal(size=(12, 3))) / 8 if paired else np.full((12, 3), 0.1)
    h1 = h0 + np.array([0.0, 0.5, 0.0])
    h1[:, 2] += rng.normal(size=12)
    table = node_test(h0, h1, pairs=np.arange(12) if paired else None, correction=correction, n_permutations=99)
    assert table.loc[0, ["effect", "t", "p_value", "p_adjusted", "sign"]].tolist() == [0, 0, 1, 1, 0]
    assert table.loc[1, "t"] == np.inf
    assert table.loc[1, "p_value"] == 0
    assert table.loc[1, "p_adjusted"] <= 0.02
    assert table.loc[1, "sign"] == 1
    assert np.isfinite(table.loc[2, "t"])


def test_narrow_types_and_row_order(data):
    h0, h1 = (side.astype(np.float16) for side in data)
    one, two = np.random.default_rng(6).permutation(20), np.random.default_rng(7).permutation(20)
    plain = node_test(h0, h1, pairs=np.arange(20), n_permutations=50)
    wide = node_test(h0[one].astype(float), h1[two].astype(float), pairs=np.concatenate([one, two]), n_permutations=50)
    np.testing.assert_allclose(plain["t"], wide["t"], rtol=1e-9)
    np.testing.assert_allclose(plain["p_adjusted"], wide["p_adjusted"])


@pytest.mark.parametrize(
    ("n", "options", "message"),
    [
        (1, {}, "h0 has 1 records; at least 2"),
        (4, {"correction": "holm"}, "correction is 'holm'"),
        (4, {"pairs": [0, 1, 2]}, "pairs has shape"),
    ],
)
def test_bad_input_is_named(n, options, message, unchecked):
    with pytest.raises(ValueError, match=message):
        node_test(np.ones((n, 3)), np.ones((n, 3)), **options)
