from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from planted import make_acts
from wired import NODES

import utils.causal.measure
import utils.experiments.causal
from utils.causal.settings import CausalConfig, Check
from utils.experiments.causal import open_causal, run_causal
from utils.experiments.causal_report import describe_found, draw_causal, main_effects
from utils.statements.contrasts import find_contrasts
from utils.statements.splits import hold_out, split_parts

CHECKS = (Check("steer", "likelihood", "neutral"), Check("ablate", "likelihood", "persona"))
CONFIG = CausalConfig(
    checks=CHECKS,
    n_pairs=12,
    n_random=99,
    n_matched=39,
    n_curve=5,
    size=len(NODES),
    strengths=(-0.2, 0.4),
    sizes=(2, 10),
    layers=(1, 2, 3),
    n_cost=4,
    permutations=19,
)
QUIET = {"progress": False}


@pytest.fixture(scope="module")
def result(wired, tmp_path_factory):
    lm, study = wired
    return run_causal(lm, study, CONFIG, out=tmp_path_factory.mktemp("causal"), **QUIET)


def test_the_scan_finds_the_wired_nodes_on_their_sides(result):
    for layer, own in result.nodes[result.nodes["selector"] == "scan"].query("size == 5").groupby("layer"):
        assert dict(zip(own["node"], own["sign"], strict=True)) == NODES, layer


def test_changing_them_is_singled_out_from_random_sets(result):
    table = main_effects(result).set_index(["mode", "selector"])
    steered, ablated = table.loc["steer", "scan"], table.loc["ablate", "scan"]
    # Pushed, the model leans to the persona; taken away, asking for the persona in words no longer works.
    assert steered["low"] > 0
    assert ablated["high"] < 0
    for row in (steered, ablated):
        assert row["p_value"] == pytest.approx(2 / 100)
        assert row["p_adjusted"] <= 0.05
        assert abs(row["effect"]) > 2 * max(abs(row["random_low"]), abs(row["random_high"]))
    # The nodes hardly vary but by the persona, so that nodes matched in spread are these nodes themselves.
    assert steered["p_matched"] > 0.05
    assert table.loc["steer", "persona prompt"]["effect"] > 0
    assert np.isnan(table.loc["steer", "persona prompt"]["p_value"])


def test_the_effect_grows_with_the_strength_and_changes_its_sign(result):
    table = result.effects
    layer = result.record["layer"]
    scan = table[(table["selector"] == "scan") & (table["mode"] == "steer") & (table["size"] == 5)]
    scan = scan[scan["layer"] == layer].sort_values("strength")
    assert list(scan["strength"]) == [-0.2, 0.2, 0.4]
    assert scan["effect"].is_monotonic_increasing
    assert scan["effect"].iloc[0] < 0


def test_the_model_is_left_as_it_was(wired, tmp_path):
    lm, study = wired
    before = {name: weight.clone() for name, weight in lm.model.state_dict().items()}
    small = replace(CONFIG, n_random=2, n_matched=0, strengths=(), sizes=(), layers=(), n_cost=0)
    run_causal(lm, study, small, out=tmp_path, **QUIET)
    assert all(before[name].equal(weight) for name, weight in lm.model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in lm.model.modules())


def test_measured_pairs_are_test_pairs_and_chose_no_node(wired, result):
    _, study = wired
    measured = {name for pair in result.record["pairs"] for name in pair}
    assert len(measured) == 2 * CONFIG.n_pairs
    assert all(a.split("-")[1] == b.split("-")[1] for a, b in result.record["pairs"])
    part = dict(zip(study.activations["statement"].to_numpy(), split_parts(study.activations), strict=True))
    assert {part[name] for name in measured} == {"test"}
    assert result.record["n_rest"] == [80 - CONFIG.n_pairs] * 2


