import numpy as np
import pandas as pd
import pytest
from scipy.stats import false_discovery_control

from deepscan.runs import make_runs
from utils.nodes import stability
from utils.nodes.stability import node_stability
from utils.statements.contrasts import Contrast

FAST = {"n_splits": 2, "n_flips": 9, "n_runs": 5, "alphas": 10, "progress": False}


def make_contrasts(n=44, *, n1=None, paired=True, personas="a", seed=0):
    """Contrasts whose statements lie anywhere among all of them."""
    n1 = n if n1 is None else n1
    order = np.random.default_rng(seed).permutation(len(personas) * (n + n1)).reshape(len(personas), n + n1)
    return [Contrast(name, "t", rows[:n], rows[n:], paired) for name, rows in zip(personas, order, strict=True)]


def make_values(contrasts, *, d=30, effect=0.0, nodes=(3, 8, 20, 21), seed=0):
    """Activations with an effect on the first persona's H1: half of the nodes above, the others below."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(sum(len(each.rows) for each in contrasts), d))
    for node, side in zip(nodes, np.resize([1, -1], len(nodes)), strict=True):
        values[contrasts[0].h1, node] += side * effect
    return values


@pytest.mark.parametrize("method", ["scan", "mean-difference", "t-test", "probe"])
@pytest.mark.parametrize(("paired", "n1"), [(True, 44), (False, 30)])
def test_nodes_with_an_effect_are_found_in_both_halves(method, paired, n1):
    contrasts = make_contrasts(paired=paired, n1=n1)
    row = node_stability(make_values(contrasts, effect=6), contrasts, method=method, size=4, **FAST).iloc[0]
    assert (row["n_h0"], row["n_h1"]) == (22, n1 // 2)
    assert row[["jaccard", "low", "median", "high"]].to_list() == [1, 1, 1, 1]
    assert row["expected_jaccard"] < row["null_high"] < 0.8
    assert row["p_value"] == pytest.approx(1 / 10)


def test_the_same_nodes_on_other_sides_are_not_the_same():
    """The effect is turned round in half of the pairs: t-tests find nothing in common but chance."""
    contrasts = make_contrasts()
    values = make_values(contrasts)
    turned = np.where(np.arange(44) < 22, 1, -1)
    values[np.ix_(contrasts[0].h1, [3])] += 6 * turned[:, None]
    row = node_stability(values, contrasts, method="t-test", size=1, **FAST | {"n_splits": 20}).iloc[0]
    assert row["jaccard"] < 0.5


@pytest.mark.parametrize("method", ["scan", "mean-difference"])
@pytest.mark.parametrize("paired", [True, False])
def test_without_effect_p_values_are_uniform(method, paired):
    """Nodes share factors and have heavy tails, and splits share statements: what would betray a test of too easy a null."""
    rng = np.random.default_rng(0)
    contrasts = make_contrasts(40, paired=paired)
    p_values = []
    for experiment in range(40 if method == "scan" else 120):
        factors = rng.standard_t(3, size=(80, 3)) @ rng.normal(size=(3, 16))
        values = factors + rng.standard_t(3, size=(80, 16)) * rng.uniform(0.5, 3, 16)
        options = FAST | {"n_flips": 4, "n_runs": 3, "rng": experiment}
        p_values.append(node_stability(values, contrasts, method=method, size=3, **options)["p_value"][0])
    n = len(p_values)
    # Of five equal ranks the highest comes up in a fifth of the experiments, or less often where indices tie.
    reached = np.mean(np.array(p_values) < 0.21)
    assert reached < 0.2 + 3 * np.sqrt(0.16 / n)
    assert set(np.round(p_values, 3)) <= {0.2, 0.4, 0.6, 0.8, 1.0}


class Spy:
    """Stands in for the scan: keeps what it was given, selects all nodes equally often."""

    def __init__(self):
        self.calls = []

    def __call__(self, h0, h1, *, pairs, n_permutations, rng, **options):
        self.calls.append((h0[:, 0].astype(int), h1[:, 0].astype(int), pairs, options))
        assert n_permutations == 0
        chosen, d = np.arange(h0.shape[1]), h0.shape[1]
        rows = [{"run": 0, "kind": "mixed", "score": 1.0, "alpha": 0.1}]
        return make_runs(rows, [chosen], [np.arange(2)], [np.ones(d)], config={"n_nodes": d, "n_permutations": 0})


@pytest.fixture
def spy(monkeypatch):
    spy = Spy()
    monkeypatch.setattr(stability, "detect", spy)
    return spy


@pytest.mark.parametrize("n", [44, 45])
def test_halves_share_no_pair_and_flips_swap_whole_pairs(spy, n):
    contrasts = make_contrasts(n)
    values = np.zeros((2 * n, 30))
    values[contrasts[0].h0, 0] = np.arange(n)
    values[contrasts[0].h1, 0] = 1000 + np.arange(n)
    node_stability(values, contrasts, size=3, n_splits=3, n_flips=4, n_runs=2, progress=False)
    assert len(spy.calls) == 5 * 3 * 2
    by_labelling = [spy.calls[k : k + 6] for k in range(0, 30, 6)]
    for number, calls in enumerate(by_labelling):
        swapped = {}
        for split in range(3):
            halves = calls[2 * split : 2 * split + 2]
            for h0, h1, pairs, _ in halves:
                assert (h0 % 1000 == h1 % 1000).all()
                assert (np.abs(h1 - h0) == 1000).all()
                assert len(set(pairs.tolist())) == len(h0)
                for a in h0:
                    # One relabelling throughout: a pair is swapped in all splits or in none.
                    assert swapped.setdefault(a % 1000, a >= 1000) == (a >= 1000)
            first, second = (set((h0 % 1000).tolist()) for h0, *_ in halves)
            assert not first & second
            assert len(first | second) == n
            assert len(first) == n // 2
        share = np.mean(list(swapped.values()))
        assert share == 0 if number == 0 else 0.2 < share < 0.8
    # Splits differ from each other, and are the same under every relabelling.
    members = [[frozenset((h0 % 1000).tolist()) for h0, *_ in calls] for calls in by_labelling]
    assert all(each == members[0] for each in members)
    assert len(set(members[0])) == 6


def test_without_pairs_each_side_is_halved_and_labels_are_permuted(spy):
    contrasts = make_contrasts(40, n1=25, paired=False)
    values = np.zeros((65, 30))
    values[contrasts[0].h0, 0] = np.arange(40)
    values[contrasts[0].h1, 0] = 1000 + np.arange(25)
    node_stability(values, contrasts, size=3, n_splits=1, n_flips=3, n_runs=2, progress=False)
    for number, calls in enumerate([spy.calls[k : k + 2] for k in range(0, 8, 2)]):
        assert [(len(h0), len(h1), pairs) for h0, h1, pairs, _ in calls] == [(20, 12, None), (20, 13, None)]
        seen = np.concatenate([np.concatenate([h0, h1]) for h0, h1, *_ in calls])
        assert sorted(seen) == [*range(40), *range(1000, 1025)]
        on_h1 = np.concatenate([h1 for _, h1, *_ in calls])
        assert (on_h1 >= 1000).all() if number == 0 else (on_h1 < 1000).any()


@pytest.mark.parametrize(
    ("n", "options", "expected"),
    [(100, {}, (15, 15)), (60, {}, (10, 10)), (60, {"n_clean": 4, "n_anomalous": 7, "tail": "left"}, (4, 7))],
)
def test_samples_leave_a_background_in_a_half(spy, n, options, expected):
    contrasts = make_contrasts(n)
    node_stability(make_values(contrasts), contrasts, n_splits=1, n_flips=1, progress=False, **options)
    for *_, given in spy.calls:
        assert (given["n_clean"], given["n_anomalous"]) == expected
        assert given.get("tail") == options.get("tail")
        assert given["n_runs"] == 20


def test_ties_are_drawn(spy):
    """All nodes are selected equally often: the sets are random, not the low nodes in both halves."""
    contrasts = make_contrasts(60)
    row = node_stability(make_values(contrasts, d=50), contrasts, size=5, **FAST | {"n_splits": 40}).iloc[0]
    # Two random sets of 5 of 50 nodes: 0.5 shared on average, 0.055 of the union.
    assert 0.02 < row["jaccard"] < 0.1
    assert 0.03 < row["expected_jaccard"] < 0.08


def test_columns_and_correction_over_personas():
    contrasts = make_contrasts(personas="abc")
    table = node_stability(
        make_values(contrasts, effect=2), contrasts, method="t-test", size={"a": 4, "b": 3, "c": 0}, **FAST
    )
    assert table["persona"].to_list() == ["a", "b", "c"]
    assert table["size"].to_list() == [4, 3, 0]
    filled, empty = table.iloc[:2], table.iloc[2]
    assert (filled["low"] <= filled["jaccard"]).all()
    assert (filled["jaccard"] <= filled["high"]).all()
    assert empty[["jaccard", "low", "median", "high", "expected_jaccard", "null_high"]].isna().all()
    assert empty["p_value"] == 1
    np.testing.assert_allclose(table["p_adjusted"], false_discovery_control(table["p_value"]))
    own = pd.concat(
        [
            node_stability(make_values(contrasts, effect=2), [each], method="t-test", size=k, **FAST)
            for each, k in zip(contrasts, (4, 3, 0), strict=True)
        ],
        ignore_index=True,
    )
    pd.testing.assert_frame_equal(table.drop(columns="p_adjusted"), own.drop(columns="p_adjusted"))


def test_results_follow_the_seed_and_not_the_threads():
    contrasts = make_contrasts(personas="ab")
    values = make_values(contrasts, effect=1)
    first = node_stability(values, contrasts, rng=3, **FAST)
    pd.testing.assert_frame_equal(first, node_stability(values, contrasts, rng=3, n_jobs=2, **FAST))
    others = [node_stability(values, contrasts, rng=seed, **FAST) for seed in (4, 5)]
    assert any(not first.equals(other) for other in others)


def test_no_contrasts_are_an_empty_table():
    assert node_stability(np.zeros((4, 3)), [], progress=False).empty


@pytest.mark.parametrize(
    ("contrasts", "options", "message"),
    [
        (make_contrasts(39), {}, "a half of persona 'a' has 19 H0 and 19 H1 statements; 20 and 20 are needed"),
        (make_contrasts(29, n1=40, paired=False), {}, "has 14 H0 and 20 H1 statements; 15 and 5"),
        (make_contrasts(40, n1=9, paired=False), {}, "has 20 H0 and 4 H1"),
        (make_contrasts(), {"size": {"b": 3}}, "no size of the node set of 'a'"),
        (make_contrasts(), {"size": -1}, "is -1; expected 0 or more"),
        (make_contrasts(), {"n_splits": 0}, "n_splits must be at least 1"),
        (make_contrasts(), {"n_flips": 0}, "n_flips must be at least 1"),
        (make_contrasts(), {"method": "anova"}, "unknown method 'anova'"),
    ],
)
def test_errors_say_what_is_wrong(unchecked, contrasts, options, message):
    with pytest.raises(ValueError, match=message):
        node_stability(make_values(contrasts), contrasts, **FAST | options)


@pytest.mark.parametrize(("n", "n1", "paired"), [(40, 40, True), (30, 10, False)])
def test_the_smallest_halves_that_are_allowed_can_be_scanned(n, n1, paired):
    contrasts = make_contrasts(n, n1=n1, paired=paired)
    assert np.isfinite(node_stability(make_values(contrasts), contrasts, **FAST)["jaccard"]).all()
