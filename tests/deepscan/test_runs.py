import numpy as np
import pytest

from deepscan import Background, run_scans, scan, scan_individual
from deepscan.runs import auroc

SMALL = {"n_clean": 6, "n_anomalous": 4, "n_runs": 12, "n_null_runs": 9, "alphas": 20}


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    h0, clean, anomalous = (rng.normal(size=(n, 60)) for n in (40, 30, 25))
    anomalous[:, :10] += 4
    anomalous[:, 10:15] -= 4
    return Background(h0), clean, anomalous


@pytest.fixture(scope="module")
def runs(data):
    return run_scans(*data, **SMALL, tail="two-sided", rng=3)


def same(one, other):
    assert one.table.equals(other.table)
    for name in ("nodes", "records", "signs"):
        for a, b in zip(getattr(one, name), getattr(other, name), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("scan_kind", ["group", "individual"])
def test_answer_does_not_depend_on_workers(data, scan_kind):
    one, two = (run_scans(*data, **SMALL, restarts=4, scan=scan_kind, rng=3, n_jobs=n) for n in (1, 2))
    same(one, two)
    assert one.config == two.config


def test_a_run_is_a_scan_of_its_sample(data):
    """All of both pools is the only sample there is, so the scan of a run can be repeated by hand."""
    bg, clean, anomalous = data
    runs = run_scans(bg, clean, anomalous, n_clean=30, n_anomalous=25, n_runs=2, n_null_runs=0, tail="left")
    p = bg.pvalues(np.concatenate([clean, anomalous]), tail="left")
    found = scan(p)
    for row in range(2):
        assert runs.table["score"][row] == pytest.approx(found.score, rel=1e-12)
        assert runs.table["alpha"][row] == found.alpha
        np.testing.assert_array_equal(runs.records[row], found.records)
        np.testing.assert_array_equal(runs.nodes[row], found.nodes)


def test_individual_runs_rank_single_records(data):
    bg, clean, anomalous = data
    runs = run_scans(bg, clean, anomalous, n_clean=30, n_anomalous=25, n_runs=1, n_null_runs=0, scan="individual")
    p = bg.pvalues(np.concatenate([clean, anomalous]))
    found = scan_individual(p)
    scores = np.array([result.score for result in found])
    row = runs.table.iloc[0]
    assert row["score"] == pytest.approx(scores[30:].mean() - scores[:30].mean(), rel=1e-9)
    wins = (scores[30:, None] > scores[:30]) + 0.5 * (scores[30:, None] == scores[:30])
    assert row["auroc"] == pytest.approx(wins.mean())
    assert np.isnan(row["alpha"])
    top = runs.records[0]
    assert top.size == 25
    assert scores[top].min() >= np.delete(scores, top).max()
    chosen = sum(np.isin(np.arange(60), found[i].nodes).astype(int) for i in top)
    np.testing.assert_array_equal(runs.nodes[0], np.flatnonzero(chosen * 2 >= 25))


def test_summaries_follow_from_the_runs(data, runs):
    bg, clean, anomalous = data
    table = runs.table
    assert table["kind"].tolist() == ["mixed"] * 12 + ["null"] * 9
    assert (table["permutation"] == -1).all()
    x = np.concatenate([clean, anomalous])
    sides = bg.sides(x)
    for row in range(21):
        records, nodes = runs.records[row], runs.nodes[row]
        assert (np.diff(records) > 0).all()
        assert (np.diff(nodes) > 0).all()
        assert table["n_records"][row] == records.size
        assert table["n_nodes"][row] == nodes.size
        np.testing.assert_array_equal(runs.signs[row], np.sign(sides[np.ix_(records, nodes)].sum(0)))
        if row < 12:
            hits = np.sum(records >= runs.config["sizes"][0])
            assert table["precision"][row] == hits / records.size
            assert table["recall"][row] == hits / 4
        else:
            assert records.max() < 30
            assert np.isnan(table["precision"][row])
            assert np.isnan(table["recall"][row])
    frequency = [np.mean([node in nodes for nodes in runs.nodes[:12]]) for node in range(60)]
    np.testing.assert_allclose(runs.node_frequency(), frequency)
    assert (runs.node_sign()[:10] == 1).all()
    assert (runs.node_sign()[10:15] == -1).all()
    assert runs.auroc() == auroc(table["score"][:12].to_numpy(), table["score"][12:].to_numpy())
    assert runs.p_value is None
    with pytest.raises(ValueError, match="no permuted runs"):
        runs.permuted_frequency()


def test_power_counts_runs_that_few_null_runs_reach(runs):
    mixed, null = runs.table["score"][:12].to_numpy(), runs.table["score"][12:].to_numpy()
    for level in (0.1, 0.2, 0.5):
        by_hand = np.mean([(1 + np.sum(null >= score)) / 10 <= level for score in mixed])
        assert runs.power(level=level) == by_hand
    assert runs.power(level=0.01) == 0
    with pytest.raises(ValueError, match="level is 0"):
        runs.power(level=0.0)


def test_planted_records_are_found(runs):
    mixed = runs.table[runs.table["kind"] == "mixed"]
    assert mixed["precision"].mean() > 0.9
    assert mixed["recall"].mean() > 0.9
    assert runs.power(level=0.1) == 1.0
    assert runs.auroc() == 1.0


def test_auroc_with_ties():
    positive, negative = np.array([1.0, 2.0, 2.0]), np.array([2.0, 0.0])
    assert auroc(positive, negative) == np.mean([0, 1, 0.5, 1, 0.5, 1])
    assert np.isnan(auroc(positive, np.empty(0)))


def test_seeds(data):
    first, again, other = (run_scans(*data, **SMALL, rng=rng) for rng in (1, 1, 2))
    same(first, again)
    assert not first.table["score"].equals(other.table["score"])
    longer = run_scans(*data, **(SMALL | {"n_runs": 15}), rng=1)
    np.testing.assert_array_equal(longer.table["score"][:12], first.table["score"][:12])
    drawn = run_scans(*data, **SMALL, rng=np.random.default_rng(5))
    same(drawn, run_scans(*data, **SMALL, rng=drawn.config["seed"]))


def test_groups_and_exact_thresholds(data):
    _, clean, anomalous = data
    rng = np.random.default_rng(1)
    bg = Background(rng.normal(size=(30, 60)), groups=np.tile(["a", "b", "b"], 10))
    groups = {"clean_groups": ["a", "b"] * 15, "anomalous_groups": ["b"] * 25}
    runs = run_scans(
        bg, clean, anomalous, n_clean=30, n_anomalous=25, n_runs=1, n_null_runs=0, alphas="exact", **groups
    )
    p = bg.pvalues(np.concatenate([clean, anomalous]), groups=[*groups["clean_groups"], *groups["anomalous_groups"]])
    found = scan(p, alphas="exact")
    assert runs.table["score"][0] == pytest.approx(found.score, rel=1e-12)
    np.testing.assert_array_equal(runs.nodes[0], found.nodes)


def test_empty_selections_make_no_warning(data):
    bg, clean, _ = data
    lowest = np.full((10, 60), -100.0)
    runs = run_scans(
        bg, np.concatenate([lowest, lowest]), lowest, n_clean=5, n_anomalous=5, n_runs=2, n_null_runs=2, alphas=3
    )
    assert (runs.table["score"] == 0).all()
    assert runs.table["alpha"].isna().all()
    assert runs.table["precision"].isna().all()
    assert (runs.table["recall"][:2] == 0).all()
    assert (runs.node_frequency() == 0).all()
    assert (runs.node_sign() == 0).all()
    assert clean.shape[1] == runs.n_nodes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_clean": 31}, "n_clean is 31, more than the 30 records of clean"),
        ({"n_anomalous": 26}, "n_anomalous is 26, more than the 25 records of anomalous"),
        ({"n_clean": 20, "n_anomalous": 11}, "n_clean \\+ n_anomalous is 31, more than the 30"),
        ({"n_clean": 26}, "every null run would be the same sample"),
        ({"n_anomalous": 0}, "n_anomalous is 0"),
        ({"n_runs": 0}, "n_runs is 0"),
        ({"tail": "both"}, "tail is 'both'"),
        ({"score": "zz"}, "score is 'zz'"),
        ({"scan": "single"}, "scan is 'single'"),
        ({"alphas": [2.0]}, "alphas must hold"),
        ({"clean_groups": ["a"] * 30}, "groups was given"),
    ],
)
def test_bad_input_is_named(data, options, message, unchecked):
    with pytest.raises(ValueError, match=message):
        run_scans(*data, **(SMALL | options))


def test_pools_need_the_nodes_of_the_background(data, unchecked):
    bg, clean, anomalous = data
    with pytest.raises(ValueError, match="anomalous has 59 nodes; expected 60"):
        run_scans(bg, clean, anomalous[:, 1:])


def test_the_way_it_is_shown_is_short(data):
    runs = run_scans(*data, **SMALL)
    assert len(repr(runs)) < 100
    assert "nodes" in repr(runs)
