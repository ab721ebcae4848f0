import numpy as np
import pytest
from scipy.stats import binom

from deepscan import calibrated_scan, separation_test
from deepscan.calibrated import rank_from_top, top_sums
from deepscan.relabellings import read_layers, relabel


def naive(z, signs, n_sizes):
    """The definition with loops: T, tie breaker and best size of every labelling."""
    sizes = sorted({round(10 ** (np.log10(z.shape[1]) * k / max(1, n_sizes - 1))) for k in range(n_sizes)})
    c = {k: [sum(sorted(((z.T @ e) ** 2).tolist(), reverse=True)[:k]) for e in signs.T] for k in sizes}
    count = signs.shape[1]
    rank = {k: [sum(c[k][b] >= c[k][a] * (1 - 1e-9) for b in range(count)) for a in range(count)] for k in sizes}
    standard = {k: (np.array(c[k]) - np.mean(c[k])) / np.std(c[k]) for k in sizes}
    t = [min(rank[k][a] for k in sizes) for a in range(count)]
    tie = [max(standard[k][a] for k in sizes) for a in range(count)]
    size = min(sizes, key=lambda k: (rank[k][0], -standard[k][0]))
    return np.array(t), np.array(tie), size, sizes, rank


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_definition_with_loops(paired, seed):
    rng = np.random.default_rng(seed)
    h0, h1 = rng.normal(size=(2, 9, 17))
    h1[:, :3] += 0.8
    found = calibrated_scan(h0, h1, pairs=np.arange(9) if paired else None, n_sizes=6, n_permutations=49, rng=5)
    sides, _ = read_layers(h0, h1, smallest=1)
    signs = relabel(sides, np.arange(9) if paired else None, 49, 5).signs
    if paired:
        z = h1 - h0
    else:
        z = np.concatenate([h0, h1])
        z = z - z.mean(axis=0)
        signs = signs - signs.mean(axis=0)
    z = z / np.sqrt((z**2).sum(axis=0))
    t, tie, size, sizes, rank = naive(z, signs, 6)
    better = [(t[k], -tie[k]) <= (t[0], -tie[0] + 1e-9) for k in range(50)]
    assert found.p_value == pytest.approx(np.mean(better))
    assert found.statistic == t[0]
    np.testing.assert_array_equal(found.null, t[1:])
    assert found.sizes.tolist() == sizes
    np.testing.assert_allclose(found.size_p_value, [rank[k][0] / 50 for k in sizes])
    own = signs[:, 0] @ z
    assert found.size == size
    assert set(found.nodes.tolist()) == set(np.argsort(-np.abs(own))[:size].tolist())
    np.testing.assert_array_equal(found.signs, np.sign(own[found.nodes]))


def test_top_sums_are_sums_of_sorted_values():
    rng = np.random.default_rng(0)
    values = rng.random((5, 40))
    for sizes in ([1], [40], [1, 2, 3, 17, 40], [3, 39], [2, 20]):
        expected = np.cumsum(-np.sort(-values, axis=1), axis=1)[:, np.array(sizes) - 1].T
        np.testing.assert_allclose(top_sums(values.copy(), np.array(sizes)), expected)


def test_ties_in_ranks_count_against():
    values = np.array([[3.0, 1.0, 3.0, 2.0, 3.0 * (1 - 1e-14)]])
    assert rank_from_top(values).tolist() == [[3, 5, 3, 4, 3]]


@pytest.mark.parametrize("paired", [True, False])
def test_level_with_correlated_nodes(paired):
    rng = np.random.default_rng(1)
    loads = 2 * rng.normal(size=(3, 40))
    p_values = []
    for draw in range(250):
        topic = 2 * rng.normal(size=(16, 40)) if paired else 0.0
        h0, h1 = (topic + rng.normal(size=(16, 3)) @ loads + rng.normal(size=(16, 40)) for _ in range(2))
        options = {"pairs": np.arange(16)} if paired else {}
        p_values.append(calibrated_scan(h0, h1, n_permutations=19, n_sizes=8, rng=draw, **options).p_value)
    low, high = binom.interval(0.999, 250, 0.05)
    assert low <= np.sum(np.array(p_values) <= 0.05) <= high
    assert abs(np.mean(p_values) - 0.525) < 4 * np.sqrt(1 / 12 / 250)


def test_level_over_layers_that_are_alike():
    rng = np.random.default_rng(2)
    p_values = []
    for draw in range(200):
        base = rng.normal(size=(2, 14, 30))
        h0, h1 = (np.stack([side + 0.5 * rng.normal(size=side.shape) for _ in range(3)]) for side in base)
        found = calibrated_scan(h0, h1, pairs=np.arange(14), n_permutations=19, n_sizes=6, rng=draw)
        p_values.append(found.p_value)
        assert found.layer_p_adjusted.min() >= found.p_value
        assert (found.layer_p_adjusted >= found.layer_p_value).all()
    low, high = binom.interval(0.999, 200, 0.05)
    assert low <= np.sum(np.array(p_values) <= 0.05) <= high


