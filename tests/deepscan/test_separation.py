from itertools import product

import numpy as np
import pytest
from scipy.stats import binom

from deepscan import separation_test
from deepscan.relabellings import read_layers, relabel, standardise
from deepscan.separation import smoother_root


def correlated(rng, n, p, *, factors=3):
    return rng.normal(size=(n, factors)) @ rng.normal(size=(factors, p)) + rng.normal(size=(n, p))


def quadratic_form(z, y, ridge):
    """Q as it is defined, entry by entry."""
    n, p = z.shape
    k = n / p * z @ z.T
    h = k @ np.linalg.inv(k + ridge * np.eye(n))
    return sum(h[i, j] * y[i] * y[j] for i in range(n) for j in range(n) if i != j)


@pytest.mark.parametrize(("n", "p"), [(2, 5), (5, 3), (8, 30), (10, 10)])
def test_p_value_over_all_flips_by_brute_force(n, p):
    rng = np.random.default_rng(n)
    h0, h1 = correlated(rng, n, p), correlated(rng, n, p) + 0.3
    found = separation_test(h0, h1, pairs=np.arange(n), ridge=0.7, n_permutations=4000)
    d = h1 - h0
    z = d / np.sqrt((d**2).sum(axis=0))
    values = np.array([quadratic_form(z, np.array(e), 0.7) for e in product([1, -1], repeat=n)])
    assert found.statistic == pytest.approx(values[0], rel=1e-9, abs=1e-9)
    gap = np.abs(found.null[:, None] - values[None, :]).min(axis=1)
    assert gap.max() < 1e-9
    exact = np.mean(values >= values[0] - 1e-9)
    assert abs(found.p_value - exact) < 5 * np.sqrt(exact * (1 - exact) / 4000) + 1 / 4000


def test_flips_that_tie_count_as_reaching():
    """Of two pairs every labelling is the observed one or its mirror image, or one of the other two."""
    rng = np.random.default_rng(0)
    h0 = rng.normal(size=(2, 7))
    one = separation_test(h0, h0 + 1 + 0.01 * rng.normal(size=(2, 7)), pairs=[0, 1], n_permutations=2000)
    assert abs(one.p_value - 0.5) < 0.06
    other = separation_test(h0, h0 + [[1], [-1]] * np.ones((2, 7)), pairs=[0, 1], n_permutations=2000)
    assert other.p_value == 1.0


@pytest.mark.parametrize(("n", "p"), [(12, 30), (30, 12)])
def test_left_out_predictions_are_those_of_a_refit_without_the_pair(n, p):
    rng = np.random.default_rng(p)
    h0, h1 = correlated(rng, n, p), correlated(rng, n, p) + 0.2
    names = rng.permutation(n)
    found = separation_test(h0, h1, pairs=names, ridge=2.5, n_permutations=0)
    d = h1 - h0
    x = np.sqrt(n / p) * d / np.sqrt((d**2).sum(axis=0))
    for i in range(n):
        rest = np.delete(np.arange(n), i)
        weights = np.linalg.solve(x[rest].T @ x[rest] + 2.5 * np.eye(p), x[rest].sum(axis=0))
        assert found.predictions[i] == pytest.approx(x[i] @ weights, abs=1e-9)
    assert found.accuracy == np.mean(found.predictions > 0)


@pytest.mark.parametrize(("n0", "n1", "p"), [(9, 14, 40), (30, 20, 11)])
def test_left_out_predictions_of_single_records_are_those_of_a_refit(n0, n1, p):
    rng = np.random.default_rng(p)
    h0, h1 = correlated(rng, n0, p), correlated(rng, n1, p) + 0.4
    found = separation_test(h0, h1, n_permutations=0)
    values, labels = np.concatenate([h0, h1]), np.repeat([-1.0, 1.0], [n0, n1])
    n = n0 + n1
    z = values - values.mean(axis=0)
    x = np.sqrt(n / p) * z / np.sqrt((z**2).sum(axis=0))
    for i in range(n):
        rest = np.delete(np.arange(n), i)
        y = labels[rest] - labels[rest].mean()
        weights = np.linalg.solve(x[rest].T @ x[rest] + np.eye(p), x[rest].T @ y)
        # Centring on all labels, less one: the mean of the others is theirs in every row, and rows of z sum to 0.
        assert found.predictions[i] == pytest.approx(x[i] @ weights, abs=1e-9)
    recalls = np.mean(found.predictions[:n0] < 0), np.mean(found.predictions[n0:] > 0)
    assert found.accuracy == pytest.approx(np.mean(recalls))


