import json
import logging
import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import QuadMesh
from originals import write_runs

from utils.audit.report import write_audit
from utils.audit.run import audit_runs
from utils.audit.sources import read_sources
from utils.cli.main import main
from utils.experiments.check import check_run
from utils.viz.audit import plot_excess, plot_union_sizes
from utils.viz.nodes import plot_scores


@pytest.fixture
def files(tmp_path):
    return [
        write_runs(tmp_path / "adv_output_tea & cake.txt", planted=range(10)),
        write_runs(tmp_path / "clean_output_tea & cake.txt", seed=1, clean=True, n_runs=9),
        write_runs(tmp_path / "adv_output_$milk_.txt", planted=range(5, 15), seed=2),
    ]


@pytest.fixture
def audit(files):
    sources, notes = read_sources(files)
    return audit_runs(sources, notes=notes)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs ``personascope audit ...`` and gives what it printed."""

    def call(*words):
        monkeypatch.setattr(logging.getLogger(), "handlers", list(logging.getLogger().handlers))
        monkeypatch.setattr(sys, "argv", ["personascope", "audit", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        assert not stop.value.code, err
        return out

    return call


def test_the_command_writes_tables_figures_and_a_page(command, files, tmp_path, audit):
    out = tmp_path / "out"
    shown = command(*files, "--out", out, "--thresholds", "any,0.5")
    for sentence in audit_runs(read_sources(files)[0], shares=[0, 0.5]).pairs["sentence"]:
        assert sentence in shown
    assert "200 were assumed" in shown
    for name in ("summary", "runs", "sets", "profiles", "overlaps", "pairs"):
        table = pd.read_parquet(out / f"{name}.parquet")
        assert len(table)
        pd.testing.assert_frame_equal(pd.read_csv(out / f"{name}.csv"), table, check_dtype=False)
    assert sorted(pd.read_parquet(out / "overlaps.parquet")["share"].unique()) == [0, 0.5]
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "tea &amp; cake" in page
    assert "http" not in page
    assert check_run(out).findings == ()
    assert check_run(out).runs == ("audit",)


def test_another_audit_takes_the_place_of_the_first(audit, files, tmp_path):
    out = tmp_path / "out"
    write_audit(audit, out)
    assert (out / "figures" / "overlaps.png").exists()
    write_audit(audit_runs(read_sources(files[2:])[0]), out)
    assert not (out / "figures" / "overlaps.png").exists()
    assert len(pd.read_parquet(out / "summary.parquet")) == 1
    assert check_run(out).findings == ()
    (out / "sets.csv").write_text("changed")
    assert [finding.path for finding in check_run(out).findings] == ["sets.csv"]


def test_the_same_audit_is_the_same_files(audit, tmp_path):
    for name in ("one", "two"):
        write_audit(audit, tmp_path / name)
    one, two = (json.loads((tmp_path / name / "audit.json").read_text())["files"] for name in ("one", "two"))
    assert one == two


def test_notes_of_what_is_missing(tmp_path):
    sources, _ = read_sources([write_runs(tmp_path / f"{seed}.txt", seed=seed) for seed in range(2)])
    audit = audit_runs(sources, shares=[1.0])
    assert any("1 of 1 comparisons have an empty node set" in note for note in audit.notes)


@pytest.mark.parametrize("shares", [[], [0.5, 0.5], [-0.1], [1.1], [np.nan]])
def test_bad_shares(audit, shares, files):
    with pytest.raises(ValueError, match="shares of the runs"):
        audit_runs(read_sources(files)[0], shares=shares)


def test_union_sizes_as_drawn(audit):
    ax = plot_union_sizes(audit.profiles, shares=[0.0, 0.5])
    lines = {line.get_label(): line for line in ax.get_lines()}
    own = audit.profiles[(audit.profiles["source"] == "tea & cake") & (audit.profiles["kind"] == "clean")]
    drawn = lines["tea & cake, clean runs"]
    np.testing.assert_allclose(drawn.get_ydata()[1:], own["size"] / 200)
    np.testing.assert_allclose(drawn.get_xdata(), [0, *own["share"]])
    assert drawn.get_drawstyle() == "steps-pre"
    assert r"\$milk_" in lines


def test_excess_as_drawn(audit):
    ax = plot_excess(audit.overlaps)
    (mesh,) = (each for each in ax.collections if isinstance(each, QuadMesh))
    assert mesh.get_clim() == (-1, 1)
    table = audit.overlaps
    wide = table.pivot(index=["a", "kind_a", "b", "kind_b"], columns="share", values="excess")
    pairs = list(dict.fromkeys(zip(*(table[name] for name in ("a", "kind_a", "b", "kind_b")), strict=True)))
    np.testing.assert_allclose(
        np.ma.filled(mesh.get_array(), np.nan).reshape(len(pairs), -1), wide.loc[pairs].to_numpy()
    )
    first = table.iloc[0]
    assert f"{first['shared']:,} (" in ax.texts[0].get_text()
    assert len(ax.get_lines()) == (table["verdict"] != "as many").sum() > 0


def test_runs_that_all_score_the_same_are_seen():
    scores = pd.DataFrame({"persona": "a", "kind": ["mixed"] * 3 + ["null"] * 3, "score": [3.0, 4, 5, 1, 1, 1]})
    ax = plot_scores(scores, labels=("mixed runs", "clean runs"))
    marked = [line.get_xydata() for line in ax.get_lines() if line.get_marker() == "o" and line.get_markersize() > 0]
    np.testing.assert_allclose(np.concatenate(marked), [[1.0, 0.175]])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["mixed runs", "clean runs"]
