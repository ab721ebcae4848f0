import base64
import gc
import io
import logging
from dataclasses import fields, replace
from threading import Event

import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scanned import N_NODES, N_PAIRS, PLANTED, START, make_acts

import utils.explorer.widget
from deepscan import ScanRuns
from utils.explorer.panels import draw_panels, make_panels
from utils.explorer.rescan import choose_statements, read_sides, rescan
from utils.explorer.widget import Newest, Setting, explore, write_code
from utils.layers.reduction import reduce


@pytest.fixture(scope="module")
def acts():
    return make_acts()


@pytest.fixture
def explorer(acts):
    return explore(acts, start=START, n_jobs=1)


@pytest.fixture(scope="module")
def found(acts):
    return rescan(acts, START)


def turn(explorer, **values):
    for name, value in values.items():
        explorer.controls[name].value = value
    explorer.wait()


def paint(found, panels=None):
    """Pixels of what a scan found, on panels that may have shown something else before."""
    panels = panels or make_panels()
    draw_panels(found, panels.figure)
    return pixels(panels.paint())


def pixels(png):
    return matplotlib.image.imread(io.BytesIO(png))


def read(acts, *, layer=2, **chosen):
    return read_sides(acts, choose_statements(acts, persona="openness", **chosen), layer=layer)


class TestRescan:
    def test_finds_the_planted_nodes_and_their_sides(self, found):
        often = found.nodes.query("frequency == 1").set_index("node")["sign"]
        assert {node: often[node] for node in PLANTED} == {3: 1, 7: 1, 11: -1, 20: -1}
        assert found.mixed["precision"].mean() > 0.7  # chance is 0.5
        assert found.mixed["score"].min() > found.null["score"].max()

    def test_counts_the_nodes_that_half_of_the_runs_selected(self, found):
        mixed, null = ([found.runs.nodes[i] for i in table.index] for table in (found.mixed, found.null))
        share = np.array([np.mean([node in nodes for nodes in mixed]) for node in range(N_NODES)])
        assert found.n_nodes == (share >= 0.5).sum() > 0
        flips = [null[i : i + 4] for i in range(0, 12, 4)]
        counts = [sum(np.mean([n in nodes for nodes in flip]) >= 0.5 for n in range(N_NODES)) for flip in flips]
        assert found.null_n_nodes == pytest.approx(np.mean(counts))

    def test_counts_how_often_a_statement_was_returned(self, found):
        for place, times in enumerate(found.points["returned"]):
            assert times == sum(place in found.runs.records[run] for run in found.mixed.index)
        by_side = found.points.groupby("direction")["returned"].sum()
        assert by_side["positive"] > by_side["negative"]

    @pytest.mark.parametrize("n_nodes", [N_NODES, 300])
    def test_embeds_as_reduce_does_whether_nodes_or_statements_are_more(self, n_nodes):
        acts = make_acts(n_nodes=n_nodes)
        sides = read(acts, part="all")
        own = acts.sel(layer=2, persona="openness")
        plain = reduce(own, center="pairs").set_index("id").loc[sides.points["id"]]
        np.testing.assert_allclose(sides.points[["x1", "x2"]], plain[["x1", "x2"]], atol=1e-6)
        np.testing.assert_allclose(sides.points.attrs["explained"], reduce(own, center="pairs").attrs["explained"])

    @pytest.mark.parametrize("n_nodes", [N_NODES, 300])
    def test_refuses_a_layer_that_is_the_same_for_all_statements(self, n_nodes):
        acts = make_acts(n_nodes=n_nodes)
        acts[0] = np.linspace(0.1, 7, n_nodes, dtype=np.float32)
        with pytest.raises(ValueError, match="same activation"):
            read(acts, layer=0, part="test")

    def test_has_the_points_in_the_order_of_the_records(self, acts):
        sides = read(acts, part="select")
        values = acts.sel(layer=2).sel(statement=sides.points["id"].to_numpy()).to_numpy()
        np.testing.assert_array_equal(np.concatenate([sides.h0, sides.h1]), values)
        assert (sides.points["direction"] == ["negative"] * len(sides.h0) + ["positive"] * len(sides.h1)).all()

    def test_looks_at_the_select_part_unless_told_otherwise(self, acts):
        sizes = {part: len(read(acts, part=part).h1) for part in ("select", "test")}
        assert sizes == {"select": N_PAIRS // 4, "test": N_PAIRS - N_PAIRS // 4}
        assert Setting("openness", 2).part == "select"

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"persona": "nobody"}, "nobody"),
            ({"layer": 9}, "no layer 9.*layers 0 to 3"),
            ({"layer": 0}, "same activation"),
            ({"n_clean": 20, "n_anomalous": 10}, "no background of the 30 pairs"),
            ({"n_permutations": 0}, "at least one flip"),
            ({"alpha_max": 1.5}, "alpha_max"),
        ],
    )
    def test_refuses_what_cannot_be_scanned(self, acts, changes, reason):
        with pytest.raises(ValueError, match=reason):
            rescan(acts, replace(START, **changes))