def test_permuted_values_of_single_records_are_the_form_of_their_labels():
    rng = np.random.default_rng(0)
    h0, h1 = correlated(rng, 6, 9), correlated(rng, 8, 9)
    found = separation_test(h0, h1, n_permutations=20, rng=3)
    sides, _ = read_layers(h0, h1, smallest=1)
    relabellings = relabel(sides, None, 20, 3)
    z = standardise(h0, h1, relabellings.labels)
    for k in range(21):
        y = relabellings.signs[:, k] - relabellings.signs[:, k].mean()
        expected = quadratic_form(z, y, 1.0)
        assert (found.statistic if k == 0 else found.null[k - 1]) == pytest.approx(expected, rel=1e-9)


def test_both_forms_of_the_smoother_are_the_smoother():
    rng = np.random.default_rng(0)
    for n, p in ((7, 20), (20, 7)):
        z = rng.normal(size=(n, p))
        root = smoother_root(z, 0.3)
        k = n / p * z @ z.T
        np.testing.assert_allclose(root.T @ root, k @ np.linalg.inv(k + 0.3 * np.eye(n)), atol=1e-10)


@pytest.mark.parametrize("paired", [True, False])
def test_level_with_correlated_nodes(paired):
    rng = np.random.default_rng(7)
    loads = 2 * rng.normal(size=(3, 50))
    p_values = []
    for draw in range(250):
        topic = 2 * rng.normal(size=(20, 50)) if paired else 0.0
        h0, h1 = (topic + rng.normal(size=(20, 3)) @ loads + rng.normal(size=(20, 50)) for _ in range(2))
        options = {"pairs": np.arange(20)} if paired else {}
        p_values.append(separation_test(h0, h1, n_permutations=19, rng=draw, **options).p_value)
    low, high = binom.interval(0.999, 250, 0.05)
    assert low <= np.sum(np.array(p_values) <= 0.05) <= high
    assert abs(np.mean(p_values) - 0.525) < 4 * np.sqrt(1 / 12 / 250)


def test_level_over_layers_that_are_alike():
    rng = np.random.default_rng(8)
    joint, single = [], []
    for draw in range(200):
        base = rng.normal(size=(2, 16, 40))
        h0, h1 = (np.stack([side + 0.5 * rng.normal(size=side.shape) for _ in range(4)]) for side in base)
        found = separation_test(h0, h1, pairs=np.arange(16), n_permutations=19, rng=draw)
        joint.append(found.p_value)
        single.append(found.layer_p_value.min())
        assert found.layer_p_adjusted.min() == found.p_value
        assert (found.layer_p_adjusted >= found.p_value).all()
    low, high = binom.interval(0.999, 200, 0.05)
    assert low <= np.sum(np.array(joint) <= 0.05) <= high
    assert np.sum(np.array(single) <= 0.05) > high


@pytest.mark.parametrize("paired", [True, False])
def test_power_where_many_nodes_move_a_little(paired):
    rng = np.random.default_rng(9)
    reached = 0
    for draw in range(20):
        topic = rng.normal(size=(60, 200)) if paired else 0.0
        h0, h1 = (topic + correlated(rng, 60, 200) for _ in range(2))
        h1[:, :100] += 0.9
        found = separation_test(h0, h1, pairs=np.arange(60) if paired else None, n_permutations=99, rng=draw)
        reached += found.p_value <= 0.05
        assert found.accuracy > 0.5
    assert reached >= 18


@pytest.mark.parametrize("n", [20, 60])
@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("effect", [0.0, 0.4])
def test_interval_holds_the_expected_accuracy(paired, n, effect):
    rng = np.random.default_rng(10)
    accuracy, low, high = [], [], []
    for _ in range(200):
        h0, h1 = rng.normal(size=(2, n, 60))
        h1[:, :15] += effect
        found = separation_test(h0, h1, pairs=np.arange(n) if paired else None, n_permutations=0)
        accuracy.append(found.accuracy)
        low.append(found.accuracy_interval[0])
        high.append(found.accuracy_interval[1])
    truth = np.mean(accuracy)
    if effect == 0:
        assert abs(truth - 0.5) < 0.03
    held = np.mean((np.array(low) <= truth) & (truth <= np.array(high)))
    assert held >= 0.91


