import re
import shutil
import webbrowser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from utils.cli.main import app
from utils.experiments.inventory import find_report, list_runs
from utils.models.checkpoints import delete_conversions, list_conversions
from utils.study.run import run_study
from utils.study.settings import StudyConfig


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two personas from arrays: ``alpha`` has three moved nodes."""
    root = tmp_path_factory.mktemp("desk")
    rng = np.random.default_rng(0)
    (root / "arrays").mkdir()
    for persona in ("alpha", "beta"):
        for direction in ("positive", "negative"):
            values = rng.normal(size=(2, 32, 8)).astype(np.float32)
            if (persona, direction) == ("alpha", "positive"):
                values[:, :, :3] += 3
            np.save(root / "arrays" / f"{persona}_{direction}.npy", values)
    config = StudyConfig(
        activations=str(root / "arrays"),
        runs=4,
        permutations=19,
        flips=19,
        power_draws=0,
        n_clean=4,
        n_anomalous=4,
        jobs=1,
    )
    return run_study(root / "study", config, progress=False)


@pytest.fixture
def say():
    """Runs a command in this process and gives its status and what it printed."""

    def run(*words, answer=None):
        found = CliRunner().invoke(app, list(map(str, words)), input=answer, env={"COLUMNS": "200"})
        if found.exception is not None and not isinstance(found.exception, SystemExit):
            raise found.exception
        return found.exit_code, found.output

    return run


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache with a converted model and what a killed conversion left."""
    monkeypatch.setenv("PERSONASCOPE_CACHE", str(tmp_path / "cache"))
    for name in ("model-1", ".model-1-killed"):
        (tmp_path / "cache" / "models" / name).mkdir(parents=True)
        (tmp_path / "cache" / "models" / name / "weights").write_bytes(b"12345")
    return tmp_path / "cache" / "models"


def test_runs_are_listed_wherever_they_lie(study, tmp_path):
    shutil.copytree(study.folder, tmp_path / "below" / "finished")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "study.json").write_text('{"config": {"model": "mine"}}')
    (tmp_path / "below" / "finished" / "causal" / "alpha").mkdir(parents=True)
    (tmp_path / "below" / "finished" / "causal" / "alpha" / "causal.json").write_text('{"config": {}}')
    runs = list_runs(tmp_path).set_index("folder")
    assert set(runs.index) == {
        tmp_path / "begun", tmp_path / "below" / "finished", tmp_path / "below" / "finished" / "causal" / "alpha",
    }  # fmt: skip
    begun, finished = runs.loc[tmp_path / "begun"], runs.loc[tmp_path / "below" / "finished"]
    assert (begun["state"], begun["model"], begun["kind"]) == ("unfinished", "mine", "study")
    assert (finished["state"], finished["result"]) == ("finished", f"2 personas, layer {study.best_layer}")
    files = [file for file in (tmp_path / "below" / "finished").rglob("*") if file.is_file()]
    assert finished["megabytes"] == pytest.approx(sum(file.stat().st_size for file in files) / 1e6)
    assert list_runs(tmp_path)["changed"].is_monotonic_decreasing


def test_listing_says_so_where_nothing_is(say, tmp_path):
    assert say("list", tmp_path) == (0, f"no run in {tmp_path}; personascope study makes one.\n")


def test_the_report_is_that_of_the_run_or_of_its_study(study, tmp_path):
    assert find_report(study.folder) == study.folder / "report.html"
    inner = study.folder / "causal" / "alpha"
    assert find_report(inner).samefile(study.folder / "report.html")
    (tmp_path / "comparison.html").touch()
    assert find_report(tmp_path) == tmp_path / "comparison.html"


def test_without_a_name_the_latest_study_is_opened(say, study, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.append(address) or True)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(study.folder, tmp_path / "output" / "one")
    status, out = say("open")
    assert (status, out) == (0, "output/one/report.html\n")
    assert opened == [(tmp_path / "output" / "one" / "report.html").as_uri()]
    assert say("open", study.folder, "--no-browser") == (0, f"{study.folder / 'report.html'}\n")
    assert len(opened) == 1


