import filecmp
import json
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import false_discovery_control

import utils.study.run
import utils.study.tables
from deepscan import ScanRuns
from utils.layers.thirds import early_separation, layer_thirds
from utils.models.prompts import find_template
from utils.statements.contrasts import find_contrasts, restrict
from utils.statements.load import DATA
from utils.statements.splits import split_parts
from utils.study.results import open_study
from utils.study.run import run_study
from utils.study.settings import StudyConfig

N, N_LAYERS, N_NODES = 40, 3, 24
PLANTED_LAYER = 2
PLANTED = frozenset({(2, 1), (5, 1), (7, 1), (11, -1), (13, -1)})
TABLES = [
    "localization",
    "onset",
    "agreement",
    "recurrence",
    "power",
    "layers_select",
    "layers",
    "layer_stability",
    "detection",
    "nodes",
    "overlap",
    "selectors",
]


def plant_arrays(folder, *, seed=0, layer=PLANTED_LAYER):
    """Three personas without pairs; in alpha, five nodes of one layer move with the side.

    The others have the same values at all layers, so that their ranks of the layers are tied and alpha's decide.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for persona in ("alpha", "beta", "gamma"):
        for direction in ("positive", "negative"):
            values = np.repeat(rng.normal(size=(1, N, N_NODES)), N_LAYERS, axis=0).astype(np.float32)
            if (persona, direction) == ("alpha", "positive"):
                for node, sign in PLANTED:
                    values[layer - 1, :, node] += 3 * sign
            np.save(folder / f"{persona}_{direction}.npy", values)
    return folder


def configure(arrays, **options):
    sizes = {
        "runs": 20,
        "permutations": 99,
        "flips": 99,
        "power_draws": 2,
        "n_clean": 6,
        "n_anomalous": 6,
        "alphas": 20,
        "jobs": 1,
    }
    return StudyConfig(**{"activations": str(arrays), **sizes, **options})


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    return plant_arrays(tmp_path_factory.mktemp("arrays") / "planted")


@pytest.fixture(scope="module")
def planted(arrays, tmp_path_factory):
    """The study of the planted arrays, with figures and report."""
    return run_study(tmp_path_factory.mktemp("planted"), configure(arrays), progress=False)


@pytest.fixture
def bare(monkeypatch):
    """Studies without figures and report, which take most of the time of a small one."""
    drawn = []
    monkeypatch.setattr(utils.study.run, "draw_figures", lambda study: (study.folder / "figures").mkdir(exist_ok=True))
    monkeypatch.setattr(utils.study.run, "write_report", lambda study: drawn.append(study))
    return drawn


@pytest.fixture
def calls(monkeypatch):
    """Names of the stages that are computed, in order."""
    made = []

    def count(module, name):
        original = getattr(module, name)

        def counted(*args, **options):
            made.append(name)
            return original(*args, **options)

        monkeypatch.setattr(module, name, counted)

    for name in ("divergence", "detect", "node_frequencies"):
        count(utils.study.run, name)
    for name in ("overlap", "layer_accuracy", "compare_sides"):
        count(utils.study.tables, name)
    return made


def read_tables(folder):
    return {name: pd.read_parquet(folder / f"{name}.parquet") for name in TABLES}


def assert_same_tables(left, right):
    for name, table in read_tables(left).items():
        pd.testing.assert_frame_equal(table, read_tables(right)[name], check_exact=True, obj=name)
    names = sorted(path.relative_to(left) for path in (left / "scans").rglob("*.parquet"))
    assert names == sorted(path.relative_to(right) for path in (right / "scans").rglob("*.parquet"))
    for name in names:
        ours, theirs = ScanRuns.load(left / name), ScanRuns.load(right / name)
        pd.testing.assert_frame_equal(ours.table, theirs.table, check_exact=True)
        assert all(np.array_equal(a, b) for a, b in zip(ours.nodes, theirs.nodes, strict=True))


def test_every_promised_file_is_written(planted):
    names = {path.name for path in planted.folder.iterdir()}
    assert names >= {f"{name}.parquet" for name in [*TABLES, "thirds", "topics"]}
    assert names >= {"study.json", "activations.zarr", "report.html"}
    assert {path.name for path in (planted.folder / "scans").iterdir()} == {
        "alpha.parquet",
        "beta.parquet",
        "gamma.parquet",
    }
    figures = {path.stem for path in (planted.folder / "figures").glob("*.png")}
    assert figures >= {"layer_curves", "layer_heatmap", "probe_curves", "embeddings", "detection", "scores", "node_map"}
    assert figures >= {"metric_maps", "thirds", "tests", "accuracy_curves", "power"}
    assert figures == {path.stem for path in (planted.folder / "figures").glob("*.svg")}
    assert not [path for path in planted.folder.rglob("*") if path.suffix in {".part", ".pkl", ".pickle"}]


def test_the_record_carries_configuration_versions_sizes_and_results(planted):
    record = json.loads((planted.folder / "study.json").read_text())
    assert record["config"]["runs"] == 20
    assert record["config"]["seed"] == 0
    assert {"torch", "numpy", "personascope"} <= set(record["versions"])
    assert record["best_layer"] == PLANTED_LAYER
    assert (record["n_layers"], record["n_nodes"], record["has_texts"]) == (N_LAYERS, N_NODES, False)
    assert {row["persona"]: (row["select_h1"], row["test_h1"]) for row in record["sizes"]} == dict.fromkeys(
        ["alpha", "beta", "gamma"], (10, 30)
    )
    assert [row["persona"] for row in record["personas"]] == ["alpha", "beta", "gamma"]
    assert {"layers", "scans/alpha", "figures", "report"} <= set(record["stages"])
    assert all(seconds >= 0 for seconds in record["seconds"].values())


def test_the_planted_layer_and_nodes_are_found(planted):
    assert planted.best_layer == PLANTED_LAYER
    assert planted.node_sets["alpha"] >= PLANTED
    assert len(planted.node_sets["alpha"]) <= len(PLANTED) + 1
    at_best = planted.layers.query("layer == @PLANTED_LAYER").set_index("persona")
    assert at_best.loc["alpha", "silhouette"] > at_best.loc["alpha", "silhouette_null_high"]
    assert at_best.loc["alpha", "probe_auroc_low"] > 0.9
    assert at_best.loc["beta", "probe_auroc_low"] < 0.6
    elsewhere = planted.layers.query("layer != @PLANTED_LAYER and persona == 'alpha'")
    assert (elsewhere["silhouette"] < 0.1).all()


def test_detection_has_small_p_values_for_the_planted_persona_only(planted):
    table = planted.detection.set_index("persona")
    assert table.loc["alpha", "p_value"] == pytest.approx(0.01)
    assert (table.loc[["beta", "gamma"], "p_value"] > 0.05).all()
    np.testing.assert_allclose(table["p_adjusted"], false_discovery_control(table["p_value"], method="bh"))
    assert table.loc["alpha", "precision"] > 0.9
    assert (table["chance"] == 0.5).all()
    assert (table["n_background"] == 30 - 6).all()
    assert table["node_set"].to_dict() == {name: len(held) for name, held in planted.node_sets.items()}


def test_detection_sums_up_the_scans(planted):
    for persona, runs in planted.runs.items():
        row = planted.detection.set_index("persona").loc[persona]
        mixed, null = (runs.table[runs.table["kind"] == kind]["score"] for kind in ("mixed", "null"))
        assert (len(mixed), len(null)) == (20, 20 * 99)
        assert row["score"] == pytest.approx(mixed.mean())
        assert row["null_score"] == pytest.approx(null.mean())
        assert row["score_low"] == pytest.approx(np.quantile(mixed, 0.05))
        means = null.to_numpy().reshape(99, 20).mean(axis=1)
        assert row["p_value"] == pytest.approx((1 + (means >= mixed.mean()).sum()) / 100)


def test_nodes_hold_the_frequencies_of_the_scans(planted):
    table = planted.nodes
    assert (table["layer"] == PLANTED_LAYER).all()
    for persona, runs in planted.runs.items():
        own = table[table["persona"] == persona]
        expected = np.zeros(N_NODES)
        expected[own["node"]] = own["frequency"]
        np.testing.assert_allclose(expected, runs.node_frequency())
    assert len(planted.overlap) == 3


def test_layers_are_chosen_and_reported_on_different_statements(planted):
    select = pd.read_parquet(planted.folder / "layers_select.parquet")
    assert (select["n"] == 20).all()
    assert (planted.localization["n"] == 60).all()
    assert (planted.layers[["n_h0", "n_h1"]] == 30).all(axis=None)


def test_a_repeated_study_computes_nothing_and_changes_nothing(planted, arrays, calls):
    before = {path: path.stat().st_mtime_ns for path in planted.folder.rglob("*") if path.suffix in {".png", ".html"}}
    before |= {path: path.stat().st_mtime_ns for path in (planted.folder / "scans").iterdir()}
    stages = json.loads((planted.folder / "study.json").read_text())["stages"]
    assert len(stages) >= 8
    tables = read_tables(planted.folder)
    again = run_study(planted.folder, configure(arrays), progress=False)
    assert not {"divergence", "detect", "overlap", "layer_accuracy", "compare_sides"} & set(calls)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert again.record["stages"] == stages
    for name, table in read_tables(planted.folder).items():
        pd.testing.assert_frame_equal(table, tables[name], check_exact=True)


def test_a_fresh_folder_gives_the_same_tables(planted, arrays, tmp_path, bare):
    run_study(tmp_path, configure(arrays), progress=False)
    assert_same_tables(planted.folder, tmp_path)


def test_the_number_of_jobs_changes_nothing(planted, arrays, tmp_path, bare):
    run_study(tmp_path, configure(arrays, jobs=2), progress=False)
    assert_same_tables(planted.folder, tmp_path)


def test_another_seed_gives_other_splits(planted, arrays, tmp_path, bare):
    study = run_study(tmp_path, configure(arrays, seed=1), progress=False)
    assert not study.layers["silhouette"].equals(planted.layers["silhouette"])
    assert study.node_sets["alpha"] >= PLANTED


@pytest.mark.parametrize("change", [{"score": "hc"}, {"permutations": 19}, {"tail": "left"}])
def test_other_scan_options_reuse_activations_and_layers(arrays, tmp_path, bare, calls, change):
    run_study(tmp_path, configure(arrays, runs=2, permutations=29), progress=False)
    store = {path: path.stat().st_mtime_ns for path in (tmp_path / "activations.zarr").rglob("*") if path.is_file()}
    assert calls.count("divergence") == 1
    calls.clear()
    options = {"runs": 2, "permutations": 29} | change
    study = run_study(tmp_path, configure(arrays, **options), progress=False)
    assert "divergence" not in calls
    assert calls.count("detect") == 3
    assert {path: path.stat().st_mtime_ns for path in store} == store
    assert next(iter(study.runs.values())).config["n_permutations"] == options["permutations"]
    assert len(bare) == 2  # the report is written again


def test_another_threshold_scans_nothing_again(arrays, tmp_path, bare, calls):
    run_study(tmp_path, configure(arrays, runs=3), progress=False)
    calls.clear()
    study = run_study(tmp_path, configure(arrays, runs=3, threshold=1.0), progress=False)
    assert "detect" not in calls
    assert "overlap" in calls
    sizes = study.detection.set_index("persona")["node_set"]
    assert sizes["alpha"] == len(study.node_sets["alpha"])
    assert len(bare) == 2


def test_an_interrupted_study_goes_on_where_it_stopped(arrays, tmp_path, bare, monkeypatch, planted):
    """Ctrl-C in the third scan: the first two are kept, and the result is that of an uninterrupted study."""
    original, scanned = utils.study.run.detect, []

    def interrupted(*args, **options):
        if len(scanned) == 2:
            raise KeyboardInterrupt
        scanned.append(1)
        return original(*args, **options)

    monkeypatch.setattr(utils.study.run, "detect", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_study(tmp_path, configure(arrays), progress=False)
    kept = sorted((tmp_path / "scans").iterdir())
    assert [path.name for path in kept] == ["alpha.parquet", "beta.parquet"]
    stamps = [path.stat().st_mtime_ns for path in kept]
    with pytest.raises(FileNotFoundError, match="no finished study"):
        open_study(tmp_path)
    resumed = []
    monkeypatch.setattr(
        utils.study.run, "detect", lambda *args, **options: resumed.append(1) or original(*args, **options)
    )
    monkeypatch.setattr(utils.study.run, "divergence", None)
    run_study(tmp_path, configure(arrays), progress=False)
    assert len(resumed) == 1
    assert [path.stat().st_mtime_ns for path in kept] == stamps
    assert_same_tables(planted.folder, tmp_path)


def test_bad_input_leaves_a_finished_study_as_it_is(arrays, tmp_path, bare):
    first = run_study(tmp_path, configure(arrays, runs=2, permutations=19), progress=False)
    with pytest.raises(ValueError, match="--scan-layers"):
        run_study(tmp_path, configure(arrays, runs=2, permutations=19, scan_layers=[9]), progress=False)
    assert open_study(tmp_path).record["personas"] == first.record["personas"]


def test_a_scan_file_that_was_removed_is_made_again(arrays, tmp_path, bare, calls):
    run_study(tmp_path, configure(arrays, runs=2, permutations=19), progress=False)
    (tmp_path / "scans" / "beta.parquet").unlink()
    calls.clear()
    run_study(tmp_path, configure(arrays, runs=2, permutations=19), progress=False)
    assert calls.count("detect") == 1
    assert (tmp_path / "scans" / "beta.parquet").exists()


def test_scans_of_another_layer_are_not_taken_for_the_present_ones(tmp_path, bare):
    """Two studies with different best layers, one after the other in one folder, then the first once more."""
    first = plant_arrays(tmp_path / "in" / "first", layer=1)
    second = plant_arrays(tmp_path / "in" / "second", layer=3, seed=1)
    options = {"runs": 2, "permutations": 19}
    fresh = run_study(tmp_path / "fresh", configure(first, **options), progress=False)
    for arrays in (first, second, first):
        study = run_study(tmp_path / "shared", configure(arrays, **options), progress=False)
    assert fresh.best_layer == study.best_layer == 1
    assert_same_tables(fresh.folder, study.folder)


def test_changed_arrays_are_read_again(tmp_path, bare):
    arrays = plant_arrays(tmp_path / "in", layer=1)
    out = tmp_path / "out"
    assert run_study(out, configure(arrays, runs=2, permutations=19), progress=False).best_layer == 1
    plant_arrays(arrays, layer=3)
    study = run_study(out, configure(arrays, runs=2, permutations=19), progress=False)
    assert study.best_layer == 3
    stored = study.activations.sel(persona="alpha", layer=3).sel(direction="positive")
    np.testing.assert_array_equal(stored, np.load(arrays / "alpha_positive.npy")[2])


def test_further_layers_are_scanned_beside_the_best(arrays, tmp_path, bare):
    study = run_study(tmp_path, configure(arrays, scan_layers=[1, 2, 3, 1]), progress=False)
    table = study.detection
    assert list(zip(table["layer"], table["persona"], strict=True)) == list(
        product([1, 2, 3], ["alpha", "beta", "gamma"])
    )
    assert sorted(path.name for path in (tmp_path / "scans").iterdir()) == [
        "alpha.parquet",
        "beta.parquet",
        "gamma.parquet",
        "layer-1",
        "layer-3",
    ]
    adjusted = {
        "p_value": "p_adjusted",
        "separation_p": "separation_p_adjusted",
        "calibrated_p": "calibrated_p_adjusted",
    }
    for name, column in adjusted.items():
        np.testing.assert_allclose(table[column], false_discovery_control(table[name]))
    alpha = table[table["persona"] == "alpha"].set_index("layer")["p_value"]
    assert alpha[2] == pytest.approx(0.01)
    assert (alpha[[1, 3]] > 0.01).all()
    assert set(study.nodes["layer"]) == {1, 2, 3}
    # The other personas have the same values at all layers, and their scans are the same.
    beta = table[table["persona"] == "beta"].drop(columns=["layer", *adjusted.values()])
    assert (beta.nunique() <= 1).all()


def test_one_vs_rest(arrays, tmp_path, bare):
    study = run_study(tmp_path, configure(arrays, contrast="one-vs-rest"), progress=False)
    assert study.best_layer == PLANTED_LAYER
    sizes = pd.DataFrame(study.record["sizes"]).set_index("persona")
    assert (sizes["test_h1"] == 30).all()
    assert (sizes["test_h0"] == 60).all()
    assert study.node_sets["alpha"] >= PLANTED
    assert study.detection.set_index("persona").loc["alpha", "p_value"] == pytest.approx(0.01)


def test_individual_scan(arrays, tmp_path, bare):
    study = run_study(tmp_path, configure(arrays, scan="individual", score="hc"), progress=False)
    table = study.detection.set_index("persona")
    assert table.loc["alpha", "p_value"] == pytest.approx(0.01)
    assert table.loc["alpha", "auroc"] > 0.8
    assert 0.2 < table.loc["beta", "auroc"] < 0.8
    assert {node for node, _ in study.node_sets["alpha"]} >= {node for node, _ in PLANTED}
    assert all(runs.config["scan"] == "individual" for runs in study.runs.values())


def test_a_single_persona(arrays, tmp_path):
    """Nothing to overlap with; figures and report are there all the same."""
    study = run_study(tmp_path, configure(arrays, personas=["beta"], runs=2, permutations=19), progress=False)
    assert study.personas == ["beta"]
    assert study.overlap.empty
    assert (tmp_path / "figures" / "node_map.png").exists()
    assert (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_anomalous": 31}, "'alpha' has 30 H0 .*and 31 H1 statements"),
        ({"n_clean": 21}, "needs 31.*smaller --clean"),
        ({"personas": ["alhpa"]}, "did you mean alpha"),
        ({"scan_layers": [4]}, r"--scan-layers \[4\] are not extracted; there are layers 1 to 3"),
        ({"layers": [1, 2]}, "2 layers are named and the arrays have 3"),
        ({"activations": "/nowhere"}, "no folder /nowhere"),
    ],
)
def test_bad_input_is_refused(arrays, tmp_path, options, message, calls):
    with pytest.raises((ValueError, OSError), match=message):
        run_study(tmp_path / "out", configure(arrays, **options), progress=False)
    assert not calls


def test_a_select_part_too_small_is_refused_before_the_long_work(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "in"
    folder.mkdir()
    for direction in ("positive", "negative"):
        np.save(folder / f"a_{direction}.npy", rng.normal(size=(17, 5)).astype(np.float32))
    with pytest.raises(ValueError, match=r"'a' has 4 .*select"):
        run_study(tmp_path / "out", configure(folder, n_clean=2, n_anomalous=2), progress=False)
    assert not (tmp_path / "out" / "activations.zarr").exists()


@pytest.mark.parametrize("inside", [False, True])
def test_a_folder_that_cannot_be_written(arrays, tmp_path, inside):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"cannot write to .*choose another folder with --out"):
        run_study(tmp_path / "file" / "deeper" if inside else tmp_path / "file", configure(arrays), progress=False)


def test_open_study_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="run `personascope study"):
        open_study(tmp_path)


def test_one_persona_at_a_layer(planted):
    last = planted.personas[-1]
    acts, layer = planted.activations, int(planted.activations["layer"][0])
    own = np.flatnonzero(acts["persona"].to_numpy() == last)
    np.testing.assert_array_equal(planted.sel(last, layer=layer), acts.to_numpy()[0][own])
    assert planted.sel(last).dims == ("statement", "node")
    assert planted.sel(last)["layer"] == planted.best_layer
    with pytest.raises(ValueError, match=f"did you mean {last}"):
        planted.sel(last + "x")
    with pytest.raises(ValueError, match="no activations of layer 77; it has"):
        planted.sel(last, layer=77)
    with pytest.raises(ValueError, match="no token position 'mean'; it has"):
        planted.sel(last, position="mean")


def test_a_study_says_what_it_is_in_a_line(planted):
    assert str(planted.folder) in repr(planted)
    assert f"{len(planted.personas)} personas" in repr(planted)
    assert len(repr(planted)) < 250


def check_one_statement(study, lm):
    """What is stored for a statement is what the bare model gives for its prompt."""
    statement = study.activations.isel(statement=50)
    template = find_template(lm.tokenizer, "system")
    ids = lm.tokenizer(template.before + str(statement["text"].item()) + template.after, add_special_tokens=False)
    with torch.inference_mode():
        states = lm.model(torch.tensor([ids["input_ids"]]), output_hidden_states=True).hidden_states
    for layer in (0, 1, 15, 29):
        np.testing.assert_allclose(statement.sel(layer=layer), states[layer][0, -1], rtol=1e-3, atol=2e-3)


def test_end_to_end_on_the_default_model(tmp_path, bare, lm):
    """Eighty shipped statements of two personas through the real model; a repeat leaves everything as it is."""
    shipped = pd.read_csv(DATA / "statements.csv")
    names = ["extraversion", "anti-immigration"]
    shipped[shipped["persona"].isin(names)].groupby(["persona", "direction"]).head(20).to_csv(
        tmp_path / "some.csv", index=False
    )
    config = StudyConfig(
        statements=str(tmp_path / "some.csv"),
        layers=[0, 1, 8, 15, 22, 29, 30],
        runs=4,
        permutations=19,
        n_clean=2,
        n_anomalous=3,
        alphas=10,
        jobs=1,
    )
    study = run_study(tmp_path / "out", config, progress=False)
    assert sorted(study.personas) == sorted(names)
    assert study.activations.shape == (7, 80, 576)
    assert np.isfinite(study.activations.to_numpy()).all()
    assert study.record["activations"]["position"] == ["last", "mean"]
    assert study.position == "last"
    assert study.record["has_texts"]
    assert study.form["form_accuracy"].between(0, 1).all()
    bottom = study.layers[study.layers["layer"] == 0]
    assert bottom["silhouette"].isna().all()
    above = study.layers[study.layers["layer"] > 0]
    assert above["silhouette"].notna().all()
    assert study.best_layer in above["layer"].to_list()
    assert {row["persona"]: (row["paired"], row["test_h1"]) for row in study.record["sizes"]} == dict.fromkeys(
        names, (True, 15)
    )
    assert study.detection["p_value"].between(0.05, 1).all()
    check_one_statement(study, lm)
    first = read_tables(study.folder)
    again = run_study(tmp_path / "out", config, progress=False)
    assert again.record["stages"] == study.record["stages"]
    for name, table in read_tables(again.folder).items():
        pd.testing.assert_frame_equal(table, first[name], check_exact=True)
    assert filecmp.cmp(again.folder / "form.parquet", study.folder / "form.parquet")


def test_the_thirds_are_judged_on_the_test_part(planted):
    contrasts = find_contrasts(planted.activations)
    part = split_parts(planted.activations, rng=0)
    test = [restrict(contrast, part == "test") for contrast in contrasts]
    for metric, own in planted.thirds.groupby("metric"):
        expected = layer_thirds(planted.activations, test, metric=metric)
        pd.testing.assert_frame_equal(own[expected.columns].reset_index(drop=True), expected)
    expected = layer_thirds(planted.activations, test)
    assert planted.record["thirds"]["d"] == pytest.approx(expected["d"].mean())
    early = early_separation(planted.activations, test, n_permutations=99, rng=0)
    assert planted.record["thirds"]["n_early"] == (early["early_p_adjusted"] <= 0.05).sum() == 1


def test_tables_that_no_longer_apply_are_removed(arrays, tmp_path, bare):
    """Thirds take every layer, stability is made on request."""
    options = {"runs": 2, "permutations": 19}
    study = run_study(tmp_path, configure(arrays, **options, stability=2), progress=False)
    assert study.thirds is not None
    assert list(study.node_stability["persona"]) == ["alpha", "beta", "gamma"]
    study = run_study(tmp_path, configure(arrays, **options, layers=[2, 3, 4]), progress=False)
    assert study.thirds is None
    assert study.record["thirds"] is None
    assert study.node_stability is None