def test_an_interrupted_check_goes_on(wired, tmp_path, monkeypatch):
    lm, study = wired
    small = replace(CONFIG, n_random=30, n_matched=0, strengths=(), sizes=(), layers=(), n_cost=0)
    whole = run_causal(lm, study, small, out=tmp_path / "whole", **QUIET)
    real, calls = utils.causal.measure.score_interventions, []

    def stop_at_third(*args, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(utils.causal.measure, "score_interventions", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        run_causal(lm, study, small, out=tmp_path, **QUIET)
    run_causal(lm, study, small, out=tmp_path, **QUIET)
    n_parts = len(list((tmp_path / "parts").iterdir()))
    assert len(calls) == n_parts + 1  # two before, the one that was stopped, and the rest
    again = run_causal(lm, study, small, out=tmp_path, **QUIET)
    assert len(calls) == n_parts + 1
    pd.testing.assert_frame_equal(again.effects, whole.effects)
    pd.testing.assert_frame_equal(open_causal(tmp_path).effects, again.effects)


def test_figures_and_report_show_it(wired, result, tmp_path):
    _, study = wired
    own = result.folder / "figures"
    own.mkdir()
    (own / "mine.png").write_bytes(b"somebody else's")
    names = [path.stem for path in draw_causal(result, study)]
    assert names == ["controls_1", "controls_2", "strength_steer", "size_ablate", "size_steer", "layers", "costs"]
    fewer = replace(result, costs=None, effects=result.effects.query("layer == @result.record['layer']"))
    assert "costs" not in [path.stem for path in draw_causal(fewer, study)]
    assert {path.stem for path in own.glob("*.*g")} == {*names, "mine"} - {"layers", "costs"}
    found = describe_found(result)
    assert "higher than random sets" in found[1]
    assert "lower than random sets" in found[2]


def test_costs_are_measured_against_the_model_as_it_is(result):
    clean = result.costs[result.costs["selector"] == "none"].iloc[0]
    assert clean["perplexity_ratio"] == 1
    assert clean["accuracy_change"] == 0
    assert set(result.costs["mode"]) == {"", "steer", "ablate"}
    drawn = result.costs[result.costs["selector"] == "random"]
    assert (drawn["n_sets"] == CONFIG.n_curve).all()


def test_overwriting_from_other_statements_is_a_check_too(wired, tmp_path):
    lm, study = wired
    checks = (Check("resample", "self_report", "neutral"), Check("patch", "self_report", "persona"))
    small = replace(CONFIG, checks=checks, n_random=3, n_matched=0, strengths=(), sizes=(), layers=(), n_cost=0)
    table = main_effects(run_causal(lm, study, small, out=tmp_path, **QUIET))
    assert set(table["mode"]) == {"resample", "patch"}
    assert np.isfinite(table.loc[table["selector"] == "dense direction", "effect"]).all()


def test_what_is_asked_twice_is_run_once_and_costs_go_when_they_are_left_out(wired, tmp_path):
    lm, study = wired
    small = replace(CONFIG, n_random=3, n_matched=0, strengths=(0.0, 0.4, 0.4), sizes=(2, 2), layers=(1, 1))
    first = run_causal(lm, study, small, out=tmp_path, **QUIET)
    assert len(main_effects(first).query("mode == 'steer' and selector == 'scan'")) == 1
    assert first.effects.query("strength == 0.0 and mode == 'steer'")["effect"].eq(0).all()
    assert open_causal(tmp_path).costs is not None
    run_causal(lm, study, replace(small, n_cost=0), out=tmp_path, **QUIET)
    assert open_causal(tmp_path).costs is None


def test_few_random_sets_are_called_too_few(wired, tmp_path):
    lm, study = wired
    small = replace(CONFIG, n_random=9, n_matched=0, strengths=(), sizes=(), layers=(), n_cost=0)
    found = describe_found(run_causal(lm, study, small, out=tmp_path, **QUIET))
    assert "take 80 random sets or more" in found[1]


@pytest.mark.usefixtures("unchecked")
def test_another_personas_nodes_are_chosen_without_what_is_measured_on(monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    both = [make_acts(rng.normal(size=(1, 80, 12)), persona=name) for name in ("a", "b")]
    acts = xr.concat(both, dim="statement").assign_coords(layer=[1])
    held = hold_out(find_contrasts(acts, contrast="one-vs-rest", personas=["a"])[0], split_parts(acts), 10)
    pd.DataFrame({"persona": ["a", "b"], "layer": 1, "accuracy": 0.5}).to_parquet(tmp_path / "layers_select.parquet")
    study = SimpleNamespace(
        folder=tmp_path, best_layer=1, activations=acts, personas=["a", "b"], config={"contrast": "one-vs-rest"}
    )
    scanned = []
    real = utils.experiments.causal.scan_layer
    monkeypatch.setattr(utils.experiments.causal, "scan_layer", lambda *args: scanned.append(args[2]) or real(*args))
    options = {"n_runs": 5, "n_permutations": 0, "n_clean": 8, "n_anomalous": 8}
    found = utils.experiments.causal._other_persona(study, held, 1, 2, options)
    assert set(found) == {"scan of b"}
    assert not set(scanned[0].rows) & {*held.h0, *held.h1}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"persona": "grumpy"}, "unknown persona 'grumpy'"),
        ({"layer": 9}, r"layers \[9\]"),
        ({"layers": (0,)}, r"layers \[0\]"),
        ({"checks": ()}, "nothing to check"),
        ({"n_random": 0}, "n_random"),
        ({"n_pairs": 500}, "500 pairs"),
        ({"n_pairs": 4}, "n_pairs"),
        ({"n_pairs": 58}, "measure on at most 50 pairs"),
        ({"size": 64}, "64 nodes were asked for"),
        ({"scope": "some"}, "unknown scope"),
        ({"n_cost": -4}, "n_cost"),
        ({"sizes": (3, 0)}, "set sizes"),
        ({"strength": float("nan")}, "strengths"),
    ],
)
def test_bad_input_is_named(wired, tmp_path, changes, message):
    lm, study = wired
    with pytest.raises(ValueError, match=message):
        run_causal(lm, study, replace(CONFIG, **changes), out=tmp_path, **QUIET)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("words", [("push", "likelihood", "neutral"), ("steer", "loudness", "neutral")])
def test_a_check_that_is_none_is_refused(wired, tmp_path, words):
    lm, study = wired
    with pytest.raises(ValueError, match=r"push|loudness"):
        run_causal(lm, study, replace(CONFIG, checks=(Check(*words),)), out=tmp_path, **QUIET)


def test_a_study_of_another_model_is_refused(wired, tiny, tmp_path):
    with pytest.raises(ValueError, match="study of another model"):
        run_causal(tiny(), wired[1], CONFIG, out=tmp_path, **QUIET)


def test_an_unfinished_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="finished causal check"):
        open_causal(tmp_path)