def test_figures_are_listed_and_drawn_again_at_a_width(say, study, tmp_path):
    status, out = say("plot", study.folder)
    assert status == 0
    assert re.search(r"^ +node_map  ", out, flags=re.MULTILINE)
    status, out = say(
        "plot", study.folder, "tests,node_map", "--width", 5, "--format", "pdf", "--out", tmp_path / "out"
    )
    assert [Path(line).name for line in out.split()] == ["tests.pdf", "node_map.pdf"]
    for name in ("tests", "node_map"):
        box = re.search(rb"/MediaBox \[ 0 0 ([\d.]+)", (tmp_path / "out" / f"{name}.pdf").read_bytes())
        # In points; margins are cut to what is drawn.
        assert box is not None
        assert 3.5 * 72 <= float(box[1]) <= 5.5 * 72


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("node_mop",), "did you mean node_map"),
        (("tests", "--width", 0.5), "0.5 inches"),
        (("tests", "--width", "nan"), "nan inches"),
    ],
)
def test_an_unknown_figure_or_width_is_refused_before_anything_is_written(say, study, tmp_path, words, message):
    with pytest.raises(ValueError, match=message):
        say("plot", study.folder, *words, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_exported_tables_are_those_of_the_study(say, study, tmp_path):
    status, out = say("export", study.folder, "--out", tmp_path)
    assert status == 0
    assert {Path(line) for line in out.split()} == set(tmp_path.glob("*"))
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "detection.csv"), study.detection, check_dtype=False, rtol=1e-12
    )
    nodes = pd.read_csv(tmp_path / "node_sets.csv")
    for persona in study.personas:
        own = nodes[(nodes["persona"] == persona) & (nodes["rule"] == "scan")]
        assert set(zip(own["node"], own["sign"], strict=True)) == study.node_sets[persona]
    moved = nodes[(nodes["persona"] == "alpha") & (nodes["rule"] == "family")]
    assert {*moved["node"]} == {0, 1, 2}
    assert (moved["low"] > 0).all()


def test_a_study_of_exported_activations_has_the_same_numbers(say, study, tmp_path):
    say("export", study.folder, "--activations", "--out", tmp_path / "out")
    config = StudyConfig(**{**study.config, "activations": str(tmp_path / "out"), "position": "last"})
    again = run_study(tmp_path / "again", config, progress=False)
    pd.testing.assert_frame_equal(again.detection, study.detection)
    pd.testing.assert_frame_equal(again.localization, study.localization)


def test_partners_are_exported_in_the_same_row(say, wired, tmp_path):
    study = wired[1]
    say("export", study.folder, "--activations", "--out", tmp_path)
    persona, acts = study.personas[0], study.activations
    sides = {
        side: acts.isel(
            statement=np.flatnonzero((acts["persona"].to_numpy() == persona) & (acts["direction"].to_numpy() == side))
        )
        for side in ("positive", "negative")
    }
    pairs = sorted(sides["positive"]["pair"].to_numpy())
    for side, held in sides.items():
        found = np.load(tmp_path / f"{persona}_{side}.npy")
        place = {pair: i for i, pair in enumerate(held["pair"].to_numpy())}
        np.testing.assert_array_equal(found, held.to_numpy()[:, [place[pair] for pair in pairs]])


def test_the_cache_is_shown_and_deleted_only_where_that_was_said(say, cache):
    assert list_conversions() == {cache / ".model-1-killed": 5, cache / "model-1": 5}
    assert say("clean", answer="n\n")[0] == 0
    assert len(list(cache.iterdir())) == 2
    assert say("clean", "--yes")[0] == 0
    assert not list(cache.iterdir())
    assert say("clean") == (0, "nothing is cached.\n")


def test_nothing_outside_of_the_cache_is_deleted(cache, tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="not a converted model"):
        delete_conversions([cache / "model-1", tmp_path / "mine"])
    assert (cache / "model-1").exists()
    assert (tmp_path / "mine").exists()
