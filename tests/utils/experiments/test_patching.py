import json

import pandas as pd
import pytest
import typer
from patched import LONGER, make_questions, make_wide
from typer.testing import CliRunner

import utils.experiments.patching
from utils.cli.patch import patch
from utils.experiments.patching import draw_patching, flip_summary, list_changes, open_patching, run_patching
from utils.patching.effects import summarise_cells
from utils.patching.grid import list_cells, patch_questions
from utils.responses.answers import answer_questions, persona_answers
from utils.responses.wording import identity_prompt

IDENTITIES = pd.DataFrame(
    {"identity": ["nurse", "purse", "cats", "dogs"], "group": ["race-and-colour"] * 2 + ["b"] * 2}
)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    out = tmp_path_factory.mktemp("patching") / "run"
    options = {"n_questions": 3, "identities": IDENTITIES, "asked_identities": IDENTITIES[2:], "progress": False}
    return run_patching(make_wide(), *LONGER, make_questions(5), out, **options)


def test_every_table_is_on_disk(result):
    names = {path.stem for path in result.folder.glob("*.parquet")}
    assert names == set(result.tables) >= {"answers", "questions", "cells", "grid", "heads", "claims", "groups"}
    for name, table in result.tables.items():
        assert len(pd.read_parquet(result.folder / f"{name}.parquet")) == len(table) > 0
    assert not list(result.folder.glob(".*"))


def test_what_was_made_from_the_same_inputs_is_not_made_again(result, tmp_path, monkeypatch):
    lm, options = make_wide(), {"n_questions": 2, "layers": [1], "progress": False}
    first = run_patching(lm, *LONGER, make_questions(3), tmp_path, **options)
    calls = []
    for name in ("answer_questions", "patch_questions", "attribute", "persona_terms"):
        real = getattr(utils.experiments.patching, name)

        def count(*args, name=name, real=real, **given):
            calls.append(name)
            return real(*args, **given)

        monkeypatch.setattr(utils.experiments.patching, name, count)
    (tmp_path / "attribution.parquet").unlink()
    again = run_patching(lm, *LONGER, make_questions(3), tmp_path, **options)
    for name, table in open_patching(tmp_path).tables.items():
        pd.testing.assert_frame_equal(table, first.tables[name])
        pd.testing.assert_frame_equal(table, again.tables[name])
    assert calls == ["attribute"]
    other = run_patching(lm, *LONGER, make_questions(3), tmp_path, **{**options, "layers": [2]})
    assert other.tables["grid"]["layer"].unique().tolist() == [2]
    with pytest.raises(ValueError, match="does not hold a finished"):
        open_patching(tmp_path / "elsewhere")


def test_the_configuration_is_there(result):
    record = json.loads((result.folder / "patching.json").read_text())
    assert record["prompts"] == ["You are a nurse.", "You are a very careless student."]
    assert (record["n_questions"], record["n_asked"], record["layers"]) == (3, 5, None)


def test_exact_and_approximate_grids_have_the_same_cells(result):
    keys = ["component", "layer", "segment", "fallback"]
    grid, approximate = (result.tables[name][keys] for name in ("grid", "attribution"))
    assert len(grid.merge(approximate)) == len(grid)
    assert result.tables["agreement"].query("component == 'all'")["n_cells"].sum() == len(grid)


def test_grid_and_heads_are_what_each_of_them_gives_by_itself(result):
    lm, chosen = make_wide(), result.tables["questions"]
    for name, cells in (
        ("grid", list_cells(lm, ["resid", "attn", "mlp"], None, ["persona", "question", "last"])),
        ("heads", list_cells(lm, ["heads"], None, ["last"])),
    ):
        alone = summarise_cells(patch_questions(lm, *LONGER, chosen, cells, progress=False), rng=0)
        pd.testing.assert_frame_equal(result.tables[name], alone, atol=1e-4)


