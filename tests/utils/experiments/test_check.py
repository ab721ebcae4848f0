import json
import re
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from small import digest_folder, run_small, stand_in, write_arrays
from typer.testing import CliRunner

from utils.cli.main import app
from utils.experiments.check import check_run
from utils.experiments.stages import Stages
from utils.folders import RUNS
from utils.records import write_frame
from utils.study.results import key_of_study, open_study
from utils.viz.pages import write_figures

CHUNKS = "activations.zarr/activations"


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    return write_arrays(tmp_path_factory.mktemp("in") / "arrays")


@pytest.fixture(scope="module")
def whole(arrays, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "study"
    with pytest.MonkeyPatch.context() as patch:
        stand_in(patch)
        run_small(folder, arrays)
    return folder


@pytest.fixture
def study(whole, tmp_path, monkeypatch):
    stand_in(monkeypatch)
    return Path(shutil.copytree(whole, tmp_path / "study"))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


def edit(folder: Path, **changes) -> None:
    path = folder / "study.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in (record | changes).items() if value is not None}))


def test_a_finished_study_is_whole(study):
    before = digest_folder(study, leave_out=())
    assert check_run(study).findings == ()
    assert digest_folder(study, leave_out=()) == before


@pytest.mark.parametrize(
    ("damage", "path", "fault"),
    [
        (lambda f: shutil.rmtree(f / "activations.zarr"), "activations.zarr", "missing"),
        (lambda f: (f / CHUNKS / "1.0.0").unlink(), "activations.zarr", r"batch 0 of \d+ not as written"),
        (lambda f: flip(f / CHUNKS / "0.1.0"), "activations.zarr", r"batch 1 of \d+ not as written"),
        (lambda f: (f / "activations.zarr/order/0").unlink(), "activations.zarr", "labels are not as they were"),
        (lambda f: cut(f / "activations.zarr/done/0"), "activations.zarr", "not written"),
        (lambda f: (f / "activations.zarr/.zattrs").unlink(), "activations.zarr", "metadata"),
        (lambda f: cut(f / "activations.zarr/.zmetadata"), "activations.zarr", "metadata"),
        (lambda f: (f / f"{CHUNKS}/.zarray").write_text("{"), "activations.zarr", "metadata"),
        (lambda f: cut(f / "activations.zarr/order/.zarray"), "activations.zarr", "metadata"),
        (lambda f: (f / "layers.parquet").unlink(), "layers.parquet", "missing"),
        (lambda f: cut(f / "scans/beta.parquet"), "scans/beta.parquet", "not as it was written"),
        (lambda f: write_frame(f / "nodes.parquet", pd.DataFrame()), "nodes.parquet", "not as it was written"),
        (lambda f: (f / "figures/one.svg").unlink(), "figures/one.svg", "not as it was drawn"),
        (lambda f: cut(f / "figures/one.png"), "figures/one.png", "not as it was drawn"),
        (lambda f: shutil.rmtree(f / "figures"), "figures", "missing"),
        (lambda f: (f / "report.html").unlink(), "report.html", "missing or cut short"),
        (lambda f: (f / "report.html").write_text("<html><body>"), "report.html", "missing or cut short"),
        (lambda f: (f / "study.json").write_text('{"best_layer"'), "study.json", "damaged"),
        (lambda f: (f / "study.json").unlink(), "study.json", "missing"),
        (lambda f: edit(f, best_layer=None), "study.json", "not finished"),
        (lambda f: (f / "scans/.a.parquet.1-0123abcd.part").touch(), "scans/.a.parquet", "left by a killed run"),
    ],
)
def test_damage_is_named_and_a_rerun_repairs_it(study, arrays, damage, path, fault):
    before = digest_folder(study)
    damage(study)
    (finding,) = check_run(study).findings
    assert finding.path.startswith(path)
    assert re.search(fault, finding.fault), finding
    run_small(study, arrays)
    assert check_run(study).findings == ()
    assert digest_folder(study) == before


def test_a_study_of_other_options_in_the_way_of_the_tables(study, arrays, tmp_path):
    """The store is replaced by that of other arrays, as an unfinished run with other options leaves it."""
    other = run_small(tmp_path / "other", write_arrays(tmp_path / "in", n=28)).folder
    shutil.rmtree(study / "activations.zarr")
    shutil.copytree(other / "activations.zarr", study / "activations.zarr")
    (finding,) = check_run(study).findings
    assert "with other options than the tables" in finding.fault
    run_small(study, arrays)
    assert check_run(study).findings == ()


def run_experiment(folder: Path, name: str = "causal.json", **facts) -> None:
    """Stages, a table, a figure and a record, as every experiment leaves them."""
    folder.mkdir(parents=True, exist_ok=True)
    stages = Stages(folder, "inputs")
    for i in range(2):
        stages.table(f"parts/{i}", lambda i=i: pd.DataFrame({"a": [i]}))
    write_frame(folder / "values.parquet", pd.DataFrame({"a": [0, 1]}))
    stages.finish(name, facts, also=["values.parquet"])
    write_figures([("one", plt.figure(figsize=(1, 1)))], folder / "figures")


@pytest.mark.parametrize("name", [name for name in RUNS if name != "study.json"])
@pytest.mark.parametrize(
    ("damage", "path"),
    [
        (lambda f: cut(f / "parts/1.parquet"), "parts/1.parquet"),
        (lambda f: flip(f / "values.parquet"), "values.parquet"),
        (lambda f: (f / "values.parquet").unlink(), "values.parquet"),
        (lambda f: flip(f / "figures/one.png"), "figures/one.png"),
        (lambda f: (f / next(n for n in RUNS if (f / n).exists())).write_text("{"), ""),
        (lambda f: (f / next(n for n in RUNS if (f / n).exists())).unlink(), "stages.json"),
        (lambda f: (f / "parts/.1.parquet.1-0123abcd.part").touch(), "parts/.1.parquet"),
    ],
)
def test_the_folders_of_experiments(tmp_path, name, damage, path):
    run_experiment(tmp_path, name)
    assert check_run(tmp_path).findings == ()
    damage(tmp_path)
    (finding,) = check_run(tmp_path).findings
    assert finding.path.startswith(path or name)
    run_experiment(tmp_path, name)
    assert check_run(tmp_path).findings == ()


def test_what_was_made_of_a_study_is_checked_with_it(study):
    run_experiment(study / "causal" / "alpha", study=key_of_study(open_study(study)))
    found = check_run(study)
    assert found.runs == ("study", "causal check in causal/alpha")
    assert found.findings == ()
    flip(study / "causal" / "alpha" / "values.parquet")
    assert [finding.path for finding in check_run(study).findings] == ["causal/alpha/values.parquet"]
    run_experiment(study / "causal" / "alpha", study="of another state")
    assert [finding.fault for finding in check_run(study).findings] == ["of an earlier state of the study"]


def test_the_command(study):
    def run(folder):
        return CliRunner().invoke(app, ["check", str(folder)])

    result = run(study)
    assert (result.exit_code, result.output) == (0, f"{study} is whole: study.\n")
    (study / "layers.parquet").unlink()
    result = run(study)
    assert result.exit_code == 1
    assert "layers.parquet: missing; a rerun makes it again." in result.output
    assert "1 fault; run the same command again" in result.output
    for folder in (study / "figures", study / "nowhere"):
        assert isinstance(run(folder).exception, FileNotFoundError)
