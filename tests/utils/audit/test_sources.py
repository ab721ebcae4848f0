from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from originals import write_runs
from small import run_small, stand_in, write_arrays

from deepscan import Background, ScanRuns, read_runs, run_scans
from utils.audit.overlaps import comparable
from utils.audit.sources import read_sources

ORIGINALS = Path(__file__).parents[4] / "shared" / "data" / "deepscan-output"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Runs of this package's own protocol, saved."""
    rng = np.random.default_rng(0)
    clean, anomalous = rng.normal(size=(2, 20, 200))
    runs = run_scans(
        Background(rng.normal(size=(20, 200))), clean, anomalous, n_clean=4, n_anomalous=6, n_runs=6, n_null_runs=7
    )
    path = tmp_path_factory.mktemp("saved") / "own.parquet"
    runs.save(path)
    return path


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        stand_in(patch)
        return run_small(folder / "study", write_arrays(folder / "arrays"))


def test_a_text_file_with_its_clean_runs(tmp_path):
    mixed = write_runs(tmp_path / "adv_output_tea.txt", planted=[199])
    clean = write_runs(tmp_path / "clean_output_tea.out", n_runs=5, seed=1, clean=True)
    (source,), notes = read_sources([clean, mixed])
    assert (source.name, source.form, source.null, source.n_nodes) == ("tea", "text", "clean", 200)
    assert (source.n_clean, source.n_anomalous, source.first_anomalous) == (8, 8, 8)
    assert (source.rows("mixed").size, source.rows("null").size) == (20, 5)
    for path, kind in ((mixed, "mixed"), (clean, "null")):
        for row, nodes in zip(source.rows(kind), read_runs(path).nodes, strict=True):
            np.testing.assert_array_equal(source.runs.nodes[row], nodes)
    assert any("200 were assumed" in note for note in notes)
    assert any("by the names of the files" in note for note in notes)
    assert any("imply 8 anomalous records" in note for note in notes)


def test_clean_runs_of_another_name(tmp_path):
    mixed, clean = write_runs(tmp_path / "a.txt"), write_runs(tmp_path / "b.txt", clean=True)
    alone, notes = read_sources([mixed, clean])
    assert [source.null for source in alone] == [None, "clean"]
    assert any("belongs to no file of mixed runs" in note for note in notes)
    (source,), _ = read_sources([mixed], clean={str(mixed): str(clean)})
    assert source.null == "clean"
    assert source.rows("null").size == 20


def test_the_number_of_nodes(tmp_path, saved):
    small = write_runs(tmp_path / "a.txt", n_nodes=150)
    assert read_sources([small], n_nodes=4096)[0][0].n_nodes == 4096
    # The other file knows.
    assert [source.n_nodes for source in read_sources([small, saved])[0]] == [200, 200]
    large = write_runs(tmp_path / "b.txt", n_nodes=300, planted=[299])
    sources, _ = read_sources([small, large, saved])
    assert [source.n_nodes for source in sources] == [300, 300, 200]
    assert not comparable(sources[1], sources[2])


def test_a_file_of_this_package(saved):
    (source,), notes = read_sources([saved])
    assert (source.name, source.form, source.null) == ("own", "parquet", "clean")
    assert (source.n_clean, source.n_anomalous, source.first_anomalous) == (4, 6, 20)
    assert not notes


def test_a_study(study, tmp_path):
    sources, _ = read_sources([study.folder])
    assert [source.name for source in sources] == ["alpha", "beta"]
    assert {source.form for source in sources} == {"study"}
    assert {source.null for source in sources} == {"flipped"}
    assert comparable(*sources)
    # Another model or layer of as many nodes is another place.
    assert not comparable(sources[0], replace(sources[1], space=("other", "resid", "last", "1")))
    path = write_runs(tmp_path / "alpha.txt", n_nodes=6, size=3)
    names = [source.name for source in read_sources([study.folder, path])[0]]
    assert names == ["alpha (study)", "beta (study)", "alpha (alpha.txt)"]


def test_stated_shares_that_fit_no_number_of_records(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("1 0.5 0.25 2 1 0.1 3 0,7\n1 0.5 0.1 2 1 0.1 3 0,7\n")
    (source,), notes = read_sources([path])
    assert source.n_anomalous is None
    assert any("--sizes CLEAN,ANOMALOUS" in note for note in notes)
    (source,), _ = read_sources([path], sizes=(5, 4))
    assert (source.first_anomalous, source.n_anomalous) == (5, 4)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"n_nodes": 100}, "is outside n_nodes = 100"),
        ({"sizes": (5, 5)}, "are 10 records"),
        ({"clean": {"nowhere.txt": "a.txt"}}, "which is not among the files"),
    ],
)
def test_refusals(tmp_path, options, reason, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_runs(tmp_path / "a.txt")
    with pytest.raises(ValueError, match=reason):
        read_sources([path], **options)


def test_another_number_of_nodes_than_a_file_says(saved):
    with pytest.raises(ValueError, match="says that it scanned 200"):
        read_sources([saved], n_nodes=300)


@pytest.mark.skipif(not ORIGINALS.is_dir(), reason="no output of the original here")
def test_the_published_files():
    (immigration, rights), _ = read_sources(sorted(ORIGINALS.glob("*_output_*")))
    assert (immigration.name, immigration.n_nodes, immigration.n_anomalous) == ("anti-immigration_hc", 4096, 25)
    assert (rights.name, rights.n_nodes, rights.n_anomalous, rights.null) == ("antiLGBTQrights", 4096, 50, None)
    assert (immigration.rows("mixed").size, immigration.rows("null").size) == (100, 100)
    assert isinstance(rights.runs, ScanRuns)
