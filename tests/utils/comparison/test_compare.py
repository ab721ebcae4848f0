import json
import re
import warnings
from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba
from scipy.stats import false_discovery_control

import utils.comparison.report
from utils.activations.layout import create_store
from utils.comparison.compare import compare_studies
from utils.comparison.differences import list_differences
from utils.comparison.report import run_compare, write_comparison
from utils.comparison.tables import comparison_table, persona_table, study_table
from utils.records import write_frame
from utils.study.results import open_study
from utils.study.settings import StudyConfig
from utils.viz.comparison import (
    plot_depth_curve,
    plot_depth_curves,
    plot_detection_map,
    plot_study_overlaps,
    plot_verdicts,
)

ALL = ("alpha", "beta", "gamma")


@pytest.fixture(autouse=True)
def _strict():
    """Warnings are errors, except of libraries about each other's old names; figures are closed afterwards."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        yield
    plt.close("all")


def statements_of(persona, *, paired=True, changed=False):
    rows = []
    for i in range(8):
        for direction in ("positive", "negative"):
            text = f"{persona} {direction} {i}" + ("!" if changed and i == 0 else "")
            pair = f"{persona}-{i}" if paired else None
            rows.append((f"{persona}-{i}-{direction}", persona, "topic", direction, text, pair))
    return pd.DataFrame(rows, columns=["id", "persona", "topic", "direction", "statement", "pair"])


def layer_rows(persona, n_layers, level):
    for layer in range(n_layers + 1):
        value = level + layer / 100
        row = {"persona": persona, "topic": "topic", "layer": layer}
        for name in ("silhouette", "probe_auroc"):
            row |= {name: value, f"{name}_low": value - 0.01, f"{name}_high": value + 0.01}
        yield row | {"silhouette_null_low": 0.0, "silhouette_null_high": level + 0.015}


def locate_rows(persona, n_layers, position, level):
    """Pair accuracy rises by 0.1 a layer, from layer 1 on, and is above chance from layer 2 on."""
    for layer in range(n_layers + 1):
        value = np.nan if layer == 0 else level + layer / 10
        row = {"persona": persona, "topic": "topic", "layer": layer, "n": 6, "paired": True, "accuracy": value}
        row |= {"accuracy_low": value - 0.2, "accuracy_high": value + 0.2, "p_value": np.nan, "p_joint": 0.01}
        yield row | {"p_adjusted": np.nan if layer == 0 else 0.5 if layer == 1 else 0.01, "position": position}


@pytest.fixture
def make(tmp_path):
    """Writes a small study folder: ``make(name, personas=…, **options of the study)``."""

    def write(
        name="one", *, personas=ALL, n_layers=4, judged=True, p_values=None, frame=None, sizes=(6, 6), paired=True,
        model="tiny", made=None, jaccard=0.2, texts=True, **options,
    ):  # fmt: skip
        folder = tmp_path / name
        made = {"component": "resid", "position": "last", "role": "system", "model_dtype": "float32"} | (made or {})
        config = StudyConfig(**{"n_clean": 15, "n_anomalous": 15, **options})  # as a study writes what it fitted
        seed = sum(map(ord, name))
        rng = np.random.default_rng(seed)
        p_values = dict(zip(personas, rng.uniform(0.1, 1, len(personas)), strict=True)) | (p_values or {})
        layers = [row for i, p in enumerate(personas) for row in layer_rows(p, n_layers, 0.5 + i / 10)]
        detection = pd.DataFrame({"persona": personas, "layer": 2, "p_value": [p_values[p] for p in personas]})
        for column in ("precision", "precision_low", "precision_high", "recall", "recall_low", "recall_high"):
            detection[column] = rng.uniform(size=len(personas))
        detection = detection.assign(p_adjusted=detection["p_value"], chance=0.5, auroc=np.nan)
        accuracy = rng.uniform(0.5, 0.9, size=len(personas))
        detection = detection.assign(accuracy=accuracy, accuracy_low=accuracy - 0.1, accuracy_high=accuracy + 0.1)
        detection = detection.assign(separation_p=0.01, separation_p_adjusted=0.02, calibrated_p=0.04)
        detection = detection.assign(calibrated_p_adjusted=0.04, n_family=3, n_bh=6, n_calibrated=9)
        detection = detection.assign(node_set=5, null_node_set=2.5, n_background=20)
        pairs = [(a, b, 4 + i, 8 + i) for i, (a, b) in enumerate(combinations(personas, 2))]
        overlap = pd.DataFrame(pairs, columns=["a", "b", "size_a", "size_b"])
        overlap = overlap.assign(shared=2, opposite=1, jaccard=jaccard, overlap_coefficient=0.5, hypergeometric=0.3)
        overlap = overlap.assign(expected_jaccard=0.1, p_value=0.01, p_adjusted=0.5)
        tables = {"layers": pd.DataFrame(layers), "detection": detection, "overlap": overlap}
        # The scans are at the first position; the second has other numbers, which must not be taken for it.
        first = made["position"] if isinstance(made["position"], str) else made["position"][0]
        at = [(first, 0.4, 1), ("statement", 0.1, 3)]
        tables["localization"] = pd.DataFrame(
            [row for position, level, _ in at for p in personas for row in locate_rows(p, n_layers, position, level)]
        )
        tables["onset"] = pd.DataFrame(
            [
                {"persona": p, "topic": "topic", "onset": onset, "onset_low": onset, "onset_high": onset + 1,
                 "p_adjusted": 0.2 if p == "gamma" else 0.01, "position": position}
                for position, _, onset in at
                for p in personas
            ]
        )  # fmt: skip
        tables["form"] = pd.DataFrame({"persona": personas, "form_accuracy": 0.5, "gives_away": False})
        thirds = {"first": 0.1, "middle": 0.2, "last": 0.3, "d": 0.1}
        row = {
            f"{n}{end}": v + shift
            for n, v in thirds.items()
            for end, shift in (("", 0), ("_low", -0.05), ("_high", 0.05))
        }
        row["verdict"] = "supported"
        if judged:
            by_silhouette = {"d": -0.3, "d_low": -0.4, "d_high": -0.2, "verdict": "not supported"}
            early = {"early_p": 0.01, "early_p_adjusted": 0.02, "first_layer": 1.0}
            tables["thirds"] = pd.DataFrame(
                [
                    {"metric": metric, "persona": p, "topic": "topic", **row, **other, **early}
                    for metric, other in (("accuracy", {}), ("silhouette", by_silhouette))
                    for p in personas
                ]
            )
        for table, content in tables.items():
            write_frame(folder / f"{table}.parquet", content)
        if texts:
            frame = pd.concat([statements_of(p) for p in personas]) if frame is None else frame
            rows = frame.reset_index(drop=True).assign(order=range(len(frame)), key=frame["id"].to_numpy())
            rows = rows.astype({"pair": "string"})
            store = create_store(
                folder / "activations.zarr", layers=[1], d_node=2, rows=rows, batch_rows=64, dtype="float32", config={}
            )
            for batch in store.missing():
                store.write(batch, np.zeros((1, len(batch), 2), np.float32))
        record = {
            "config": vars(config), "versions": {"personascope": "1"}, "activations": {"model": model} | made,
            "n_layers": n_layers, "n_nodes": 2, "best_layer": 2, "has_texts": texts,
            "thirds": row | {"n_early": 2} if judged else None,
            "sizes": [
                {"persona": p, "paired": paired, "select_h0": 2, "select_h1": 2, "test_h0": sizes[0], "test_h1": sizes[1]}
                for p in personas
            ],
        }  # fmt: skip
        (folder / "study.json").write_text(json.dumps(record))
        return open_study(folder)

    return write


def options_of(studies):
    return list(list_differences(studies)["option"].unique())


def test_curves_lie_over_relative_depth_with_the_values_of_each_study(make):
    studies = {"short": make("short", n_layers=4), "long": make("long", n_layers=8)}
    curves = compare_studies(studies).curves
    for name, n_layers in (("short", 4), ("long", 8)):
        own = curves[curves["study"] == name]
        np.testing.assert_array_equal(own["depth"], np.tile(np.arange(n_layers + 1) / n_layers, len(ALL)))
        held = studies[name].layers
        pd.testing.assert_frame_equal(own[held.columns].reset_index(drop=True), held)
        accuracy = np.r_[np.nan, 0.4 + np.arange(1, n_layers + 1) / 10]
        np.testing.assert_allclose(own["accuracy"], np.tile(accuracy, len(ALL)))
        np.testing.assert_allclose(own["accuracy_high"] - own["accuracy_low"], np.tile(accuracy * 0 + 0.4, len(ALL)))


def test_the_numbers_of_a_persona_are_those_of_its_study_at_the_scanned_layer_and_position(make):
    studies = {"short": make("short"), "long": make("long", n_layers=8, made={"position": ["mean", "statement"]})}
    table = compare_studies(studies).detection.set_index(["study", "persona"])
    for name, study in studies.items():
        own, held = table.loc[name], study.detection.set_index("persona")
        columns = held.columns.intersection(own.columns)
        assert (
            columns.isin(["accuracy", "separation_p_adjusted", "calibrated_p_adjusted", "p_adjusted", "n_bh"]).sum()
            == 5
        )
        pd.testing.assert_frame_equal(own[columns], held[columns])
        # Onset is layer 1, up to layer 2, at the position of the scans.
        depths = own[["onset_depth", "onset_depth_low", "onset_depth_high"]].to_numpy()
        np.testing.assert_allclose(depths, np.tile(np.array([1, 1, 2]) / study.record["n_layers"], (3, 1)))
        assert own["onset_p_adjusted"].to_dict() == {"alpha": 0.01, "beta": 0.01, "gamma": 0.2}


def test_an_onset_is_named_only_where_the_persona_is_told_apart(make):
    table = persona_table(compare_studies({"one": make("one"), "two": make("two", n_layers=8)}))
    onset = table.set_index(["persona", "study"])["onset, depth (95 %)"]
    assert onset["alpha", "one"] == "0.25 (0.25 to 0.50)"
    assert onset["beta", "two"] == "0.12 (0.12 to 0.25)"
    assert onset["gamma", "one"] == onset["gamma", "two"] == "–"


def test_pair_accuracy_its_test_and_its_onset_come_before_the_scans(make):
    columns = list(persona_table(compare_studies({"one": make("one"), "two": make("two")})).columns)
    assert columns[2:5] == ["pair accuracy (95 %)", "separation p", "onset, depth (95 %)"]
    assert columns.index("calibrated p") < columns.index("scan p") < columns.index("precision")


def test_the_thirds_are_judged_by_pair_accuracy_and_not_by_silhouette(make):
    comparison = compare_studies({"one": make("one"), "two": make("two", judged=False)})
    own = comparison.thirds[comparison.thirds["study"] == "one"]
    assert set(own["verdict"]) == {"supported"}
    np.testing.assert_allclose(own["d"], 0.1)
    np.testing.assert_allclose(own["early_p_adjusted"], 0.02)
    assert list(study_table(comparison)["told apart earlier"]) == ["2 of 3", "–"]
    assert set(persona_table(comparison)["earlier p"]) == {"0.020", "–"}


def test_a_missing_persona_has_a_row_that_says_so_in_every_table(make):
    comparison = compare_studies({"full": make("full"), "less": make("less", personas=("gamma", "alpha"))})
    assert comparison.personas == list(ALL)
    for table in (comparison.thirds, comparison.detection):
        status = table.set_index(["study", "persona"])["status"]
        assert len(status) == 6
        assert status["less", "beta"] == "no such persona"
        assert (status.drop(("less", "beta")) != "no such persona").all()
    lost = comparison.detection[comparison.detection["status"] == "no such persona"]
    assert lost.drop(columns=["study", "persona", "status"]).isna().all(axis=None)
    counted = comparison.summary.set_index("study")
    assert list(counted["n_personas"]) == [3, 2]
    assert list(counted["n_shared"]) == [2, 2]
    value = comparison.differences.set_index(["option", "study"])["value"]
    assert value["personas", "less"] == "2, without beta"
    assert value["personas", "full"] == "all 3"


def test_pairs_keep_their_numbers_whichever_persona_comes_first(make):
    studies = {"one": make("one"), "turned": make("turned", personas=("gamma", "beta", "alpha"))}
    overlaps = compare_studies(studies).overlaps
    assert set(zip(overlaps["a"], overlaps["b"], strict=True)) == set(combinations(ALL, 2))

    def sizes(table):
        return {
            frozenset([(row.a, row.size_a), (row.b, row.size_b)]): row.p_value for row in table.itertuples(index=False)
        }

    for name, study in studies.items():
        assert sizes(overlaps[overlaps["study"] == name]) == sizes(study.overlap)


def test_found_personas_are_counted_at_the_scanned_layer_and_among_shared_ones(make):
    found = {"alpha": 0.01, "beta": 0.05}
    more, less = make("more", p_values=found), make("less", personas=("beta", "gamma"), p_values={"beta": 0.2})
    own = more.detection.assign(separation_p_adjusted=[0.2, 0.01, 0.05], calibrated_p_adjusted=[0.01, 0.051, 0.9])
    elsewhere = own.assign(layer=3, p_adjusted=0.001, separation_p_adjusted=0.001, calibrated_p_adjusted=0.001)
    more.__dict__["detection"] = pd.concat([elsewhere, own], ignore_index=True)
    comparison = compare_studies({"more": more, "less": less})
    summary = comparison.summary.set_index("study")
    assert list(summary["n_scan"]) == [2, 0]
    assert list(summary["n_separation"]) == [2, 2]
    assert list(summary["n_calibrated"]) == [1, 2]
    assert list(summary["n_shared_scan"]) == [1, 0]
    assert list(summary["n_shared_separation"]) == [2, 2]
    assert list(summary["n_shared_calibrated"]) == [0, 2]
    words = study_table(comparison)[["separation finds", "calibrated finds", "scan finds"]]
    assert words.iloc[0].tolist() == ["2 of 3 (2 of 2 shared)", "1 of 3 (0 of 2 shared)", "2 of 3 (1 of 2 shared)"]
    assert words.iloc[1].tolist() == ["2 of 2", "2 of 2", "0 of 2"]


@pytest.mark.parametrize("count", [19, 59, 299])
@pytest.mark.parametrize(
    ("option", "column", "tests"),
    [
        ("permutations", "smallest_p_alone", "the scan"),
        ("flips", "smallest_p_alone_flips", "the separation test and the calibrated scan"),
    ],
)
def test_the_smallest_p_value_alone_is_what_the_correction_makes_of_the_smallest_possible(
    make, count, option, column, tests
):
    studies = {name: make(name, **{option: count}) for name in ("one", "two")}
    alone = false_discovery_control([1 / (1 + count), 1, 1]).min()
    comparison = compare_studies(studies)
    assert comparison.summary[column].tolist() == pytest.approx([alone, alone])
    text = comparison_table(comparison)
    assert ("alone in being found" in text) == (alone > 0.05)
    assert (f"by {tests} ({count}" in text) == (alone > 0.05)


def test_studies_without_verdict_have_missing_values_even_with_a_table_of_an_earlier_run(make):
    stale = make("stale")
    stale.record["thirds"] = None
    comparison = compare_studies({"judged": make("judged"), "none": make("none", judged=False), "stale": stale})
    status = comparison.thirds.groupby("study")["status"].unique().map(list)
    assert status.to_dict() == {"judged": ["judged"], "none": ["not judged"], "stale": ["not judged"]}
    verdicts = comparison.summary.set_index("study")
    assert verdicts.loc["judged", ["d", "verdict"]].tolist() == [pytest.approx(0.1), "supported"]
    assert verdicts.loc[["none", "stale"], ["d", "verdict"]].isna().all(axis=None)
    assert "none has no verdict on the thirds" in comparison_table(comparison)


def test_studies_that_differ_in_model_alone_have_no_differences(make):
    studies = {"one": make("one", model="a"), "two": make("two", model="b", n_layers=9, device="cuda", jobs=3)}
    assert list_differences(studies).empty
    assert "All options that are compared are the same." in comparison_table(compare_studies(studies))


@pytest.mark.parametrize(
    ("option", "value", "shown"),
    [
        ("contrast", "one-vs-rest", ["direction", "one-vs-rest"]),
        ("permutations", 99, ["299", "99"]),
        ("scan_layers", (1, 3), ["none", "1, 3"]),
        ("runs", 7, ["40", "7"]),
        ("n_clean", 9, ["15", "9"]),
        ("n_anomalous", 9, ["15", "9"]),
        ("scan", "individual", ["group", "individual"]),
        ("score", "hc", ["bj", "hc"]),
        ("tail", "left", ["auto", "left"]),
        ("center", "none", ["auto", "none"]),
        ("flips", 99, ["999", "99"]),
        ("alpha_max", 0.3, ["0.5", "0.3"]),
        ("alphas", 7, ["50", "7"]),
        ("restarts", 5, ["2", "5"]),
        ("threshold", 0.8, ["0.5", "0.8"]),
    ],
)
def test_every_option_on_which_results_depend_is_listed_with_both_values(make, option, value, shown):
    differences = list_differences({"one": make("one"), "two": make("two", **{option: value})})
    assert differences[["option", "study"]].to_numpy().tolist() == [[option, "one"], [option, "two"]]
    assert differences["value"].tolist() == shown


@pytest.mark.parametrize(
    ("name", "value"), [("role", "user"), ("position", "mean"), ("component", "mlp"), ("model_dtype", "bfloat16")]
)
def test_what_activations_were_made_with_is_read_from_them_and_not_from_the_options(make, name, value):
    assert options_of({"one": make("one"), "two": make("two", made={name: value})}) == [name]


def test_positions_that_were_not_scanned_are_no_difference(make):
    both = make("both", made={"position": ["last", "mean"]})
    assert options_of({"one": make("one"), "both": both}) == []
    other = list_differences({"both": both, "other": make("other", made={"position": ["mean", "last"]})})
    assert other[["option", "value"]].to_numpy().tolist() == [["position", "last"], ["position", "mean"]]


def test_chosen_layers_are_listed_even_where_all_studies_chose_the_same(make):
    assert options_of({name: make(name, layers=[0, 2, 4]) for name in ("one", "two")}) == ["layers"]


def test_statements_are_compared_by_text_and_not_by_file(make):
    assert options_of({"one": make("one"), "two": make("two", statements="other.csv")}) == []


def test_the_same_statements_in_another_order_are_the_same_but_may_be_split_otherwise(make):
    frame = pd.concat([statements_of(persona) for persona in ALL]).iloc[::-1]
    assert options_of({"one": make("one"), "two": make("two", frame=frame)}) == ["test part"]


def test_one_changed_text_makes_the_statements_of_that_persona_others(make):
    frame = pd.concat([statements_of(p, changed=p == "beta") for p in ALL])
    differences = list_differences({"one": make("one"), "two": make("two", frame=frame), "three": make("three")})
    assert set(differences["option"]) == {"statements"}
    value = differences.set_index("study")["value"]
    assert value.str.startswith("16 of 1 shared personas").all()
    assert value["one"] == value["three"] != value["two"]


def test_another_seed_splits_the_same_statements_otherwise(make):
    assert options_of({"one": make("one"), "two": make("two", seed=1)}) == ["test part", "seed"]


def test_statements_of_a_persona_that_one_study_holds_are_no_difference(make):
    frame = pd.concat([statements_of(p, changed=p == "delta") for p in (*ALL, "delta")])
    assert options_of({"one": make("one"), "two": make("two", personas=(*ALL, "delta"), frame=frame)}) == ["personas"]


def test_statements_that_no_one_kept_are_not_known_rather_than_equal(make, tmp_path):
    arrays = {name: make(name, texts=False) for name in ("one", "two")}
    differences = list_differences(arrays)
    assert set(differences["option"]) == {"statements"}
    assert set(differences["value"]) == {"not known"}
    kept, deleted = make("kept"), make("deleted")
    (deleted.folder / "activations.zarr").rename(tmp_path / "gone")
    value = list_differences({"kept": kept, "deleted": deleted}).set_index(["option", "study"])["value"]
    assert value["statements", "deleted"] == "not known"
    assert value["statements", "kept"].startswith("48 of 3 shared personas")


def test_other_numbers_of_statements_and_pairing_are_listed(make):
    differences = list_differences({"one": make("one"), "two": make("two", sizes=(20, 30), paired=False)})
    value = differences.set_index(["option", "study"])["value"]
    assert value.to_dict() == {
        ("test sizes", "one"): "H1 6, H0 6",
        ("test sizes", "two"): "H1 30, H0 20",
        ("pairs", "one"): "paired",
        ("pairs", "two"): "not paired",
    }


def test_studies_are_named_after_as_much_of_the_path_as_tells_them_apart(make, tmp_path):
    folders = [make(name).folder for name in ("a/out", "b/out", "b/c/out", "other")]
    assert run_compare(folders).studies == ["a/out", "b/out", "c/out", "other"]


def test_a_comparison_of_too_little_is_refused_in_a_sentence(make, tmp_path):
    one = make("one")
    with pytest.raises(ValueError, match="at least two studies, not 1"):
        run_compare([one.folder])
    with pytest.raises(ValueError, match="named twice"):
        run_compare([one.folder, make("two").folder, one.folder / ".." / "one"])
    with pytest.raises(ValueError, match=r"'other' has no persona in common .*delta"):
        compare_studies({"one": one, "two": make("two"), "other": make("other", personas=("delta", "epsilon"))})
    with pytest.raises(FileNotFoundError, match="nowhere holds no finished study"):
        run_compare([one.folder, tmp_path / "nowhere"])
    (one.folder / "onset.parquet").unlink()
    with pytest.raises(ValueError, match="'one' is older than the tests"):
        compare_studies({"one": one, "two": make("two")})


@pytest.fixture
def comparison(make):
    """Two studies; the second lacks ``beta``, has no verdict, and its name and personas are HTML where they can be."""
    found = make("one", p_values={"alpha": 0.01})
    found.overlap.loc[0, "p_adjusted"] = 0.01
    return compare_studies({"one": found, "<b>two": make("two", personas=("alpha", "gamma"), judged=False, runs=7)})


def test_tables_are_written_as_they_are(comparison, tmp_path):
    out = tmp_path / "out"
    write_comparison(comparison, out)
    for name in ("curves", "thirds", "detection", "overlaps", "summary", "differences"):
        pd.testing.assert_frame_equal(
            pd.read_parquet(out / f"{name}.parquet"), getattr(comparison, name), check_dtype=False
        )
        assert list(pd.read_csv(out / f"{name}.csv").columns) == list(getattr(comparison, name).columns)
    assert json.loads((out / "comparison.json").read_text())["<b>two"]["config"]["runs"] == 7
    assert not list(out.rglob(".*"))


def test_the_page_is_whole_in_itself_and_begins_with_what_is_not_the_same(comparison, tmp_path):
    write_comparison(comparison, tmp_path / "out")
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "<b>" not in page
    assert "&lt;b&gt;two" in page
    drawn = {f"figures/{path.name}" for path in (tmp_path / "out" / "figures").glob("*.svg")}
    assert len(drawn) >= 4
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == len(drawn)
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    anchors = {f"#{anchor}" for anchor in re.findall(r'id="([^"]*)"', page)}
    assert drawn < set(re.findall(r'href="([^"]*)"', page)) <= drawn | anchors
    assert page.index("without beta") < page.index('<h2 id="studies">') < page.index("<img")


def test_writing_again_gives_the_same_files_and_drops_old_figures(comparison, make, tmp_path):
    out = tmp_path / "out"
    write_comparison(comparison, out)
    first = {path.name: path.read_bytes() for path in (out / "figures").glob("*.svg")}
    assert "verdicts.svg" in first
    (out / "figures" / "mine.txt").write_text("kept")
    write_comparison(comparison, out)
    assert {path.name: path.read_bytes() for path in (out / "figures").glob("*.svg")} == first
    assert {"depth_accuracy.svg", "depth_silhouette.svg"} <= first.keys()
    unjudged = {name: make(f"new-{name}", judged=False) for name in ("one", "two")}
    write_comparison(compare_studies(unjudged), out)
    assert not list((out / "figures").glob("verdicts.*"))
    assert (out / "figures" / "mine.txt").exists()


def test_what_stops_half_way_leaves_the_folder_as_it_was(comparison, tmp_path, monkeypatch):
    out = tmp_path / "out"
    write_comparison(comparison, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    monkeypatch.setattr(utils.comparison.report, "_render", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_comparison(comparison, out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_study_is_never_overwritten_by_a_comparison(comparison, make):
    study = make("one")
    before = sorted(path.name for path in study.folder.iterdir())
    with pytest.raises(ValueError, match="is a study"):
        write_comparison(comparison, study.folder)
    assert sorted(path.name for path in study.folder.iterdir()) == before


def test_nothing_is_written_without_a_folder_to_write_to(make, tmp_path):
    folders = [make(name).folder for name in ("one", "two")]
    before = sorted(tmp_path.rglob("*"))
    run_compare(folders)
    assert sorted(tmp_path.rglob("*")) == before
    run_compare(folders, tmp_path / "out")
    assert (tmp_path / "out" / "comparison.html").exists()


def test_the_text_names_differences_before_results(comparison):
    text = comparison_table(comparison)
    assert text.index("runs:") < text.index("corrected within each study") < text.index("Personas")
    beta = [line for line in text.splitlines() if line.split()[:2] == ["beta", "<b>two"]]
    assert len(beta) == 1
    assert "no such persona" in beta[0]
    header = next(line for line in text.splitlines() if "separation finds" in line)
    assert header.index("separation finds") < header.index("calibrated finds") < header.index("scan finds")
    assert re.search(r"alpha – beta +0\.20 \(0\.10\) \* +–", text)


def test_a_study_keeps_its_colour_where_another_lacks_the_persona(comparison):
    axes = plot_depth_curves(comparison.curves, studies=comparison.studies)
    colours = {}
    for ax in axes.flat:
        for line in ax.lines:
            if line.get_label() in comparison.studies and len(line.get_xdata()):
                colours.setdefault(line.get_label(), set()).add(line.get_color())
    assert [len(own) for own in colours.values()] == [1, 1]
    assert colours["one"] != colours["<b>two"]
    assert [ax.get_title() for ax in axes.flat if ax.get_visible()] == ["alpha", "beta\n(in 1 of 2 studies)", "gamma"]


def test_dots_mark_layers_beyond_the_flips(comparison):
    own = comparison.curves[comparison.curves["persona"] == "alpha"]
    ax = plot_depth_curve(own, metric="silhouette", studies=comparison.studies)
    dots = [line for line in ax.lines if line.get_marker() == "."]
    # Values are level + layer / 100 and the bound is level + 0.015: layers 2 to 4 of 4.
    assert [list(line.get_xdata()) for line in dots] == [[0.5, 0.75, 1.0]] * 2


def test_depth_curves_are_of_pair_accuracy_with_dots_where_it_is_above_chance(comparison):
    own = comparison.curves[comparison.curves["persona"] == "alpha"]
    ax = plot_depth_curve(
        own.assign(accuracy_p_adjusted=[np.nan, 0.01, 0.051, 0.05, 0.9] * 2), studies=comparison.studies
    )
    assert ax.get_ylabel() == "pair accuracy"
    lines = {line.get_label(): line for line in ax.lines}
    np.testing.assert_allclose(lines["one"].get_ydata(), [np.nan, 0.5, 0.6, 0.7, 0.8])
    dots = [line for line in ax.lines if line.get_marker() == "."]
    assert [list(line.get_xdata()) for line in dots] == [[0.25, 0.75]] * 2
    assert any(
        np.allclose(line.get_ydata(), 0.5) for line in ax.lines if len(line.get_ydata()) == 2 and line not in dots
    )


def test_verdicts_are_open_where_mixed_and_crossed_where_there_is_none(comparison):
    thirds = comparison.thirds.copy()
    thirds.loc[0, "verdict"] = "mixed"
    ax = plot_verdicts(thirds)
    drawn = [line for line in ax.lines if line.get_marker() == "o" and len(line.get_xdata())]
    faces = {tuple(line.get_ydata().round().astype(int)): to_rgba(line.get_markerfacecolor()) for line in drawn}
    assert faces == {(0,): to_rgba("white"), (1, 2): to_rgba(drawn[0].get_color())}
    assert [len(line.get_xdata()) for line in ax.lines if line.get_marker() == "x"] == [0, 3]


@pytest.mark.parametrize("value", ["accuracy", "separation_p_adjusted", "p_adjusted", "precision", "probe_auroc"])
def test_the_map_shows_each_number_in_its_cell_and_nothing_where_it_is_missing(comparison, value):
    ax = plot_detection_map(comparison.detection, value=value)
    shown = {tuple(np.floor(text.get_position()).astype(int)): float(text.get_text()) for text in ax.texts}
    table = comparison.detection.set_index(["study", "persona"])[value]
    expected = {
        (column, row): table[study, persona]
        for column, study in enumerate(comparison.studies)
        for row, persona in enumerate(ALL)
        if (study, persona) != ("<b>two", "beta")
    }
    assert shown == pytest.approx(expected, abs=0.0051)
    dots = {tuple(map(int, np.floor(at))) for line in ax.lines for at in line.get_xydata()}
    # By the scan alpha alone is found, in the first study; the separation test finds all.
    found = {"p_adjusted": {(0, 0)}, "separation_p_adjusted": set(expected)}
    assert dots == found.get(value, set())


def test_overlaps_are_full_where_larger_than_flips_and_crossed_where_missing(comparison):
    ax = plot_study_overlaps(comparison.overlaps)
    first = [line for line in ax.lines if line.get_marker() == "o" and len(line.get_xdata())]
    faces = {tuple(line.get_ydata().round().astype(int)): to_rgba(line.get_markerfacecolor()) for line in first}
    assert faces == {(0,): to_rgba(first[0].get_color()), (1, 2): to_rgba("white")}
    assert all(np.allclose(line.get_xdata(), 0.2) for line in first)
    assert [len(line.get_xdata()) for line in ax.lines if line.get_marker() == "x"] == [0, 2]


def test_up_to_eighteen_studies_can_be_told_apart(comparison):
    table = comparison.curves[(comparison.curves["study"] == "one") & (comparison.curves["persona"] == "alpha")]
    many = pd.concat([table.assign(study=f"study {i}") for i in range(18)])
    ax = plot_depth_curve(many)
    styles = {(line.get_color(), line.get_linestyle()) for line in ax.lines if line.get_label().startswith("study")}
    assert len(styles) == 18


def test_studies_that_share_no_node_have_no_figure_of_overlaps(make, tmp_path):
    studies = {name: make(name, jaccard=0.0) for name in ("one", "two")}
    write_comparison(compare_studies(studies), tmp_path / "out")
    assert not list((tmp_path / "out" / "figures").glob("overlaps.*"))
