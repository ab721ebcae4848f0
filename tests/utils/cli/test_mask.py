import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from utils.cli.mask import mask_app
from utils.subnetworks.calibration import SIDES, Calibration
from utils.subnetworks.masks import PersonaMask


@pytest.fixture
def run(tiny, monkeypatch):
    """Runs ``personascope mask ...`` on a tiny model."""
    lm = tiny(max_position_embeddings=1024)
    monkeypatch.setattr("utils.models.load.load_model", lambda *_args, **_options: lm)

    def call(*arguments):
        return CliRunner().invoke(mask_app, [str(argument) for argument in arguments], catch_exceptions=False)

    return call


def test_from_statements_to_answers(run, tmp_path):
    calibration, mask = tmp_path / "c.safetensors", tmp_path / "open.safetensors"
    shown = run("calibrate", "openness", calibration, "--pairs", 80).output
    assert "self_attn.q_proj" in shown
    assert "80 + 80 statements" in shown
    assert "% of" not in run("build", calibration, mask, "--sparsity", 0.25, "--score", "relu").output
    built = PersonaMask.load(mask)
    assert built.config["score"] == "relu"
    assert built.sparsity == pytest.approx(0.25)
    shown = run("evaluate", "openness", mask, "--pairs", 80, "--questions", 4, "--out", tmp_path / "out").output
    assert all(name in shown for name in ("dense", "system prompt", "few-shot", "open + prompt", "perplexity"))
    measured, summary = (pd.read_parquet(tmp_path / "out" / f"{name}.parquet") for name in ("measured", "summary"))
    likelihood = measured[(measured["measure"] == "likelihood") & (measured["condition"] == "open")]["value"]
    assert f"({len(likelihood)} held-out pairs)" in shown
    row = summary[(summary["measure"] == "likelihood") & (summary["condition"] == "open")]
    assert row["estimate"].item() == pytest.approx(likelihood.mean())
    shown = run("generate", "Who are you?", mask, "--max-tokens", 3, "--system", "You are kind.").output
    assert all(f"{name}: " in shown for name in ("dense", "system prompt", "open"))


@pytest.mark.parametrize("score", ["disjoint", "wanda"])
def test_both_sides_can_be_built(run, tmp_path, score):
    calibration = tmp_path / "c.safetensors"
    run("calibrate", "openness", calibration, "--other", "extraversion", "--pairs", 4)
    masks = []
    for side in ("positive", "negative"):
        path = tmp_path / f"{side}.safetensors"
        run("build", calibration, path, "--side", side, "--score", score, "--sparsity", 0.5, "--layers", "1,3")
        masks.append(PersonaMask.load(path))
    assert {linear.layer for linear in masks[0].bits} == {1, 3}
    assert (masks[0].jaccard(masks[1]).max() == 0) == (score == "disjoint")


def test_options_of_the_norms_reach_the_mask(run, tmp_path):
    calibration, mask = tmp_path / "c.safetensors", tmp_path / "m.safetensors"
    run("calibrate", "openness", calibration, "--pairs", 4)
    run("build", calibration, mask, "--no-length-normalised", "--tau", 0.5)
    config = PersonaMask.load(mask).config
    assert (config["length_normalised"], config["tau"]) == (False, 0.5)


def test_shuffled_sides_are_of_the_same_statements(run, tmp_path):
    found = {}
    for name, options in {"true": [], "shuffled": ["--shuffle", 3]}.items():
        run("calibrate", "openness", tmp_path / name, "--pairs", 4, *options)
        found[name] = Calibration.load(tmp_path / name)
    assert found["true"].seen == found["shuffled"].seen
    linear = found["true"].linears[0].name
    totals = [sum(each.sums[side][linear] for side in SIDES) for each in found.values()]
    np.testing.assert_allclose(*totals, rtol=1e-4)
    assert not np.allclose(*(each.sums["positive"][linear] for each in found.values()), rtol=1e-3)
    with pytest.raises(ValueError, match="without --other"):
        run("calibrate", "openness", tmp_path / "c", "--shuffle", 1, "--other", "extraversion")


def test_a_sparsity_out_of_range_is_refused_before_anything_is_read(run, tmp_path):
    with pytest.raises(ValueError, match=r"in \[0, 1\)"):
        run("build", tmp_path / "none", tmp_path / "m", "--sparsity", 1.0)


def test_layers_that_are_no_numbers(run, tmp_path):
    run("calibrate", "openness", tmp_path / "c.safetensors", "--pairs", 2)
    with pytest.raises(ValueError, match="--layers 'one' is not a list"):
        run("build", tmp_path / "c.safetensors", tmp_path / "m", "--layers", "one")
