from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import utils.experiments.subnetworks
from utils.experiments.subnetworks import SubnetworksConfig, draw_subnetworks, open_subnetworks, run_subnetworks
from utils.statements.load import load_statements
from utils.statements.splits import draw_parts

CONFIG = SubnetworksConfig(
    "openness",
    unrelated="agreeableness",
    scores=("relu",),
    sparsities=(0.1, 0.3),
    most_perplexity=1e9,
    n_pairs=80,
    n_shuffles=1,
    n_questions=4,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    from tiny import make_lm

    lm = make_lm(max_position_embeddings=1024)
    statements = load_statements(personas=["openness", "agreeableness"])
    folder = tmp_path_factory.mktemp("subnetworks")
    return lm, statements, run_subnetworks(lm, statements, CONFIG, folder, progress=False)


def test_masks_and_controls_are_measured_on_pairs_that_none_was_made_from(made):
    _, statements, result = made
    names = {"mask", "opposite mask", "wanda mask", "unrelated persona", "shuffled sides 1"}
    assert set(result.masks) == names
    assert set(result.summary["condition"]) == names | {"dense", "system prompt", "few-shot", "mask + prompt"}
    assert result.record["sparsity"] in CONFIG.sparsities
    for mask in result.masks.values():
        assert mask.sparsity == pytest.approx(result.record["sparsity"], abs=0.02)
    own = statements["persona"] == "openness"
    part = draw_parts(statements, n_pairs=80)
    test = set(statements.loc[own & (part == "test"), "pair"])
    measured = result.measured[result.measured["measure"] == "likelihood"]
    assert set(measured["unit"]) == test
    assert result.record["n_pairs"]["test"] == len(test)


def test_it_opens_as_it_was_and_is_drawn(made):
    _, _, result = made
    opened = open_subnetworks(result.folder)
    pd.testing.assert_frame_equal(opened.summary, result.summary)
    assert opened.record["config"]["persona"] == "openness"
    drawn = [path.stem for path in draw_subnetworks(opened)]
    assert drawn == ["sweep_likelihood", "sweep_perplexity", "likelihood", "self_report", "two_options", "perplexity"]
    with pytest.raises(ValueError, match="mask run"):
        open_subnetworks(result.folder / "figures")


def test_what_is_there_is_not_made_again(made, monkeypatch):
    lm, statements, result = made
    real, asked = utils.experiments.subnetworks.evaluate, []

    def count(*args, **options):
        asked.append(len(args[1]))
        return real(*args, **options)

    monkeypatch.setattr(utils.experiments.subnetworks, "evaluate", count)
    kept = {
        path: path.stat().st_mtime_ns
        for path in result.folder.rglob("*.*")
        if path.suffix in {".parquet", ".safetensors"}
    }
    run_subnetworks(lm, statements, CONFIG, result.folder, progress=False)
    assert not asked
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    (result.folder / "measured.parquet").unlink()
    again = run_subnetworks(lm, statements, CONFIG, result.folder, progress=False)
    assert asked == [5, 4]
    stable = ~again.measured["measure"].eq("seconds")
    np.testing.assert_array_equal(again.measured.loc[stable, "value"], result.measured.loc[stable, "value"])


def test_an_unknown_persona_is_named(made, tmp_path):
    lm, statements, _ = made
    with pytest.raises(ValueError, match="'warm'"):
        run_subnetworks(lm, statements, replace(CONFIG, persona="warm"), tmp_path, progress=False)
