import shutil

import pytest
from typer.testing import CliRunner

from utils.cli.main import app

SMALL = "--pairs 8 --random 9 --matched 0 --curve 2 --size 5 --layer-step 0 --cost 0".split()


@pytest.fixture(scope="module")
def folder(wired, tmp_path_factory):
    """A study folder of its own, for the command to write into."""
    return shutil.copytree(wired[1].folder, tmp_path_factory.mktemp("cli") / "study")


def run(*args):
    return CliRunner().invoke(app, ["causal", *map(str, args)], env={"COLUMNS": "200"})


def test_help_shows_examples():
    shown = run("--help").output
    assert "personascope causal output/" in shown
    assert "--layer-step" in shown


def test_it_says_what_was_found_and_writes_it(folder, tmp_path):
    result = run(folder, *SMALL, "--out", tmp_path, "--check", "steer")
    assert result.exit_code == 0, result.output
    assert "the scanned nodes change it by" in result.output
    assert {path.name for path in tmp_path.iterdir()} >= {"causal.json", "effects.parquet", "values.parquet", "figures"}
    assert (tmp_path / "figures" / "controls_1.svg").exists()


def test_the_studys_report_gets_a_section(folder, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "utils.study.report.list_figures", lambda study: drawn
    )  # the study was made without its pictures
    result = run(folder, *SMALL, "--check", "steer")
    assert result.exit_code == 0, result.output
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert "Do the nodes matter? warm" in report
    assert "Effect of each node set" in report


@pytest.mark.parametrize(
    ("args", "message"),
    [(["--check", "push"], "'push'"), (["--persona", "x"], "unknown persona 'x'"), (["--size", "64"], "64 nodes")],
)
def test_bad_input_ends_in_one_sentence(folder, args, message):
    result = run(folder, *SMALL, *args)
    assert isinstance(result.exception, ValueError)
    assert message in str(result.exception)
