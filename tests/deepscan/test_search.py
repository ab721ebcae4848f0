import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepscan import Background, ascent, candidates, counting, scan, scan_individual
from deepscan.scores import SCORES
from deepscan.thresholds import bin_pvalues, exact_alphas, given_alphas

GOLDEN = np.load(Path(__file__).parents[1] / "data" / "scan_golden.npz")
ENTRIES = [entry for entry in json.loads(GOLDEN["meta"].tobytes()) if "individual_row" not in entry]
NAMES = ("bj", "hc", "ks")


def subset_score(p, records, nodes, name, alphas):
    """Score of the cells of one subset at the best of the thresholds."""
    cells = p[np.ix_(records, nodes)]
    small = np.array([(cells <= alpha + 1e-12).sum() for alpha in alphas])
    return SCORES[name](small, np.full(small.shape, cells.size), np.asarray(alphas)).max(initial=0.0)


def oracle(p, name, alphas, *, record_sizes=None, node_sizes=None):
    """Best score over all subsets of records, each with its best nodes at every threshold."""
    n_records, n_nodes = p.shape
    member = (np.arange(1, 2**n_records)[:, None] >> np.arange(n_records)) & 1
    member = member[np.isin(member.sum(1), list(record_sizes or range(1, n_records + 1)))]
    sizes = np.arange(1, n_nodes + 1)
    wanted = np.isin(sizes, list(node_sizes)) if node_sizes else slice(None)
    best = 0.0
    for alpha in alphas:
        counts = np.sort(member @ (p <= alpha + 1e-12), axis=1)[:, ::-1]
        scores = SCORES[name](counts.cumsum(1), sizes * member.sum(1)[:, None], alpha)
        best = max(best, scores[:, wanted].max())
    return best


def planted(seed, n_records=10, n_nodes=20, *, levels=20):
    """Empirical-looking p-values with a block of small ones."""
    rng = np.random.default_rng(seed)
    p = rng.integers(1, levels + 1, size=(n_records, n_nodes)) / levels
    records = np.sort(rng.choice(n_records, rng.integers(3, 6), replace=False))
    nodes = np.sort(rng.choice(n_nodes, rng.integers(5, 9), replace=False))
    p[np.ix_(records, nodes)] = rng.integers(1, 4, size=(records.size, nodes.size)) / levels
    return p, records, nodes


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["key"])
def test_golden_results(entry):
    found = scan(
        GOLDEN[f"p{entry['case']}"],
        score=entry["score_function"],
        alpha_max=entry["alpha_max"],
        restarts=entry["restarts"],
    )
    assert found.score == pytest.approx(entry["score"], rel=1e-9)
    assert found.alpha == pytest.approx(entry["alpha"], rel=1e-12)
    np.testing.assert_array_equal(found.records, GOLDEN[f"{entry['key']}_rows"])
    np.testing.assert_array_equal(found.nodes, GOLDEN[f"{entry['key']}_nodes"])


def test_golden_file_is_whole():
    assert len(json.loads(GOLDEN["meta"].tobytes())) == 40


