from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from deepscan import detect
from utils.nodes.selectors import SELECTORS, compare_selectors, select_nodes
from utils.nodes.sets import node_sets
from utils.statements.contrasts import Contrast


def make_sides(seed, *, n0=30, n1=30, d=12, topic=0.0):
    """Two sides of which some nodes differ, by more and less; aligned rows share ``topic`` times a pair's own values."""
    rng = np.random.default_rng(seed)
    shared = topic * rng.normal(size=(max(n0, n1), d))
    h0, h1 = shared[:n0] + rng.normal(size=(n0, d)), shared[:n1] + rng.normal(size=(n1, d))
    h1 += np.where(rng.random(d) < 0.5, rng.normal(0, 1, d), 0)
    return h0 * rng.uniform(0.1, 10, d), h1 * rng.uniform(0.5, 2, d)


def benjamini_hochberg(p_values, level):
    """By definition: the largest k of which the k-th smallest p-value is at most k / m * level; the k smallest pass."""
    order, m = np.argsort(p_values), len(p_values)
    passed = [k for k in range(1, m + 1) if p_values[order[k - 1]] <= k / m * level]
    return set(order[: max(passed, default=0)].tolist())


def with_signs(nodes, h0, h1):
    return {(node, int(np.sign(h1[:, node].mean() - h0[:, node].mean()))) for node in nodes}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("level", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("paired", [True, False])
def test_t_test_nodes_are_those_of_scipy_node_by_node(seed, level, paired):
    h0, h1 = make_sides(seed, n1=30 if paired else 17, topic=1.0)
    test = (lambda a, b: stats.ttest_rel(b, a)) if paired else (lambda a, b: stats.ttest_ind(b, a, equal_var=False))
    p_values = np.array([test(h0[:, node], h1[:, node]).pvalue for node in range(12)])
    pairs = np.arange(30) if paired else None
    expected = benjamini_hochberg(p_values, level)
    assert select_nodes(h0, h1, method="t-test", pairs=pairs, level=level) == with_signs(expected, h0, h1)
    smallest = sorted(expected, key=p_values.__getitem__)[:3]
    assert select_nodes(h0, h1, method="t-test", pairs=pairs, level=level, n=3) == with_signs(smallest, h0, h1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n1", [30, 11])
def test_mean_difference_is_in_units_of_the_pooled_spread(seed, n1):
    h0, h1 = make_sides(seed, n1=n1)
    effect = []
    for a, b in zip(h0.T, h1.T, strict=True):
        pooled = (np.sum((a - a.mean()) ** 2) + np.sum((b - b.mean()) ** 2)) / (30 + n1 - 2)
        effect.append(abs(b.mean() - a.mean()) / np.sqrt(pooled))
    ranked = np.argsort(effect)[::-1].tolist()
    for n in (1, 4, 12):
        assert select_nodes(h0, h1, method="mean-difference", n=n) == with_signs(ranked[:n], h0, h1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("n1", "d"), [(30, 12), (20, 100)])
def test_probe_weights_are_those_of_a_probe_on_the_unrotated_nodes(seed, n1, d):
    h0, h1 = make_sides(seed, n1=n1, d=d)
    z = StandardScaler().fit_transform(np.concatenate([h0, h1])) / np.sqrt(d)
    probe = LogisticRegression(C=10.0, class_weight="balanced", solver="lbfgs", tol=1e-10, max_iter=10_000)
    weights = probe.fit(z, np.repeat([0, 1], [30, n1])).coef_[0]
    for n in (1, 5, d):
        ranked = np.argsort(-np.abs(weights))[:n]
        expected = {(int(node), int(np.sign(weights[node]))) for node in ranked}
        assert select_nodes(h0, h1, method="probe", n=n) == expected


@pytest.mark.parametrize("method", SELECTORS)
@pytest.mark.parametrize("paired", [True, False])
def test_planted_nodes_are_found_with_their_sides(method, paired):
    rng = np.random.default_rng(0)
    h0, h1 = rng.normal(size=(2, 60, 40))
    h1[:, [3, 8]] += 3
    h1[:, [20, 21]] -= 3
    pairs = np.arange(60) if paired else None
    assert select_nodes(h0, h1, method=method, n=4, pairs=pairs) == {(3, 1), (8, 1), (20, -1), (21, -1)}


def test_a_paired_test_sees_what_pairs_share():
    """The topic of a pair moves the node by 10, the side by 1."""
    rng = np.random.default_rng(1)
    h0 = 10 * rng.normal(size=(30, 1)) + rng.normal(size=(30, 6))
    h1 = h0 + 0.1 * rng.normal(size=(30, 6))
    h1[:, 2] += 1
    order = rng.permutation(30)
    assert select_nodes(h0, h1, method="t-test") == set()
    assert select_nodes(h0, h1, method="t-test", pairs=np.arange(30)) == {(2, 1)}
    labels = np.concatenate([np.arange(30), order])
    assert select_nodes(h0, h1[order], method="t-test", pairs=labels) == {(2, 1)}


@pytest.mark.parametrize("paired", [True, False])
def test_without_effect_the_t_test_seldom_selects_anything(paired):
    """With no effect at any node, Benjamini–Hochberg at 0.1 selects something in at most a tenth of the experiments."""
    rng = np.random.default_rng(2)
    pairs = np.arange(20) if paired else None
    found = [
        bool(select_nodes(*rng.normal(size=(2, 20, 15)), method="t-test", pairs=pairs, level=0.1)) for _ in range(300)
    ]
    # Independent nodes: exactly 0.1, with standard error 0.017.
    assert 0.04 < np.mean(found) < 0.16


@pytest.mark.parametrize("method", SELECTORS)
@pytest.mark.parametrize("n1", [20, 13])
def test_nodes_that_never_vary_are_never_selected(method, n1):
    h0, h1 = make_sides(0, n0=20, n1=n1)
    h0[:, [1, 4]] = h1[:, [1, 4]] = 0.1
    found = select_nodes(h0, h1, method=method, n=12, level=1.0)
    assert {node for node, _ in found} == {*range(12)} - {1, 4}


@pytest.mark.parametrize("method", ["mean-difference", "t-test"])
def test_a_node_that_differs_without_spread_comes_first(method):
    h0, h1 = make_sides(0)
    h0[:, 7], h1[:, 7] = 2.0, 1.0
    assert select_nodes(h0, h1, method=method, n=1, pairs=np.arange(30)) == {(7, -1)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "anova"}, "unknown method 'anova'"),
        ({"n": None}, "say with n"),
        ({"n": -1}, "at least 0"),
        ({"level": 0.0}, r"level must be in \(0, 1\]"),
        ({"h1": np.zeros((9, 3))}, "h1 has 3 nodes and h0 4"),
        ({"h1": np.zeros((1, 4))}, "h1 1 statements"),
        ({"pairs": np.array([0, 0, 1, 2, 3, 4, 5, 6, 7])}, "has 2 records in h0"),
    ],
)
def test_errors_say_what_is_wrong(unchecked, changes, message):
    options = {"h0": np.zeros((9, 4)), "h1": np.zeros((9, 4)), "method": "probe", "n": 2} | changes
    with pytest.raises(ValueError, match=message):
        select_nodes(options.pop("h0"), options.pop("h1"), **options)


