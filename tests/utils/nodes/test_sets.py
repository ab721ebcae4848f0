from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import false_discovery_control, hypergeom

from deepscan import ScanRuns, detect
from deepscan.runs import make_runs
from utils.nodes.sets import (
    compare_sets,
    membership,
    node_frequencies,
    node_p_values,
    node_profiles,
    node_sets,
    null_set_size,
    null_sets,
    overlap,
    top_nodes,
)

N_NODES = 12


def build_runs(frequency, *, signs=None, permuted=None, n_runs=10, n_nodes=None):
    """Runs that select node j in the first ``frequency[j]`` of ``n_runs`` runs.

    ``signs`` are of the nodes; ``permuted`` holds one row of such counts a permutation.
    """
    n_nodes = len(frequency) if n_nodes is None else n_nodes
    signs = np.ones(len(frequency), int) if signs is None else np.asarray(signs)
    rows, nodes, sides = [], [], []
    for permutation, counts in enumerate([frequency, *([] if permuted is None else permuted)], start=-1):
        for run in range(n_runs):
            kind = "mixed" if permutation < 0 else "null"
            chosen = np.flatnonzero(np.asarray(counts) > run)
            rows.append({"run": run, "kind": kind, "permutation": permutation, "score": 1.0, "alpha": 0.1})
            nodes.append(chosen)
            sides.append(signs[chosen])
    config = {"n_nodes": n_nodes, "n_permutations": 0 if permuted is None else len(permuted)}
    return make_runs(rows, nodes, [np.arange(2)] * len(rows), sides, config=config, p_value=0.05)


def as_sets(**nodes):
    """Node sets from signed node numbers: -3 is node 3 below the background."""
    return {name: frozenset((abs(node), int(np.sign(node))) for node in held) for name, held in nodes.items()}


@pytest.mark.parametrize(
    ("threshold", "expected"), [(0.1, {1, 2, 3, 4}), (0.5, {2, 3, 4}), (0.51, {3, 4}), (0.9, {3, 4}), (1.0, {4})]
)
def test_node_sets_take_the_nodes_from_the_threshold_on(threshold, expected):
    runs = build_runs([0, 1, 5, 9, 10, 0])
    assert node_sets({"a": runs}, threshold=threshold) == {"a": frozenset((node, 1) for node in expected)}


def test_node_sets_carry_the_side():
    sets = node_sets({"a": build_runs([10, 10, 10, 0], signs=[1, -1, 0, 1])})
    assert sets["a"] == {(0, 1), (1, -1)}  # a node without a side is in no set


def test_node_sets_leave_out_nodes_that_flipped_sides_select_as_often():
    """Node 0 is always selected, also under flips; node 1 only with the true sides; node 2 in one of 19 permutations."""
    permuted = [[10, 4, 0, 0]] * 18 + [[10, 4, 8, 0]]
    runs = build_runs([10, 8, 8, 0], permuted=permuted)
    np.testing.assert_allclose(node_p_values(runs), [1, 1 / 20, 2 / 20, 1])
    assert node_sets({"a": runs})["a"] == {(1, 1)}
    assert node_sets({"a": runs}, level=0.1)["a"] == {(1, 1), (2, 1)}
    assert node_sets({"a": runs}, level=None)["a"] == {(0, 1), (1, 1), (2, 1)}


@pytest.mark.parametrize("threshold", [0.0, -0.1, 1.01])
def test_node_sets_refuse_a_threshold_that_is_no_share(threshold):
    with pytest.raises(ValueError, match="threshold must be in"):
        node_sets({"a": build_runs([1])}, threshold=threshold)


def test_p_values_by_brute_force():
    rng = np.random.default_rng(0)
    frequency, permuted = rng.integers(0, 11, N_NODES), rng.integers(0, 11, (29, N_NODES))
    p_values = node_p_values(build_runs(frequency, permuted=permuted))
    for node in range(N_NODES):
        as_often = sum(counts[node] >= frequency[node] for counts in permuted)
        assert p_values[node] == pytest.approx((1 + as_often) / 30)