class TestCode:
    @pytest.mark.parametrize("paired", [True, False], ids=["pairs", "single statements"])
    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"part": "select", "part_rng": 3, "n_clean": 2, "n_anomalous": 3},
            {"part": "all", "persona": "a <b> & 'c'", "layer": 3},
            {"center": "none", "tail": "signed"},
            {"tail": "left", "score": "hc", "alpha_max": 0.07, "alphas": 9, "restarts": 4, "rng": 5, "n_runs": 3},
        ],
        ids=lambda changes: ", ".join(changes) or "start",
    )
    def test_repeats_the_numbers_of_the_explorer(self, changes, paired):
        acts, setting = make_acts(paired=paired), replace(START, **changes)
        found = rescan(acts, setting)
        names = {"acts": acts}
        exec(write_code(setting, paired=paired), names)
        runs = names["runs"]
        assert isinstance(runs, ScanRuns)
        pd.testing.assert_frame_equal(runs.table, found.runs.table)
        assert runs.config == found.runs.config
        assert all(map(np.array_equal, runs.nodes, found.runs.nodes))

    def test_is_shown_as_it_stands(self, explorer):
        turn(explorer, persona="a <b> & 'c'")
        code = explorer.code.value
        assert "a &lt;b&gt; &amp;" in code
        assert "<b>" not in code


class TestPanels:
    def test_show_every_run_node_and_statement(self, found):
        (records, scores), (nodes, points) = draw_panels(found, make_panels().figure)
        precision, recall = (line.get_xdata() for line in records.lines[1:])
        np.testing.assert_array_equal(precision, found.mixed["precision"])
        np.testing.assert_array_equal(recall, found.mixed["recall"])
        mixed, null = (line.get_xdata() for line in scores.lines)
        np.testing.assert_array_equal(mixed, found.mixed["score"])
        np.testing.assert_array_equal(null, found.null["score"])
        drawn = np.concatenate([dots.get_offsets() for dots in nodes.collections])
        assert sorted(map(tuple, drawn)) == sorted(zip(found.nodes["node"], found.nodes["frequency"], strict=True))
        negative, positive, rings = (dots.get_offsets() for dots in points.collections)
        assert len(negative) == len(positive) == len(found.points) / 2
        assert len(rings) == (found.points["returned"] > 0).sum()

    def test_say_what_they_show_and_that_it_is_no_test(self, found):
        figure = make_panels().figure
        draw_panels(found, figure)
        title = figure.get_suptitle()
        assert "openness, layer 2, 30 pairs of the test part" in title
        assert "not a test" in title

    def test_keep_nothing_of_what_they_showed_before(self, acts, found):
        other = rescan(acts, replace(START, layer=3, persona="a <b> & 'c'", part="all", n_runs=6))
        panels = make_panels()
        for shown in (found, other):
            paint(shown, panels)
        np.testing.assert_array_equal(paint(found, panels), paint(found))

    def test_painted_in_parts_are_what_they_are_painted_whole(self, found):
        panels, whole = make_panels(), io.BytesIO()
        parts = paint(found, panels)
        panels.figure.savefig(whole, format="png")
        # The rims of spines and dots are mixed in another order.
        np.testing.assert_allclose(parts, pixels(whole.getvalue()), atol=0.02)

    def test_draw_runs_that_returned_nothing(self, acts):
        nothing = rescan(acts, replace(START, alpha_max=0.01, alphas=1))
        assert not nothing.mixed["n_records"].any()
        assert not np.array_equal(paint(nothing), pixels(make_panels().paint()))

    def test_fit_into_the_picture_without_touching_each_other(self, found):
        panels = make_panels()
        figure, axes = panels.figure, draw_panels(found, panels.figure)
        panels.paint()
        boxes = [ax.get_tightbbox() for ax in axes.flat]
        for i, box in enumerate(boxes):
            assert figure.bbox.x0 <= box.x0
            assert box.x1 <= figure.bbox.x1 + 1
            assert figure.bbox.y0 <= box.y0
            assert not any(box.overlaps(other) for other in boxes[i + 1 :])