SCAN = {"n_clean": 5, "n_anomalous": 5, "n_runs": 8, "n_permutations": 39, "alphas": 10}


def make_study(*, n=24, d=30, seed=0, effect=3.0, paired=True, rng=0):
    """Values of all statements, the contrasts, and the scans of a persona with an effect and of one without."""
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(4 * n, d)).astype(np.float32)
    order = generator.permutation(4 * n)
    contrasts = [Contrast(name, "t", *order[2 * n * k :][: 2 * n].reshape(2, n), paired) for k, name in enumerate("ab")]
    values[np.ix_(contrasts[0].h1, [2, 5])] += effect
    values[np.ix_(contrasts[0].h1, [11])] -= effect
    pairs = np.arange(n) if paired else None
    runs = {each.persona: detect(values[each.h0], values[each.h1], pairs=pairs, rng=rng, **SCAN) for each in contrasts}
    return values, contrasts, runs


@pytest.mark.parametrize("paired", [True, False])
def test_comparison_is_over_equally_large_sets(paired):
    values, contrasts, runs = make_study(paired=paired)
    table = compare_selectors(runs, values, contrasts, threshold=0.4, level=0.1, n_flips=5).set_index(
        ["persona", "method"]
    )
    assert table.index.to_list() == [(name, method) for name in "ab" for method in SELECTORS]
    for each in contrasts:
        scanned = node_sets(runs, threshold=0.4, level=0.1)[each.persona]
        h0, h1 = (values[side].astype(float) for side in (each.h0, each.h1))
        pairs = np.arange(24) if paired else None
        for method in SELECTORS:
            other = select_nodes(h0, h1, method=method, n=len(scanned), pairs=pairs, level=1.0)
            row = table.loc[(each.persona, method)]
            assert (row["size"], row["shared"]) == (len(scanned), len(scanned & other)) == (len(other), row["shared"])
            assert row["hypergeometric"] == pytest.approx(len(scanned) * len(other) / 60)
            assert row["n_significant"] == len(select_nodes(h0, h1, method="t-test", pairs=pairs, level=0.1))
            if scanned:
                assert row["jaccard"] == pytest.approx(len(scanned & other) / len(scanned | other))
                assert row["overlap_coefficient"] == pytest.approx(len(scanned & other) / len(scanned))
    strong = table.loc["a"]
    assert (strong["shared"] >= 3).all()
    assert (strong["same_sign"] > 0.5).all()
    assert (strong["jaccard"] > 2 * strong["expected_jaccard"]).all()