@pytest.mark.parametrize("name", NAMES)
def test_oracle_agrees_with_full_enumeration(name):
    """The oracle takes the best nodes by their counts; here all subsets of both axes are tried."""
    rng = np.random.default_rng(0)
    for _ in range(3):
        p = rng.integers(1, 7, size=(4, 5)) / 6
        alphas = exact_alphas(p, 0.5)
        full = max(
            subset_score(p, list(records), list(nodes), name, alphas)
            for r in range(1, 5)
            for records in combinations(range(4), r)
            for s in range(1, 6)
            for nodes in combinations(range(5), s)
        )
        assert oracle(p, name, alphas) == pytest.approx(full, rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_ascent_never_beats_the_oracle_and_reaches_it_with_restarts(name):
    reached = 0
    cases = 40
    for seed in range(cases):
        p, _, _ = planted(seed)
        best = oracle(p, name, exact_alphas(p, 0.5))
        found = scan(p, score=name, alphas="exact", restarts=10)
        assert found.score <= best * (1 + 1e-12)
        reached += found.score >= best * (1 - 1e-12)
    assert reached >= 0.95 * cases


def test_twelve_records_against_the_oracle():
    p, _, _ = planted(100, 12, 14, levels=10)
    best = oracle(p, "bj", exact_alphas(p, 0.5))
    assert scan(p, alphas="exact", restarts=20).score == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 10**6), alphas=st.sampled_from((7, 50, "exact")), restarts=st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_subset_cells_reproduce_the_score(name, seed, alphas, restarts):
    p, _, _ = planted(seed, 8, 30)
    grid = given_alphas(alphas, 0.5)
    grid = exact_alphas(p, 0.5) if grid is None else grid
    found = scan(p, score=name, alphas=alphas, restarts=restarts)
    assert found.score == pytest.approx(subset_score(p, found.records, found.nodes, name, [found.alpha]), rel=1e-12)
    assert found.score == pytest.approx(subset_score(p, found.records, found.nodes, name, grid), rel=1e-12)
    assert found.alpha in grid