@pytest.mark.parametrize("paired", [True, False])
def test_several_layers_are_the_single_ones_together(paired):
    rng = np.random.default_rng(11)
    h0, h1 = rng.normal(size=(2, 3, 18, 25)).astype(np.float32)
    options = {"pairs": np.arange(18) if paired else None, "n_permutations": 60, "rng": 4}
    found = separation_test(h0, h1, **options)
    listed = separation_test(list(h0), list(h1), n_jobs=2, **options)
    assert found.p_value == listed.p_value
    assert found.table.equals(listed.table)
    for k in range(3):
        single = separation_test(h0[k], h1[k], **options)
        assert single.p_value == single.layer_p_value == single.layer_p_adjusted == found.layer_p_value[k]
        np.testing.assert_allclose(found.null[k], single.null, rtol=1e-9)
        np.testing.assert_array_equal(found.accuracy_interval[k], single.accuracy_interval)
        np.testing.assert_allclose(found.predictions[k], single.predictions, rtol=1e-9)
    values = np.hstack([found.statistic[:, None], found.null])
    largest = ((values - values.mean(1, keepdims=True)) / values.std(1, keepdims=True)).max(axis=0)
    assert found.p_value == np.mean(largest >= largest[0])


def test_order_of_rows_and_scale_of_nodes_do_not_matter():
    rng = np.random.default_rng(12)
    h0, h1 = rng.normal(size=(2, 15, 30))
    one, two = rng.permutation(15), rng.permutation(15)
    plain = separation_test(h0, h1, pairs=np.arange(15))
    scale = np.exp(rng.normal(size=30))
    moved = separation_test(scale * h0[one], scale * h1[two], pairs=np.concatenate([one, two]))
    assert plain.p_value == moved.p_value
    np.testing.assert_allclose(moved.predictions, plain.predictions[one], rtol=1e-9)


@pytest.mark.parametrize("paired", [True, False])
def test_nodes_that_never_vary_tell_nothing(paired):
    h0 = np.full((6, 4), 0.1)
    found = separation_test(h0, h0.copy(), pairs=np.arange(6) if paired else None, n_permutations=19)
    assert (found.p_value, found.accuracy, found.statistic) == (1.0, 0.5, 0.0)
    assert not found.predictions.any()


def test_without_flips_there_is_no_evidence():
    found = separation_test(np.zeros((5, 2)), np.ones((5, 2)), pairs=np.arange(5), n_permutations=0)
    assert found.p_value == 1.0
    assert found.null.shape == (0,)
    assert found.accuracy == 1.0
    assert len(repr(found)) < 120


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_narrow_types_are_widened_before_anything_is_computed(dtype):
    rng = np.random.default_rng(13)
    h0, h1 = (100 + rng.normal(size=(2, 12, 20))).astype(dtype)
    narrow = separation_test(h0, h1, pairs=np.arange(12))
    wide = separation_test(h0.astype(np.float64), h1.astype(np.float64), pairs=np.arange(12))
    assert narrow.statistic == wide.statistic
    assert narrow.p_value == wide.p_value


@pytest.mark.parametrize(
    ("h0", "h1", "options", "message"),
    [
        (np.ones((5, 3)), np.ones((5, 4)), {}, "h1 has 4 nodes and h0 3"),
        (np.ones((2, 5, 3)), np.ones((3, 5, 3)), {}, "h0 has 2 layers and h1 3"),
        (np.ones((2, 5, 3)), np.ones((5, 3)), {}, "has an axis of layers"),
        ([np.ones((5, 3)), np.ones((4, 3))], [np.ones((5, 3))] * 2, {}, r"h0\[1\] has 4 records and h0\[0\] 5"),
        (np.full((5, 3), np.nan), np.ones((5, 3)), {}, "h0 holds NaN"),
        (np.ones((1, 3)), np.ones((1, 3)), {"pairs": [0]}, "at least 2 pairs"),
        (np.ones((0, 3)), np.ones((1, 3)), {}, "h0 has 0 records"),
        (np.ones((5, 3)), np.ones((5, 3)), {"pairs": np.zeros(5)}, "has 5 records in h0"),
        (np.ones((5, 3)), np.ones((5, 3)), {"ridge": 0.0}, "ridge is 0.0"),
        (np.ones((5, 3)), np.ones((5, 3)), {"ridge": np.nan}, "ridge is nan"),
        (np.ones((5, 3)), np.ones((5, 3)), {"n_permutations": -1}, "n_permutations is -1"),
        ([], [], {}, "h0 has 0 layers"),
    ],
)
def test_bad_input_is_named(h0, h1, options, message, unchecked):
    with pytest.raises(ValueError, match=message):
        separation_test(h0, h1, **options)