class TestExplorer:
    def test_begins_with_the_select_part_of_the_first_persona(self, acts):
        begun = explore(acts).setting
        assert (begun.persona, begun.part) == ("openness", "select")
        assert begun.layer in acts["layer"]

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("persona", "a <b> & 'c'"),
            ("layer", 3),
            ("part", "all"),
            ("center", "none"),
            ("tail", "right"),
            ("score", "ks"),
            ("alpha_max", 0.2),
            ("alphas", 7),
            ("n_clean", 9),
            ("n_anomalous", 3),
            ("restarts", 1),
            ("rng", 4),
        ],
    )
    def test_every_knob_changes_its_field_and_the_picture(self, acts, explorer, name, value):
        before = explorer.picture.value
        turn(explorer, **{name: value})
        assert explorer.found.setting == explorer.setting == replace(START, **{name: value})
        expected = rescan(acts, replace(START, **{name: value}))
        pd.testing.assert_frame_equal(explorer.found.runs.table, expected.runs.table)
        assert not np.array_equal(pixels(explorer.picture.value), pixels(before))

    def test_every_knob_is_a_field_and_starts_there(self, explorer):
        assert set(explorer.controls) <= {field.name for field in fields(Setting)}
        assert explorer.setting == START

    def test_shows_the_numbers_that_it_found(self, explorer):
        mixed = explorer.found.mixed
        assert f"precision <b>{mixed['precision'].mean():.2f}</b>" in explorer.summary.value
        assert f"score <b>{mixed['score'].mean():.1f}</b>" in explorer.summary.value
        turn(explorer, layer=3)
        assert f"score <b>{explorer.found.mixed['score'].mean():.1f}</b>" in explorer.summary.value
        assert explorer.found.mixed["score"].mean() < mixed["score"].mean()

    def test_says_so_when_the_runs_return_nothing(self, explorer):
        turn(explorer, alphas=1, alpha_max=0.01)
        assert "returned nothing" in explorer.summary.value

    @pytest.mark.parametrize("part", ["select", "test", "all"])
    def test_says_that_looking_is_not_testing(self, explorer, part):
        turn(explorer, part=part, n_clean=2, n_anomalous=2)
        assert "by looking is not a test" in explorer.caution.value
        assert ("not shown" in explorer.caution.value) == (part == "select")

    @pytest.mark.parametrize("wrong", [{"n_clean": 30}, {"layer": 0}], ids=["samples too large", "constant layer"])
    def test_an_error_is_one_sentence_and_the_last_good_picture_stays(self, explorer, wrong):
        held = {name: getattr(explorer, name).value for name in ("picture", "summary", "code", "caution")}
        good = {name: getattr(START, name) for name in wrong}
        turn(explorer, **wrong)
        assert explorer.message.value.count("<p") == 1
        assert "Traceback" not in explorer.message.value
        assert {name: getattr(explorer, name).value for name in held} == held
        assert explorer.found.setting == START
        turn(explorer, **good)
        assert explorer.message.value == ""

    def test_a_fault_in_the_program_is_shown_logged_and_survived(self, explorer, monkeypatch, caplog):
        with monkeypatch.context() as broken, caplog.at_level(logging.ERROR):
            broken.setattr(utils.explorer.widget, "rescan", lambda *_, **__: 1 / 0)
            turn(explorer, rng=1)
        assert "ZeroDivisionError" in explorer.message.value
        assert caplog.records[0].exc_info
        turn(explorer, rng=2)
        assert explorer.found.setting.rng == 2

    def test_garbage_waits_for_the_picture_and_no_longer(self, explorer, monkeypatch):
        searching = []

        def fail_on_the_second(acts, setting, **options):
            searching.append(gc.isenabled())
            return rescan(acts, setting, **options) if setting.rng == 1 else 1 / 0

        monkeypatch.setattr(utils.explorer.widget, "rescan", fail_on_the_second)
        for seed in (1, 2):
            turn(explorer, rng=seed)
            searching.append(gc.isenabled())
        assert searching == [False, True] * 2

    def test_begins_with_a_sentence_where_the_start_cannot_be_scanned(self, acts):
        explorer = explore(acts, start=replace(START, n_clean=30))
        assert "no background" in explorer.message.value
        assert explorer.found is None
        turn(explorer, n_clean=3)
        assert explorer.found.setting.n_clean == 3

    @pytest.mark.parametrize("wrong", [{"persona": "nobody"}, {"layer": 9}])
    def test_refuses_a_start_that_the_activations_do_not_have(self, acts, wrong):
        with pytest.raises(ValueError, match="the activations have"):
            explore(acts, start=replace(START, **wrong))

    def test_knobs_reach_a_start_beyond_their_usual_ends(self, acts):
        start = replace(START, restarts=9, alphas=300, rng=1234, alpha_max=0.333)
        assert explore(acts, start=start, n_jobs=1).setting == start

    def test_lays_out_each_layer_of_a_persona_once(self, acts, monkeypatch):
        read = []
        original = read_sides

        def count(acts, contrast, **where):
            read.append((contrast.persona, where["layer"]))
            return original(acts, contrast, **where)

        monkeypatch.setattr(utils.explorer.widget, "read_sides", count)
        explorer = explore(acts, start=START, n_jobs=1)
        for layer, seed in ((2, 1), (3, 1), (2, 0), (3, 0)):
            turn(explorer, layer=layer, rng=seed)
        assert read == [("openness", 2), ("openness", 3)]

    def test_leaves_no_figures_open(self, explorer):
        before = plt.get_fignums()
        for seed in range(5):
            turn(explorer, rng=seed)
        assert plt.get_fignums() == before

    def test_a_saved_notebook_holds_its_first_picture(self, explorer):
        bundle = explorer._repr_mimebundle_()
        assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == explorer.model_id
        shown = pixels(base64.b64decode(bundle["image/png"]))
        np.testing.assert_array_equal(shown, pixels(explorer.picture.value))

    def test_a_saved_notebook_holds_no_picture_where_there_is_none(self, acts):
        assert "image/png" not in explore(acts, start=replace(START, layer=0))._repr_mimebundle_()