def test_what_identities_change_is_compared_with_the_base(result):
    changes = result.tables["changes"].query("kind == 'identity'")
    assert changes["identity"].tolist() == [LONGER[1], "cats", "dogs"]
    alone = persona_answers(make_wide(), make_questions(5), IDENTITIES[2:], base=LONGER[0], progress=False)
    same = ["identity", "accuracy", "accuracy_low", "changed", "shift", "shift_high", "gained", "lost", "p_value"]
    expected = alone.query("kind == 'identity'")[same].reset_index(drop=True)
    pd.testing.assert_frame_equal(changes[same].iloc[1:].reset_index(drop=True), expected, atol=1e-5)
    source = answer_questions(make_wide(), make_questions(5), system=identity_prompt(LONGER[1]), progress=False)
    assert changes["accuracy"].iloc[0] == source["correct"].mean()


def test_changes_are_listed_with_their_intervals(result):
    listed = list_changes(result.tables["changes"])
    assert listed["group"].tolist() == ["source", "b", "b", "b"]
    row = result.tables["changes"].iloc[1]
    assert listed["shift"].iloc[1] == f"{row['shift']:.2f} ({row['shift_low']:.2f} to {row['shift_high']:.2f})"


def test_the_claims_are_about_every_layer_however_coarse_the_grid(result, tmp_path):
    lm, options = make_wide(), {"n_questions": 3, "segments": ["question"], "progress": False}
    found = run_patching(lm, *LONGER, make_questions(5), tmp_path, layers=[1], **options).tables
    assert found["grid"]["layer"].unique().tolist() == [1]
    assert found["grid"]["segment"].unique().tolist() == ["question"]
    for name in ("claims", "claim_layers"):
        pd.testing.assert_frame_equal(found[name], result.tables[name], atol=1e-4)


def test_a_model_without_thirds_has_no_claims(tmp_path, caplog):
    lm = make_wide(num_hidden_layers=2)
    found = run_patching(lm, *LONGER, make_questions(2), tmp_path, n_questions=1, progress=False)
    assert "claims" not in found.tables
    assert "2 layers" in caplog.text
    assert draw_patching(found)


def test_figures_are_written(result):
    written = draw_patching(result)
    kinds = 6 * result.tables["grid"]["fallback"].nunique()
    assert len(written) == kinds + 1
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
    assert result.folder / "group_attention.png" in written


def test_summary_of_answers():
    answers = pd.DataFrame(
        {"id": ["x", "y"] * 2, "identity": ["a", "a", "b", "b"], "answer": list("ABAC"), "correct": [True, False] * 2}
    )
    table = flip_summary(answers.assign(letter_mass=0.5))
    assert table[["identity", "accuracy", "changed"]].to_numpy().tolist() == [["a", 0.5, 0.5], ["b", 0.5, 0.5]]


def test_the_command(tmp_path, monkeypatch):
    lm = make_wide()
    monkeypatch.setattr("utils.models.load.load_model", lambda *_args, **_options: lm)
    make_questions(4).to_csv(tmp_path / "q.csv", index=False)
    IDENTITIES.to_csv(tmp_path / "i.csv", index=False)
    app = typer.Typer()
    app.command("patch")(patch)
    options = ["--source", "very careless student", "--base", "nurse", "--n", "2", "--out", str(tmp_path / "out")]
    files = ["--questions", str(tmp_path / "q.csv"), "--identities", str(tmp_path / "i.csv"), "--per-group", "1"]
    done = CliRunner().invoke(app, options + files, catch_exceptions=False)
    assert done.exit_code == 0
    asked = pd.read_parquet(tmp_path / "out" / "changes.parquet").query("kind == 'identity'")["identity"]
    assert asked.tolist() == ["very careless student", "purse", "cats"]
    assert "p_adjusted" in done.output
    assert "agreement" in done.output
    assert "spearman" in done.output
    assert "tables and" in done.output
    assert (tmp_path / "out" / "grid.png").exists() or (tmp_path / "out" / "grid-fallback.png").exists()


def test_the_command_refuses_before_loading_anything(monkeypatch, unchecked):
    monkeypatch.setattr("utils.models.load.load_model", lambda *_args, **_options: pytest.fail("loaded"))
    with pytest.raises(ValueError, match=r"unknown segments \['end'\]"):
        patch(segments="end")