def test_scan_and_method_see_the_same_flips():
    """Both find the accidents of one relabelling; of two different ones they would share nothing but chance."""
    values, contrasts, runs = make_study(n=20, d=60, seed=3)
    others = {name: replace(each, config=each.config | {"seed": 123}) for name, each in runs.items()}
    options = {"threshold": 0.3, "level": 0.2, "n_flips": 39}
    same, different = (
        compare_selectors(each, values, contrasts, **options).query("method != 'probe'")["expected_jaccard"].to_numpy()
        for each in (runs, others)
    )
    assert (same > 2 * different).all()
    assert (same > 0.05).all()


def test_comparison_of_an_empty_set_and_without_permutations():
    values, contrasts, _ = make_study()
    pairs, options = np.arange(24), SCAN | {"n_permutations": 0}
    runs = {"b": detect(values[contrasts[1].h0], values[contrasts[1].h1], pairs=pairs, **options)}
    assert not node_sets(runs, threshold=1.0)["b"]
    table = compare_selectors(runs, values, contrasts, threshold=1.0)
    assert (table[["size", "shared", "hypergeometric"]] == 0).all(axis=None)
    assert table[["jaccard", "overlap_coefficient", "same_sign", "expected_jaccard"]].isna().all(axis=None)


def test_comparison_refuses_contrasts_that_were_not_scanned():
    values, contrasts, runs = make_study()
    with pytest.raises(ValueError, match="no contrast of 'b'"):
        compare_selectors(runs, values, contrasts[:1])
    smaller = [replace(each, h0=each.h0[1:], h1=each.h1[1:]) for each in contrasts]
    with pytest.raises(ValueError, match=r"'a' scanned \[24, 24\] .* has \[23, 23\]"):
        compare_selectors(runs, values, smaller)