class TestNewest:
    def test_many_turns_during_a_scan_make_one_more_scan_of_the_last(self, explorer, monkeypatch):
        scanned, started, go_on = [], Event(), Event()

        def slow(acts, setting, **options):
            scanned.append(setting)
            started.set()
            assert go_on.wait(30)
            return rescan(acts, setting, **options)

        monkeypatch.setattr(utils.explorer.widget, "rescan", slow)
        explorer.controls["rng"].value = 1
        assert started.wait(30)
        for value in range(2, 60):
            explorer.controls["rng"].value = value
            explorer.controls["tail"].value = ("left", "right")[value % 2]
        go_on.set()
        explorer.wait()
        assert scanned == [replace(START, rng=1), replace(START, rng=59, tail="right")]
        assert explorer.found.setting == scanned[-1]

    def test_every_value_is_taken_that_has_the_time(self):
        taken = []
        newest = Newest(taken.append)
        for value in range(5):
            newest.submit(value)
            newest.wait()
        assert taken == list(range(5))

    def test_submitting_never_waits_for_the_call(self):
        started, go_on, taken = Event(), Event(), []

        def call(value):
            taken.append(value)
            started.set()
            go_on.wait(30)

        newest = Newest(call)
        newest.submit("first")
        assert started.wait(30)
        newest.submit("dropped")
        newest.submit("last")
        assert taken == ["first"]
        go_on.set()
        newest.wait()
        assert taken == ["first", "last"]

    def test_goes_on_after_a_call_that_failed(self):
        taken = []
        newest = Newest(lambda value: taken.append(1 / value))
        newest.submit(0)
        with pytest.raises(ZeroDivisionError):
            newest.wait()
        newest.submit(2)
        newest.wait()
        assert taken == [0.5]