def test_null_set_size_by_brute_force():
    """Each permutation changes places with the truth: the same number of others, and the same smallest p-value."""
    rng = np.random.default_rng(1)
    permuted = rng.integers(0, 11, (19, N_NODES))
    permuted[3] = 10
    frequency = rng.integers(0, 11, N_NODES)
    runs = build_runs(frequency, permuted=permuted)
    for level in (0.05, 0.2, None):
        sizes = []
        for k in range(19):
            others = np.vstack([np.delete(permuted, k, axis=0), frequency])
            p_values = node_p_values(build_runs(permuted[k], permuted=others))
            sizes.append(((permuted[k] >= 5) & (True if level is None else p_values <= level)).sum())
        assert null_set_size(runs, level=level) == pytest.approx(np.mean(sizes))
        assert 0 < np.mean(sizes) < N_NODES


@pytest.mark.parametrize("level", [0.05, 0.2, None])
def test_null_sets_are_the_node_sets_of_each_permutation_in_the_place_of_the_truth(level):
    rng = np.random.default_rng(2)
    permuted, signs = rng.integers(0, 11, (19, N_NODES)), rng.choice([-1, 1], N_NODES)
    frequency = rng.integers(0, 11, N_NODES)
    found = null_sets(build_runs(frequency, signs=signs, permuted=permuted), level=level)
    for k in range(19):
        swapped = np.vstack([permuted[:k], frequency, permuted[k + 1 :]])
        assert found[k] == node_sets({"a": build_runs(permuted[k], signs=signs, permuted=swapped)}, level=level)["a"]
    assert any(found)


@pytest.mark.parametrize("n_permutations", [19, 39])
def test_null_set_size_is_what_data_without_effect_give(n_permutations):
    """Mean size of the observed node set over experiments without effect, against what their own flips predict."""
    rng = np.random.default_rng(0)
    found, expected = [], []
    for experiment in range(60):
        shared = rng.normal(size=(16, 20))
        h0, h1 = shared + rng.normal(size=(2, 16, 20))
        options = {"n_clean": 4, "n_anomalous": 4, "n_runs": 4, "alphas": 8, "n_permutations": n_permutations}
        runs = detect(h0, h1, pairs=np.arange(16), rng=experiment, **options)
        found.append(len(node_sets({"a": runs})["a"]))
        expected.append(null_set_size(runs))
    error = np.std(found, ddof=1) / np.sqrt(len(found))
    assert np.mean(expected) > 0.1
    assert abs(np.mean(found) - np.mean(expected)) < 3.5 * error


def test_planted_nodes_are_found_with_their_sides():
    rng = np.random.default_rng(2)
    h0, h1 = rng.normal(size=(2, 40, 30))
    h1[:, [3, 8]] += 4
    h1[:, [20, 21]] -= 4
    runs = detect(h0, h1, n_clean=8, n_anomalous=8, n_runs=10, n_permutations=19, rng=0)
    assert node_sets({"a": runs})["a"] >= {(3, 1), (8, 1), (20, -1), (21, -1)}
    assert len(node_sets({"a": runs})["a"]) < 8


def test_frequencies_list_the_nodes_that_were_selected():
    permuted = [[0, 10, 2, 0], [0, 0, 4, 6]]
    runs = {
        "a": build_runs([0, 5, 10, 0], signs=[1, -1, 1, 1], permuted=permuted),
        "b": build_runs([1, 0, 0, 0]),
    }
    table = node_frequencies(runs).set_index(["persona", "node"])
    assert table.index.to_list() == [("a", 1), ("a", 2), ("b", 0)]
    assert table["sign"].to_list() == [-1, 1, 1]
    np.testing.assert_allclose(table["frequency"], [0.5, 1.0, 0.1])
    np.testing.assert_allclose(table["null_frequency"], [0.5, 0.3, np.nan])
    np.testing.assert_allclose(table["p_value"], [2 / 3, 1 / 3, np.nan])


