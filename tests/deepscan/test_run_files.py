from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from deepscan import ScanRuns, detect
from deepscan.runs import read_runs

ORIGINALS = Path(__file__).parents[3] / "shared" / "data" / "deepscan-output"
MIXED = "1.5 0.5 0.25 2 3 0.01 4,0,2 7,1\n"
NULL = "0.1 None None 1 1 0.02 3 0\n"


@pytest.fixture(scope="module")
def runs():
    rng = np.random.default_rng(0)
    h0, h1 = rng.normal(size=(12, 30)), rng.normal(size=(12, 30))
    return detect(h0, h1, n_clean=3, n_anomalous=3, n_runs=4, n_permutations=3, alphas=5)


def same(one, other):
    pd.testing.assert_frame_equal(one.table, other.table)
    for name in ("nodes", "records", "signs"):
        for a, b in zip(getattr(one, name), getattr(other, name), strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype


def test_save_and_load_lose_nothing(runs, tmp_path):
    runs.save(tmp_path / "runs.parquet")
    loaded = ScanRuns.load(tmp_path / "runs.parquet")
    same(runs, loaded)
    assert loaded.config == runs.config
    assert loaded.p_value == runs.p_value
    assert [path.name for path in tmp_path.iterdir()] == ["runs.parquet"]
    np.testing.assert_array_equal(loaded.permuted_frequency(), runs.permuted_frequency())


def test_save_keeps_odd_values_and_empty_lists(tmp_path):
    (tmp_path / "odd.txt").write_text("-2.5 None None 0 0 0.5  \n" + NULL)
    odd = read_runs(tmp_path / "odd.txt", n_nodes=9)
    odd.save(tmp_path / "odd.parquet")
    same(odd, ScanRuns.load(tmp_path / "odd.parquet"))


def test_a_failed_save_leaves_the_old_file(runs, tmp_path, monkeypatch):
    path = tmp_path / "runs.parquet"
    runs.save(path)
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        runs.save(path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_other_files_are_refused(tmp_path):
    (tmp_path / "text").write_text("no parquet")
    with pytest.raises(ValueError, match="is no Parquet file"):
        ScanRuns.load(tmp_path / "text")
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "frame.parquet")
    with pytest.raises(ValueError, match="holds no scan runs"):
        ScanRuns.load(tmp_path / "frame.parquet")


def test_reads_the_text_format(tmp_path):
    path = tmp_path / "runs.txt"
    path.write_text(MIXED + NULL + "-2.5 0.5 1.0 1 0 0.5  2")
    runs = read_runs(path)
    assert runs.n_nodes == 5
    assert runs.table["kind"].tolist() == ["mixed", "null", "mixed"]
    assert runs.table["run"].tolist() == [0, 0, 1]
    assert runs.table["score"].tolist() == [1.5, 0.1, -2.5]
    assert runs.table["precision"][0] == 0.5
    assert np.isnan(runs.table["precision"][1])
    np.testing.assert_array_equal(runs.nodes[0], [0, 2, 4])
    np.testing.assert_array_equal(runs.records[0], [1, 7])
    assert runs.nodes[2].size == 0
    assert runs.table["n_nodes"].tolist() == [3, 1, 0]
    np.testing.assert_allclose(runs.node_frequency(), [0.5, 0, 0.5, 0, 0.5])
    np.testing.assert_array_equal(runs.node_sign(), np.zeros(5))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MIXED + "1.5 0.5 0.25 2", "line 2: 4 fields where 8"),
        (MIXED + NULL + "1.5 0.5 0.25 2 3 0.01 4,0", "line 3: 7 fields"),
        (MIXED + "1.5 0.5 0.25 2 3 0.01 4,0,2 7,", "line 2: records holds ''"),
        (MIXED + "1.5 0.5 0.25 2 3 0.01 4,0,2 7", "line 2: 1 records where the line announces 2"),
        (MIXED + "1.5 0.5 0.25 2 4 0.01 4,0,2 7,1\n", "line 2: 3 nodes where the line announces 4"),
        ("1.5 None 0.25 2 3 0.01 4,0,2 7,1\n", "line 1: precision is None and recall 0.25"),
        ("inf 0.5 0.25 2 3 0.01 4,0,2 7,1\n", "line 1: score is 'inf'; expected a finite number"),
        ("x 0.5 0.25 2 3 0.01 4,0,2 7,1\n", "line 1: score is 'x', not a number"),
        ("1.5 0.5 0.25 2 3 0.01 4,-1,2 7,1\n", "line 1: nodes holds '-1'"),
        ("1.5 0.5 0.25 2 3 0.01 4,4,2 7,1\n", "line 1: nodes holds the same index twice"),
        (MIXED + "\n" + MIXED, "line 2: 1 fields"),
    ],
)
def test_a_bad_line_is_named(text, message, tmp_path):
    path = tmp_path / "runs.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_runs(path)


def test_nodes_outside_the_model_are_refused(tmp_path):
    (tmp_path / "runs.txt").write_text(MIXED)
    with pytest.raises(ValueError, match="line 1: node 4 is outside n_nodes = 4"):
        read_runs(tmp_path / "runs.txt", n_nodes=4)


@pytest.mark.skipif(not ORIGINALS.is_dir(), reason="no output of the original here")
@pytest.mark.parametrize("path", sorted(ORIGINALS.glob("*")), ids=lambda path: path.name)
def test_output_of_the_original(path, tmp_path):
    runs = read_runs(path, n_nodes=4096)
    assert len(runs.table) == 100
    assert (runs.table["n_nodes"] > 0).all()
    kind = "null" if path.name.startswith("clean") else "mixed"
    assert (runs.table["kind"] == kind).all()
    if kind == "mixed":
        hits = runs.table["precision"] * runs.table["n_records"]
        np.testing.assert_allclose(hits, hits.round(), atol=1e-9)
    runs.save(tmp_path / "runs.parquet")
    same(runs, ScanRuns.load(tmp_path / "runs.parquet"))