@given(seed=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_permuting_records_or_nodes_permutes_the_answer(seed):
    rng = np.random.default_rng(seed)
    p = rng.uniform(size=(9, 25))
    p[:4, :8] *= 0.1
    rows, columns = rng.permutation(9), rng.permutation(25)
    plain, moved = scan(p), scan(p[np.ix_(rows, columns)])
    assert moved.score == pytest.approx(plain.score, rel=1e-12)
    assert moved.alpha == plain.alpha
    np.testing.assert_array_equal(np.sort(rows[moved.records]), plain.records)
    np.testing.assert_array_equal(np.sort(columns[moved.nodes]), plain.nodes)


@given(seed=st.integers(0, 10**6), name=st.sampled_from(NAMES))
@settings(max_examples=30, deadline=None)
def test_a_restart_never_lowers_the_score(seed, name):
    p = np.random.default_rng(seed).integers(1, 21, size=(12, 30)) / 20
    scores = [scan(p, score=name, restarts=restarts, rng=seed).score for restarts in range(1, 8)]
    assert (np.diff(scores) >= 0).all()


@pytest.mark.parametrize(("tail", "shift"), [("right", 2.5), ("left", -2.5), ("two-sided", 2.5), ("two-sided", -2.5)])
def test_planted_subsets_are_found_in_both_tails(tail, shift):
    rng = np.random.default_rng(7)
    h0, x = rng.normal(size=(100, 300)), rng.normal(size=(40, 300))
    x[:20, :30] += shift
    found = scan(Background(h0).pvalues(x, tail=tail))
    assert np.mean(found.records < 20) > 0.9
    assert np.isin(np.arange(20), found.records).mean() > 0.9
    assert np.isin(np.arange(30), found.nodes).mean() > 0.9
    if tail != "two-sided":
        other = scan(Background(h0).pvalues(x, tail={"right": "left", "left": "right"}[tail]))
        assert other.score < 0.7 * found.score


def test_monotone_transform_of_activations_changes_nothing():
    rng = np.random.default_rng(8)
    h0, x = rng.normal(size=(50, 80)), rng.normal(size=(20, 80))
    x[:8, :20] += 1
    plain = scan(Background(h0).pvalues(x, tail="two-sided"))
    bent = scan(Background(np.arctan(h0)).pvalues(np.arctan(x), tail="two-sided"))
    assert (plain.score, plain.alpha) == (bent.score, bent.alpha)
    np.testing.assert_array_equal(plain.nodes, bent.nodes)
    np.testing.assert_array_equal(plain.records, bent.records)


@pytest.mark.parametrize("bounds", [{"max_records": 3}, {"min_records": 5}, {"max_nodes": 4}, {"min_nodes": 12}])
@pytest.mark.parametrize("name", NAMES)
def test_size_bounds_against_the_oracle(bounds, name):
    reached = 0
    for seed in range(10):
        p, _, _ = planted(seed, 7, 14)
        grid = exact_alphas(p, 0.5)
        low, high = bounds.get("min_records", 1), bounds.get("max_records", 7)
        low_nodes, high_nodes = bounds.get("min_nodes", 1), bounds.get("max_nodes", 14)
        best = oracle(
            p, name, grid, record_sizes=range(low, high + 1), node_sizes=set(range(low_nodes, high_nodes + 1))
        )
        found = scan(p, score=name, alphas="exact", restarts=20, **bounds)
        assert low <= found.records.size <= high
        assert low_nodes <= found.nodes.size <= high_nodes
        assert found.score == pytest.approx(subset_score(p, found.records, found.nodes, name, grid), rel=1e-12)
        assert found.score <= best * (1 + 1e-12)
        reached += found.score >= best * (1 - 1e-9)
    assert reached >= 8


def test_fixed_sizes():
    p, _, _ = planted(3, 9, 20)
    found = scan(p, min_records=2, max_records=2, min_nodes=3, max_nodes=3, restarts=6)
    assert (found.records.size, found.nodes.size) == (2, 3)


def test_selected_records_share_a_group():
    p, _, _ = planted(5, 12, 20)
    groups = np.array(list("abcabcabcabc"))
    found = scan(p, groups=groups, restarts=5)
    assert len(set(groups[found.records])) == 1
    apart = {label: scan(p[groups == label], restarts=5) for label in "abc"}
    label = groups[found.records[0]]
    assert found.score == max(result.score for result in apart.values()) == apart[label].score
    np.testing.assert_array_equal(found.records, np.flatnonzero(groups == label)[apart[label].records])
    assert found.score <= scan(p, restarts=5).score


def test_one_record_is_the_individual_scan():
    p = np.random.default_rng(9).integers(1, 40, size=(1, 70)) / 40
    group, alone = scan(p, alphas="exact"), scan_individual(p)[0]
    assert group.score == pytest.approx(alone.score, rel=1e-12)
    assert group.alpha == alone.alpha
    np.testing.assert_array_equal(group.nodes, alone.nodes)


@pytest.mark.parametrize("levels", [30, 10**6])
@pytest.mark.parametrize("name", NAMES)
def test_the_sweep_is_the_count(monkeypatch, levels, name):
    p = np.random.default_rng(10).integers(1, levels + 1, size=(9, 40)) / levels
    bounds = {"min_nodes": 2, "max_nodes": 20, "max_records": 6}
    plain, bound = (scan(p, score=name, alphas="exact", restarts=4, **b) for b in ({}, bounds))
    monkeypatch.setattr(ascent, "MAX_COUNTED", 0)
    monkeypatch.setattr(ascent, "_ROOM", 64)
    for counted, options in ((plain, {}), (bound, bounds)):
        swept = scan(p, score=name, alphas="exact", restarts=4, **options)
        assert (swept.score, swept.alpha) == (counted.score, counted.alpha)
        np.testing.assert_array_equal(swept.records, counted.records)
        np.testing.assert_array_equal(swept.nodes, counted.nodes)


@pytest.mark.parametrize("n_records", [1, 2, 3, 7, 33, 64, 257])
@pytest.mark.parametrize("n_nodes", [1, 127, 1030])
def test_counts_of_nodes_by_either_way(n_records, n_nodes):
    rng = np.random.default_rng(11)
    bins = rng.integers(0, 12, size=(n_records, n_nodes)).astype(np.uint8)
    records = np.sort(rng.choice(n_records, (n_records + 1) // 2, replace=False))
    expected = np.zeros((11, records.size + 1), int)
    for a in range(11):
        counts = (bins[records] <= a).sum(0)
        expected[a] = np.bincount(counts, minlength=records.size + 1)
    for network in (counting.sorting_network(records.size), np.empty((0, 2), np.int64)):
        np.testing.assert_array_equal(counting.tally_nodes(bins, records, network, 11), expected)


@given(
    st.lists(st.floats(1e-6, 0.999), min_size=1, max_size=400, unique=True),
    st.integers(0, 10**6),
)
@settings(deadline=None, max_examples=60)
def test_bins_are_where_the_definition_puts_them(levels, seed):
    rng = np.random.default_rng(seed)
    alphas = np.unique(levels)
    p = np.concatenate([rng.uniform(size=40), rng.choice(alphas, 20), [0.0, 1.0]]).reshape(2, 31)
    expected = (p[..., None] > alphas + 1e-12).sum(-1)
    np.testing.assert_array_equal(bin_pvalues(p, alphas), expected)


@pytest.mark.parametrize("count", [1, 2, 50, 255, 256, 1000, 70_000])
@pytest.mark.parametrize("alpha_max", [0.5, 0.05, 1e-7])
def test_grid_bins_hold_their_own_thresholds(count, alpha_max):
    alphas = given_alphas(count, alpha_max)
    assert alphas is not None
    assert alphas[0] == pytest.approx(alpha_max / count)
    assert alphas[-1] == alpha_max
    if alpha_max / count > 1e-11:
        np.testing.assert_array_equal(bin_pvalues(alphas[None], alphas)[0], np.arange(count))
    assert (bin_pvalues(np.array([[0.0, 1.0]]), alphas) == [[0, count]]).all()


@pytest.mark.parametrize(
    ("first", "width", "count", "last"),
    [
        (1, 3, 42, 0.5),
        (1, 1, 125, 0.9),
        (7, 3, 30, 0.5),
        (2, 4, 20, 0.4),
        (1, 3, 0, 0.3),
        (5, 1, 1, 0.3),
        (1, 5, 2, 0.3),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bins_of_even_thresholds_and_a_last_one_apart(first, width, count, last, dtype):
    alphas = np.append((first + width * np.arange(count)) / 251, last)
    rng = np.random.default_rng(13)
    p = np.concatenate([np.arange(252) / 251, rng.uniform(size=1500), alphas])[None].astype(dtype)
    np.testing.assert_array_equal(bin_pvalues(p, alphas)[0], (p[0, :, None] > alphas + 1e-12).sum(-1))


@pytest.mark.parametrize("count", [5, 50, 300, 5000])
def test_bins_of_thresholds_that_crowd_near_zero(count):
    alphas = np.unique(np.geomspace(1e-9, 0.5, count))
    rng = np.random.default_rng(14)
    p = np.concatenate([alphas, rng.uniform(size=700), rng.uniform(size=700) ** 8, [0.0, 1.0]])[None]
    np.testing.assert_array_equal(bin_pvalues(p, alphas)[0], (p[0, :, None] > alphas + 1e-12).sum(-1))


@pytest.mark.parametrize("n_records", [1, 2, 7, 50, 300])
def test_counts_of_records_are_sorted_by_either_way(n_records):
    counts = np.random.default_rng(15).integers(0, 40, size=(n_records, 9)).astype(np.int32)
    for network in (counting.record_network(n_records), np.empty((0, 2), np.int64)):
        np.testing.assert_array_equal(candidates.sort_columns(counts, network), np.sort(counts, axis=0))


@pytest.mark.parametrize(("n_records", "n_nodes", "axis"), [(6, 40, "records"), (40, 6, "nodes"), (1, 1, "records")])
def test_random_starts_are_subsets_of_the_shorter_axis(n_records, n_nodes, axis):
    starts = ascent.draw_starts(n_records, n_nodes, 402, np.random.default_rng(16))
    assert [(start.axis, start.indices.size) for start in starts[:2]] == [("records", n_records), ("nodes", n_nodes)]
    assert {start.axis for start in starts[2:]} == {axis}
    fewer = min(n_records, n_nodes)
    logarithmic = 200 * np.log1p(1 / np.arange(1, fewer + 1)) / np.log(fewer + 1)
    for drawn, expected in ((starts[2::2], logarithmic), (starts[3::2], np.full(fewer, 200 / fewer))):
        sizes = np.bincount([start.indices.size for start in drawn], minlength=fewer + 1)
        assert sizes.size == fewer + 1
        np.testing.assert_allclose(sizes, [0, *expected], atol=4 * np.sqrt(expected.max()))
    for start in starts:
        assert (np.diff(start.indices) > 0).all()
        assert start.indices.max() < fewer or start in starts[:2]


def test_order_and_dtype_of_the_array_do_not_matter():
    p = (np.random.default_rng(12).integers(1, 65, size=(10, 50)) / 64).astype(np.float32)
    reference = scan(p.astype(np.float64))
    for same in (p, np.asfortranarray(p), np.repeat(p, 2, axis=1)[:, ::2]):
        found = scan(same)
        assert found.score == reference.score
        np.testing.assert_array_equal(found.nodes, reference.nodes)


def test_nothing_small_selects_nothing():
    for alphas in (50, "exact"):
        found = scan(np.full((3, 4), 0.9), alphas=alphas)
        assert found.score == 0
        assert np.isnan(found.alpha)
        assert found.records.size == found.nodes.size == 0


def test_zero_pvalues_are_finite_evidence():
    p = np.full((3, 4), 0.9)
    p[:2, :2] = 0.0
    found = scan(p, alphas="exact")
    assert np.isfinite(found.score)
    np.testing.assert_array_equal(found.records, [0, 1])
    np.testing.assert_array_equal(found.nodes, [0, 1])


P = np.full((3, 4), 0.1)


@pytest.mark.parametrize(
    ("p", "options", "message"),
    [
        (np.zeros(3), {}, "p has shape"),
        (np.zeros((0, 3)), {}, "p has shape"),
        (np.array([[0.1, np.nan]]), {}, "p holds NaN"),
        (np.array([[0.1, np.nan]]), {"alphas": "exact"}, "p holds NaN"),
        (np.array([[0.1, np.inf]]), {}, "p holds values from 0.1 to inf"),
        (np.array([[-0.00001, 0.2]]), {}, "p holds values from -1e-05"),
        (np.array([[-0.1, 0.2]]), {"alphas": [0.1, 0.11, 0.3]}, "p holds values from -0.1"),
        (np.array([[-1e300, np.nan]]), {"alphas": [0.1, 0.11, 0.3]}, "p holds NaN"),
        (np.array([[0.1, 1.2]]), {"alphas": 300}, "p holds values from 0.1 to 1.2"),
        (np.array([[0.1, 1.2]]), {"alphas": [0.2, 0.20001, 0.3]}, "p holds values from 0.1 to 1.2"),
        (P, {"alpha_max": 0.0}, "alpha_max is 0.0"),
        (P, {"alpha_max": 1.0}, "alpha_max is 1.0"),
        (P, {"alphas": [0.0, 0.2]}, "alphas must hold"),
        (P, {"alphas": [0.2, 1.0]}, "alphas must hold"),
        (P, {"alphas": []}, "alphas must hold"),
        (P, {"alphas": [0.6]}, "alphas holds 0.6, above alpha_max"),
        (P, {"alphas": 0}, "alphas is 0"),
        (P, {"alphas": "all"}, "alphas is 'all'"),
        (P, {"restarts": 0}, "restarts is 0"),
        (P, {"min_records": 4}, "min_records is 4, but at most 3"),
        (P, {"min_nodes": 3, "max_nodes": 2}, "min_nodes is 3, but at most 2"),
        (P, {"max_records": 0}, "max_records is 0"),
        (P, {"groups": ["a", "b"]}, "groups has shape"),
        (P, {"groups": ["a", "b", "c"], "min_records": 2}, "min_records is 2, but no group"),
        (P, {"rng": -1}, "rng is -1"),
    ],
)
def test_bad_input_is_named(p, options, message, unchecked):
    with pytest.raises(ValueError, match=message):
        scan(p, **options)