def test_frequencies_where_nothing_was_selected():
    table = node_frequencies({"a": build_runs([0, 0])})
    assert list(table) == ["persona", "node", "sign", "frequency", "null_frequency", "p_value", "q_value"]
    assert table.empty


def test_profiles_by_hand():
    permuted = [[10, 0, 2, 0], [0, 4, 0, 6]]
    table = node_profiles({"a": build_runs([0, 5, 10, 3], permuted=permuted), "b": build_runs([1, 7, 0, 0])})
    own = table[table["persona"] == "a"]
    assert own["rank"].to_list() == [1, 2, 3, 4]
    np.testing.assert_allclose(own["frequency"], [1.0, 0.5, 0.3, 0.0])
    ranked = np.array([[1.0, 0.2, 0, 0], [0.6, 0.4, 0, 0]])
    for column, share in (("null_low", 0.05), ("null_high", 0.95)):
        np.testing.assert_allclose(own[column], ranked.min(0) + share * np.ptp(ranked, axis=0))
    other = table[table["persona"] == "b"]
    np.testing.assert_allclose(other["frequency"], [0.7, 0.1, 0, 0])
    assert other[["null_low", "null_high"]].isna().all(axis=None)


@pytest.mark.parametrize("size", [0, 1, 3, 4, 99])
def test_top_nodes_by_brute_force(size):
    strength, sign = np.array([0.2, np.inf, 0.0, 0.7, 0.7]), np.array([1, -1, 1, 1, -1])
    ranked = [(1, -1), (3, 1), (4, -1), (0, 1)]
    assert top_nodes(strength, sign, size) == set(ranked[:size])


def test_compare_sets_is_the_row_of_an_overlap():
    sets = as_sets(a=[1, 2, -5], b=[2, 5, 7, 8])
    row = overlap(sets).iloc[0].drop(["a", "b"])
    assert compare_sets(**sets) == row.to_dict()


def test_membership_is_one_row_a_node_and_side():
    table = membership(as_sets(a=[1, -2], b=[1, 2], c=[]))
    assert table.index.to_list() == [(1, 1), (2, -1), (2, 1)]
    assert table.index.names == ["node", "sign"]
    assert table["a"].to_list() == [True, True, False]
    assert table["b"].to_list() == [True, False, True]
    assert not table["c"].any()
    assert table.dtypes.eq(bool).all()


@pytest.mark.parametrize("sets", [as_sets(a=[], b=[]), {}])
def test_membership_of_empty_sets(sets):
    table = membership(sets)
    assert table.shape == (0, len(sets))
    assert list(table) == list(sets)


def test_overlap_by_hand():
    sets = as_sets(a=[1, 2, 3, 4], b=[3, 4, -2, 9, 10], c=[-1])
    table = overlap(sets).set_index(["a", "b"])
    assert table.index.to_list() == [("a", "b"), ("a", "c"), ("b", "c")]
    ab, ac = table.loc[("a", "b")], table.loc[("a", "c")]
    assert (ab["size_a"], ab["size_b"], ab["shared"], ab["opposite"]) == (4, 5, 2, 1)
    assert ab["jaccard"] == pytest.approx(2 / 7)
    assert ab["overlap_coefficient"] == pytest.approx(2 / 4)
    # Moved in opposite directions: not shared.
    assert (ac["shared"], ac["opposite"], ac["jaccard"]) == (0, 1, 0)
    assert "p_value" not in table


def test_overlap_does_not_count_undecided_nodes_as_opposite():
    sets = {"a": frozenset({(1, 0), (2, 1)}), "b": frozenset({(1, 0), (2, 0)})}
    row = overlap(sets).iloc[0]
    assert (row["shared"], row["opposite"]) == (1, 0)