@pytest.mark.parametrize(("n_moved", "shift", "purity"), [(2, 1.2, 0.75), (60, 0.5, 0.6)])
@pytest.mark.parametrize("paired", [True, False])
def test_power_where_few_nodes_move_and_where_many_do(n_moved, shift, purity, paired):
    rng = np.random.default_rng(3)
    reached, precision = 0, []
    for draw in range(12):
        h0, h1 = rng.normal(size=(2, 50, 120))
        h1[:, :n_moved] += shift
        found = calibrated_scan(h0, h1, pairs=np.arange(50) if paired else None, n_permutations=99, rng=draw)
        reached += found.p_value <= 0.05
        precision.append(np.mean(found.nodes < n_moved))
        assert (found.signs[found.nodes < n_moved] == 1).mean() > 0.9
    assert reached >= 11
    assert np.mean(precision) > purity


def test_several_layers_are_the_single_ones_together():
    rng = np.random.default_rng(4)
    h0, h1 = rng.normal(size=(2, 3, 18, 25))
    h1[1, :, :4] += 1.5
    options = {"pairs": np.arange(18), "n_permutations": 60, "rng": 4}
    found = calibrated_scan(h0, h1, **options)
    jobs = calibrated_scan([*h0], [*h1], n_jobs=2, **options)
    assert found.table.equals(jobs.table)
    assert found.p_value == jobs.p_value
    assert found.layer_p_adjusted.argmin() == 1
    for k in range(3):
        single = calibrated_scan(h0[k], h1[k], **options)
        assert single.p_value == single.layer_p_value == single.layer_p_adjusted == found.layer_p_value[k]
        np.testing.assert_array_equal(single.nodes, found.nodes[k])
        np.testing.assert_array_equal(single.null, found.null[k])
    np.testing.assert_array_equal(found.table["size"], found.size)


def test_order_of_rows_does_not_matter_and_flips_are_shared():
    rng = np.random.default_rng(5)
    h0, h1 = rng.normal(size=(2, 15, 30))
    one, two = rng.permutation(15), rng.permutation(15)
    plain = calibrated_scan(h0, h1, pairs=np.arange(15))
    moved = calibrated_scan(h0[one], h1[two], pairs=np.concatenate([one, two]))
    assert plain.p_value == moved.p_value
    np.testing.assert_array_equal(plain.nodes, moved.nodes)
    # With all nodes in one sum the statistic is a quadratic form, as is that of the separation test with a huge ridge.
    whole = calibrated_scan(h0, h1, pairs=np.arange(15), n_sizes=1, n_permutations=0)
    assert whole.sizes.tolist() == [1]
    form = separation_test(h0, h1, pairs=np.arange(15), ridge=1e9)
    assert plain.size_p_value[-1] == pytest.approx(form.p_value)


@pytest.mark.parametrize("paired", [True, False])
def test_nodes_that_never_vary_are_never_chosen(paired):
    rng = np.random.default_rng(6)
    h0, h1 = rng.normal(size=(2, 8, 6))
    h0[:, 2:] = h1[:, 2:] = 0.1
    found = calibrated_scan(h0, h1, pairs=np.arange(8) if paired else None, n_permutations=19)
    assert set(found.nodes.tolist()) <= {0, 1}
    assert found.size == found.nodes.size
    assert (found.signs != 0).all()
    nothing = calibrated_scan(h0[:, 2:], h1[:, 2:], pairs=np.arange(8) if paired else None, n_permutations=19)
    assert (nothing.p_value, nothing.size) == (1.0, 0)


def test_ends_of_the_range():
    rng = np.random.default_rng(7)
    h0, h1 = rng.normal(size=(2, 2, 5))
    found = calibrated_scan(h0, h1, pairs=[0, 1], n_permutations=400)
    assert found.p_value >= 0.4
    assert calibrated_scan(h0, h1 + 9, n_permutations=0).p_value == 1.0
    one = calibrated_scan(h0[:, :1], h1[:, :1], n_permutations=9)
    assert one.sizes.tolist() == [1]
    assert len(repr(one)) < 100


def test_bad_input_is_named(unchecked):
    with pytest.raises(ValueError, match="n_sizes is 0"):
        calibrated_scan(np.ones((5, 3)), np.ones((5, 3)), n_sizes=0)
    with pytest.raises(ValueError, match="h1 has 4 nodes and h0 3"):
        calibrated_scan(np.ones((5, 3)), np.ones((5, 4)))
    with pytest.raises(ValueError, match="h1 holds NaN"):
        calibrated_scan(np.ones((5, 3)), np.full((5, 3), np.inf))
