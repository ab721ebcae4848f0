from pathlib import Path

import numpy as np
import pytest
from originals import write_runs
from scipy.stats import false_discovery_control, hypergeom, kstest

from deepscan import detect
from utils.audit.overlaps import independence, overlap_table
from utils.audit.run import audit_runs
from utils.audit.sources import Source, read_sources
from utils.nodes.sets import node_sets, overlap

ORIGINALS = Path(__file__).parents[4] / "shared" / "data" / "deepscan-output"


@pytest.mark.parametrize(("size_a", "size_b", "shared"), [(6, 9, 4), (6, 9, 2), (15, 12, 8), (1, 1, 0), (20, 5, 5)])
def test_independence_is_what_drawn_sets_give(size_a, size_b, shared):
    rng = np.random.default_rng(0)
    drawn = np.array([np.isin(rng.choice(20, size_a, replace=False), np.arange(size_b)).sum() for _ in range(20000)])
    found = independence(size_a, size_b, shared, 20)
    assert found["expected"] == pytest.approx(drawn.mean(), abs=0.03)
    assert found["p_more"] == pytest.approx((drawn >= shared).mean(), abs=0.012)
    assert found["p_fewer"] == pytest.approx((drawn <= shared).mean(), abs=0.012)
    assert found["excess"] == pytest.approx((shared - drawn.mean()) / min(size_a, size_b), abs=0.03)


def test_an_empty_set_shares_nothing_by_necessity():
    found = independence(0, 5, 0, 20)
    assert (found["expected"], found["p_more"], found["p_fewer"]) == (0, 1, 1)
    assert np.isnan(found["excess"])


def sources_of(folder, **planted):
    return read_sources(
        [write_runs(folder / f"{name}.txt", planted=nodes, seed=i) for i, (name, nodes) in enumerate(planted.items())],
        n_nodes=200,
    )[0]


def test_a_planted_overlap_is_found_and_no_other(tmp_path):
    sources = sources_of(tmp_path, a=range(12), b=range(2, 14), c=range(100, 112))
    audit = audit_runs(sources, shares=[0.0, 0.9])
    table = audit.overlaps.set_index(["a", "b", "share"])
    row = table.loc["a", "b", 0.9]
    assert (row["size_a"], row["size_b"], row["shared"], row["jaccard"]) == (12, 12, 10, 10 / 14)
    assert row["p_more"] == pytest.approx(hypergeom.sf(9, 200, 12, 12))
    assert row["verdict"] == "more"
    assert (table.loc["a", "c", 0.9]["shared"], table.loc["a", "c", 0.9]["verdict"]) == (0, "as many")
    adjusted = false_discovery_control(table.xs(0.9, level="share")["p_more"])
    np.testing.assert_allclose(table.xs(0.9, level="share")["p_more_adjusted"], adjusted)
    sentences = dict(zip(zip(audit.pairs["a"], audit.pairs["b"], strict=True), audit.pairs["sentence"], strict=True))
    assert "exceeds independence" in sentences["a", "b"]
    assert "10, 0.72 expected" in sentences["a", "b"]
    assert "does not exceed independence" in sentences["a", "c"]


def test_sets_that_avoid_each_other_are_told_so(tmp_path):
    halves = {"a": range(100), "b": range(100, 200)}
    paths = [write_runs(tmp_path / f"{name}.txt", planted=nodes, size=100) for name, nodes in halves.items()]
    row = overlap_table(read_sources(paths, n_nodes=200)[0], [0.5]).iloc[0]
    assert (row["shared"], row["verdict"], row["excess"]) == (0, "fewer", -0.5)


def test_independent_sets_have_uniform_p_values():
    """In the middle of the discrete distribution, drawn between the tails on either side."""
    rng, found = np.random.default_rng(0), []
    for _ in range(400):
        shared = int(np.isin(rng.choice(400, 120, replace=False), rng.choice(400, 90, replace=False)).sum())
        held = independence(120, 90, shared, 400)
        found.append(held["p_more"] - rng.uniform() * (held["p_more"] + held["p_fewer"] - 1))
    assert kstest(found, "uniform").pvalue > 0.01


def test_clean_runs_are_a_set_of_their_own(tmp_path):
    mixed = write_runs(tmp_path / "adv_output_a.txt", planted=range(10))
    clean = write_runs(tmp_path / "clean_output_a.txt", planted=range(5), seed=1, clean=True)
    other = write_runs(tmp_path / "adv_output_b.txt", planted=range(10), seed=2)
    audit = audit_runs(read_sources([mixed, clean, other])[0], shares=[1.0])
    table = audit.overlaps.set_index(["a", "kind_a", "b", "kind_b"])
    assert table.loc["a", "mixed", "a", "clean"]["shared"] == 5
    assert len(table) == 3
    # Corrected apart from pairs of mixed sets, of which there is one.
    alone = table.loc["a", "mixed", "b", "mixed"]
    assert alone["p_more_adjusted"] == alone["p_more"]
    assert any("5 of the 10 of a by 100 % of runs" in sentence for sentence in audit.findings)


def test_flipped_sides_are_those_of_the_overlap_of_a_study():
    sources, runs = [], {}
    for i, name in enumerate("ab"):
        rng = np.random.default_rng(i)
        h0, h1 = rng.normal(size=(2, 40, 25))
        h1[:, :6] += 1.5
        runs[name] = detect(h0, h1, n_clean=8, n_anomalous=8, n_runs=10, n_permutations=19, alphas=10, rng=i)
        sources.append(Source(name, runs[name], "parquet", "flipped"))
    table = overlap_table(sources, [0.0, 0.5])
    for row, threshold in zip(table.to_dict("records"), (1e-6, 0.5), strict=True):
        rule = {"threshold": threshold, "level": None}
        expected = overlap(node_sets(runs, **rule), runs, **rule).iloc[0]
        assert row["flipped_p"] == expected["p_value"]
        assert row["flipped_jaccard"] == expected["expected_jaccard"]
        assert row["side_jaccard"] == expected["jaccard"]
    # Planted in the same nodes, on the same side.
    assert table["flipped_p"].iloc[1] == 0.05


@pytest.mark.skipif(not ORIGINALS.is_dir(), reason="no output of the original here")
def test_the_published_files_share_no_more_than_independence():
    unions = {}
    for name in ("adv_output_anti-immigration_hc.txt", "adv_output_antiLGBTQrights.out"):
        fields = [line.split(" ")[6] for line in (ORIGINALS / name).read_text().splitlines()]
        unions[name] = {node for field in fields for node in field.split(",")}
    one, other = unions.values()
    table = overlap_table(read_sources(sorted(ORIGINALS.glob("*_output_*")))[0], [0.0])
    row = table[(table["kind_a"] == "mixed") & (table["kind_b"] == "mixed")].iloc[0]
    assert (row["size_a"], row["size_b"], row["shared"]) == (len(one), len(other), len(one & other))
    assert row["expected"] == pytest.approx(len(one) * len(other) / 4096)
    assert row["verdict"] == "fewer"