@pytest.mark.parametrize("empty", ["b", "both"])
def test_overlap_of_empty_sets(empty):
    permuted = [[1, 0, 3, 0]] * 5
    full, nothing = build_runs([9, 9, 0, 0], permuted=permuted), build_runs([1, 1, 0, 0], permuted=permuted)
    runs = {"a": nothing if empty == "both" else full, "b": nothing}
    row = overlap(node_sets(runs, level=None), runs).iloc[0]
    assert row["size_b"] == 0
    assert np.isnan(row["overlap_coefficient"])
    assert row["p_value"] == 1
    assert row["p_adjusted"] == 1


def test_overlap_of_one_or_no_persona_is_an_empty_table():
    assert overlap(as_sets(a=[1])).empty
    assert overlap({}, {}).empty


def random_runs(rng, n_permutations=19):
    """Runs of three personas with random frequencies and signs."""
    return {
        name: build_runs(
            rng.integers(0, 11, N_NODES),
            signs=rng.choice([-1, 1], N_NODES),
            permuted=rng.integers(0, 11, (n_permutations, N_NODES)),
        )
        for name in "abc"
    }


@pytest.mark.parametrize("seed", range(4))
def test_overlap_p_values_by_brute_force(seed):
    runs = random_runs(np.random.default_rng(seed))
    sets = node_sets(runs, level=None)
    table = overlap(sets, runs, level=None).set_index(["a", "b"])
    for a, b in combinations("abc", 2):
        indices = []
        for k in range(19):
            taken = []
            for name in (a, b):  # by the rule of the sets: at least half of the runs
                counts, signs = runs[name].permuted_frequency()[k], runs[name].permuted_sign()[k]
                taken.append({(node, signs[node]) for node in range(N_NODES) if counts[node] >= 0.5 and signs[node]})
            indices.append(len(taken[0] & taken[1]) / len(taken[0] | taken[1]))
        row = table.loc[(a, b)]
        assert row["p_value"] == pytest.approx((1 + sum(np.array(indices) >= row["jaccard"])) / 20)
        assert row["expected_jaccard"] == pytest.approx(np.mean(indices))
        # The expected overlap of random draws from nodes with either side.
        assert row["hypergeometric"] == pytest.approx(hypergeom(2 * N_NODES, len(sets[a]), len(sets[b])).mean())
    np.testing.assert_allclose(table["p_adjusted"], false_discovery_control(table["p_value"], method="bh"))
    assert table["p_value"].nunique() > 1


def test_flips_that_select_too_few_nodes_are_not_filled_up_with_nodes_in_common():
    """Under flips a selects node 10 alone and b node 11: their sets share nothing, however large the sets are."""
    top = [10] * 4 + [0] * 20
    alone = np.eye(24, dtype=int) * 10
    runs = {name: build_runs(top, permuted=[alone[node]] * 19) for name, node in (("a", 10), ("b", 11))}
    row = overlap(node_sets(runs, level=None), runs, level=None).iloc[0]
    assert (row["size_a"], row["expected_jaccard"], row["p_value"]) == (4, 0, 0.05)


def test_overlap_of_sets_that_share_more_than_flips_do():
    """a and b are alike and their flips are not; c shares nothing."""
    rng = np.random.default_rng(0)
    top = [10] * 4 + [0] * 20
    flips = [[rng.permutation(top) for _ in range(19)] for _ in range(3)]
    runs = {name: build_runs(top, permuted=flip) for name, flip in zip("ab", flips, strict=False)}
    runs["c"] = build_runs(top[::-1], permuted=flips[2])
    table = overlap(node_sets(runs, level=None), runs).set_index(["a", "b"])
    assert table.loc[("a", "b"), ["jaccard", "p_value"]].to_list() == [1.0, 0.05]
    assert table.loc[("a", "c"), "p_value"] == 1


def test_nothing_is_changed_by_reading_and_writing(tmp_path):
    runs = random_runs(np.random.default_rng(7))
    for name, each in runs.items():
        each.save(tmp_path / f"{name}.parquet")
    back = {name: ScanRuns.load(tmp_path / f"{name}.parquet") for name in runs}
    pd.testing.assert_frame_equal(node_frequencies(back), node_frequencies(runs), check_exact=True)
    assert node_sets(back) == node_sets(runs)
