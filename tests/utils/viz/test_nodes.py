import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from utils.layers.separation import CLUSTER_METRICS, PCA_METRICS, PROBE_METRICS
from utils.viz import (
    plot_detection,
    plot_embedding,
    plot_embeddings,
    plot_layer_curve,
    plot_layer_curves,
    plot_layer_heatmap,
    plot_node_map,
    plot_node_profiles,
    plot_overlap,
    plot_scores,
    plot_upset,
    plot_venn,
)
from utils.viz.layers import METRIC_LABELS
from utils.viz.style import NEGATIVE, POSITIVE, short_name

POLITICS = ["politically-liberal", "politically-conservative"]
ETHICS = ["subscribes-to-deontology"]
TOPIC = {**dict.fromkeys(POLITICS, "politics"), **dict.fromkeys(ETHICS, "ethics")}


@pytest.fixture(autouse=True)
def _strict():
    """Warnings are errors, except of libraries about each other's old names; figures are closed afterwards."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        yield
    plt.close("all")


def personas(count):
    return (POLITICS + ETHICS)[:count]


def layer_table(names, *, n_layers=4, nan=False):
    rows = []
    for p, name in enumerate(names):
        for layer in range(n_layers):
            row = {"persona": name, "topic": TOPIC[name], "layer": layer}
            for metric in (*CLUSTER_METRICS, *PROBE_METRICS):
                value = np.nan if nan and layer == 0 else 0.1 * layer + p
                row |= {metric: value, f"{metric}_low": value - 0.1, f"{metric}_high": value + 0.1}
                if metric in CLUSTER_METRICS:
                    row |= {f"{metric}_null_low": value * 0 - 0.05, f"{metric}_null_high": value * 0 + 0.05}
            rows.append(row)
    return pd.DataFrame(rows)


def point_table(names, n=12):
    rng = np.random.default_rng(0)
    frames = [
        pd.DataFrame(rng.normal(size=(n, 2)), columns=["x1", "x2"]).assign(
            persona=name, topic=TOPIC[name], direction=np.repeat(["positive", "negative"], n // 2)
        )
        for name in names
    ]
    return pd.concat(frames, ignore_index=True)


def detection_table(names):
    rows = []
    for i, name in enumerate(names):
        row = {"persona": name, "chance": 0.5, "p_value": 0.01 * (i + 1)}
        for column in ("precision", "recall"):
            row |= {column: 0.7, f"{column}_low": 0.5, f"{column}_high": 0.9}
        rows.append(row)
    return pd.DataFrame(rows)


def score_table(names):
    rng = np.random.default_rng(0)
    rows = [
        {"persona": name, "kind": kind, "score": rng.normal(10 + 5 * (kind == "mixed"))}
        for name in names
        for kind in ("mixed", "null")
        for _ in range(10)
    ]
    return pd.DataFrame(rows)


def profile_table(names, n_nodes=20, *, permuted=True):
    frames = [
        pd.DataFrame(
            {
                "persona": name,
                "topic": TOPIC[name],
                "rank": np.arange(1, n_nodes + 1),
                "frequency": np.linspace(1, 0, n_nodes),
                "null_low": np.linspace(0.2, 0, n_nodes) if permuted else np.nan,
                "null_high": np.linspace(0.6, 0, n_nodes) if permuted else np.nan,
            }
        )
        for name in names
    ]
    return pd.concat(frames, ignore_index=True)


def node_table(names):
    rows = [
        {"persona": name, "node": node, "sign": sign, "frequency": 0.5 + 0.05 * node}
        for name in names
        for node, sign in ((0, 1), (3, -1), (9, 0))
    ]
    return pd.DataFrame(rows, columns=["persona", "node", "sign", "frequency"])


def overlap_table(names, *, empty=False):
    rows = [
        {"a": a, "b": b, "jaccard": np.nan if empty else 0.25, "p_adjusted": 1.0 if empty else 0.01, "shared": 2}
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    ]
    return pd.DataFrame(rows)


def make_sets(count, *, size=6):
    """Overlapping sets of nodes with both signs."""
    return {f"persona-{i}": frozenset((i + j, 1 if j % 2 else -1) for j in range(size)) for i in range(count)}


def texts_of(drawn):
    """Every text that a drawn figure shows."""
    figure = drawn.flat[0].figure if isinstance(drawn, np.ndarray) else drawn.figure
    figure.draw_without_rendering()
    found = figure.findobj(lambda artist: hasattr(artist, "get_text") and artist.get_visible())
    return [artist.get_text() for artist in found if artist.get_text()]


CASES = {
    "curve": (plot_layer_curve, layer_table(personas(1)), {"mark": 2}),
    "curve of a probe": (plot_layer_curve, layer_table(personas(1)), {"metric": "probe_auroc"}),
    "curve with NaN": (plot_layer_curve, layer_table(personas(1), nan=True), {"mark": 2}),
    "curve of one layer": (plot_layer_curve, layer_table(personas(1), n_layers=2)[1:], {"mark": 1}),
    "curves": (plot_layer_curves, layer_table(personas(3), nan=True), {"mark": 2}),
    "curves of one persona": (plot_layer_curves, layer_table(personas(1)), {"metric": "davies_bouldin"}),
    "heatmap": (plot_layer_heatmap, layer_table(personas(3), nan=True), {"mark": 2}),
    "heatmap of one persona": (plot_layer_heatmap, layer_table(personas(1)), {"metric": "probe_auroc"}),
    "heatmap of one layer": (plot_layer_heatmap, layer_table(personas(2), n_layers=1), {"mark": 0}),
    "heatmap of many layers": (plot_layer_heatmap, layer_table(personas(2), n_layers=60), {"mark": 59}),
    "embedding": (plot_embedding, point_table(personas(1)), {"title": "one"}),
    "embedding of one side": (plot_embedding, point_table(personas(1))[:6], {}),
    "embeddings": (plot_embeddings, point_table(personas(3)), {}),
    "embeddings of one persona": (plot_embeddings, point_table(personas(1)), {}),
    "detection": (plot_detection, detection_table(personas(3)), {}),
    "detection of one persona": (plot_detection, detection_table(personas(1)), {}),
    "scores": (plot_scores, score_table(personas(3)), {}),
    "scores of one persona": (plot_scores, score_table(personas(1)), {}),
    "scores without permutations": (plot_scores, score_table(personas(2)).query("kind == 'mixed'"), {}),
    "profiles": (plot_node_profiles, profile_table(personas(3)), {"threshold": 0.5}),
    "profiles of one persona": (plot_node_profiles, profile_table(personas(1)), {}),
    "profiles without permutations": (plot_node_profiles, profile_table(personas(2), permuted=False), {}),
    "node map": (plot_node_map, node_table(personas(3)), {"n_nodes": 10}),
    "node map of one persona": (plot_node_map, node_table(personas(1)), {"n_nodes": 10}),
    "node map of many nodes": (plot_node_map, node_table(personas(2)), {"n_nodes": 5000}),
    "node map of empty sets": (plot_node_map, node_table([]), {"n_nodes": 10}),
    "overlap": (plot_overlap, overlap_table(personas(3)), {}),
    "overlap of two": (plot_overlap, overlap_table(personas(2)), {}),
    "overlap without runs": (plot_overlap, overlap_table(personas(3)).drop(columns="p_adjusted"), {"value": "shared"}),
    "overlap of empty sets": (plot_overlap, overlap_table(personas(3), empty=True), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_draws_without_warnings_and_leaves_everything_else_alone(case):
    draw, table, options = CASES[case]
    before = table.copy(deep=True)
    foreign = plt.figure()
    drawn = draw(table, **options)
    axes = list(np.atleast_1d(drawn).flat)
    assert all(isinstance(ax, Axes) for ax in axes)
    assert plt.fignum_exists(foreign.number)
    assert not foreign.axes
    axes[0].figure.canvas.draw()
    pd.testing.assert_frame_equal(table, before)
    assert texts_of(drawn)


@pytest.mark.parametrize(
    "case",
    ["curve", "heatmap", "embedding", "detection", "scores", "node map", "overlap"],
)
def test_draws_on_the_axes_it_is_given(case):
    draw, table, options = CASES[case]
    figure, (left, right) = plt.subplots(1, 2)
    numbers = plt.get_fignums()
    assert draw(table, ax=right, **options) is right
    assert right.has_data()
    assert not left.has_data()
    assert plt.get_fignums() == numbers
    assert right.figure is figure


@pytest.mark.parametrize(
    ("case", "labels"),
    [
        ("curve", ["layer", "silhouette", "95 % interval", "sides flipped, 5–95 %", "scanned layer (2)"]),
        ("curve of a probe", ["probe AUROC", "chance"]),
        ("curves", ["layer (residual stream after block)", "silhouette", "liberal", "conservative", "deontology"]),
        ("heatmap", ["silhouette", "layer (framed: 2, scanned)", "liberal", "conservative", "deontology"]),
        ("embedding", ["x1", "x2", "one"]),
        ("embeddings", ["liberal", "deontology", "positive", "negative"]),
        ("detection", ["precision of a random choice", "liberal", "p = 0.01", "p = 0.03"]),
        ("scores", ["true sides", "sides flipped", "liberal"]),
        ("profiles", ["node, by rank", "share of runs that selected it", "true sides", "liberal"]),
        ("node map", ["node", "liberal", "share of runs, by side"]),
        ("overlap", ["jaccard", "liberal", "conservative", "deontology", "0.25"]),
    ],
)
def test_labels_are_there(case, labels):
    draw, table, options = CASES[case]
    drawn = draw(table, **options)
    if isinstance(drawn, Axes) and case.startswith(("curve", "embedding")):
        drawn.legend()
    texts = texts_of(drawn)
    assert not [label for label in labels if label not in texts], texts


def test_short_names():
    assert short_name("subscribes-to-deontology") == "deontology"
    assert short_name("politically-liberal") == "liberal"
    assert short_name("anti-LGBTQ-rights") == "anti-LGBTQ-rights"


def test_every_metric_has_a_label():
    assert set(METRIC_LABELS) == {*CLUSTER_METRICS, *PCA_METRICS, *PROBE_METRICS}


def test_curve_shows_the_values():
    table = layer_table(personas(1))
    ax = plot_layer_curve(table, mark=3)
    curve = next(line for line in ax.lines if line.get_label() == "silhouette")
    np.testing.assert_allclose(curve.get_xydata(), table[["layer", "silhouette"]])
    mark = next(line for line in ax.lines if line.get_label().startswith("scanned"))
    assert set(mark.get_xdata()) == {3}
    band, interval = ax.collections
    np.testing.assert_allclose(band.get_datalim(ax.transData).get_points()[:, 1], [-0.05, 0.05])
    np.testing.assert_allclose(interval.get_datalim(ax.transData).get_points()[:, 1], [-0.1, 0.4])


def test_grid_has_a_row_a_topic_and_no_empty_panels():
    axes = plot_layer_curves(layer_table(personas(3)))
    assert axes.shape == (2, 2)
    assert [ax.get_visible() for ax in axes.flat] == [True, True, True, False]
    assert [ax.get_title() for ax in axes.flat] == ["liberal", "conservative", "deontology", ""]


def test_heatmap_rows_follow_the_table_and_not_the_alphabet():
    ax = plot_layer_heatmap(layer_table(POLITICS + ETHICS))
    assert [text.get_text() for text in ax.get_yticklabels()] == ["liberal", "conservative", "deontology"]
    values = ax.collections[0].get_array().reshape(3, 4)
    np.testing.assert_allclose(values[1], 1 + 0.1 * np.arange(4))


def test_embedding_colours_the_directions_and_names_the_components():
    points = point_table(personas(1))
    points.attrs["explained"] = [0.5, 0.251]
    ax = plot_embedding(points)
    shown = {each.get_label(): each for each in ax.collections}
    for direction, colour in (("positive", POSITIVE), ("negative", NEGATIVE)):
        side = points[points["direction"] == direction]
        np.testing.assert_allclose(shown[direction].get_offsets(), side[["x1", "x2"]])
        np.testing.assert_allclose(shown[direction].get_facecolor()[0, :3], to_rgba(colour)[:3])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("PC1 (50%)", "PC2 (25%)")


def test_embeddings_name_the_components_of_each_persona():
    axes = plot_embeddings(point_table(personas(2)), explained={"politically-liberal": [0.4, 0.2]})
    assert [ax.get_xlabel() for ax in axes.flat] == ["PC1 (40%)", "x1"]


def test_node_map_shows_each_node_once_in_its_row_with_its_side():
    nodes = node_table(personas(2)).drop(index=4)
    ax = plot_node_map(nodes, 10)
    marks = next(each for each in ax.collections if each.get_array() is not None)
    pairs = zip(marks.get_offsets(), marks.get_array(), strict=True)
    shown = {(*map(int, place), round(float(value), 3)) for place, value in pairs}
    assert {(0, 0, 0.5), (3, 0, -0.65), (0, 1, 0.5)} <= shown
    assert not any(node == 3 and row == 1 for node, row, _ in shown)


def test_overlap_shows_a_triangle_and_dots():
    table = overlap_table(personas(3)).assign(jaccard=[0.1, 0.2, 0.3], p_adjusted=[0.01, 0.2, 0.05])
    ax = plot_overlap(table)
    values = np.ma.filled(ax.collections[0].get_array().reshape(2, 2), np.nan)
    np.testing.assert_allclose(values, [[0.1, np.nan], [0.2, 0.3]])
    dots = [tuple(np.floor([line.get_xdata()[0], line.get_ydata()[0]])) for line in ax.lines]
    assert dots == [(0, 0), (1, 1)]


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6])
def test_venn_draws_two_to_six_sets(count):
    sets = make_sets(count)
    ax = plot_venn(sets)
    assert isinstance(ax, Axes)
    ax.figure.canvas.draw()
    texts = texts_of(ax)
    assert all(f"{name} (6)" in texts for name in sets)


def test_venn_counts_nodes_by_side():
    """Node 5 is moved in opposite directions: it is not shared."""
    sets = {"a": frozenset({(1, 1), (2, 1), (5, 1)}), "b": frozenset({(2, 1), (5, -1), (7, 1), (8, 1)})}
    texts = texts_of(plot_venn(sets))
    assert {"a (3)", "b (4)", "2", "1", "3"} <= set(texts)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6])
def test_venn_with_an_empty_set(count):
    sets = make_sets(count) | {"persona-0": frozenset()}
    ax = plot_venn(sets)
    ax.figure.canvas.draw()
    assert "persona-0 (0)" in texts_of(ax)


@pytest.mark.parametrize("count", [0, 1])
def test_venn_sends_other_numbers_of_sets_to_upset(count):
    numbers = plt.get_fignums()
    with pytest.raises(ValueError, match="plot_upset"):
        plot_venn(make_sets(count))
    assert plt.get_fignums() == numbers


def test_venn_of_empty_sets_is_refused():
    with pytest.raises(ValueError, match="empty"):
        plot_venn({"a": frozenset(), "b": frozenset()})


def test_venn_draws_on_the_axes_it_is_given():
    _, (left, right) = plt.subplots(1, 2)
    numbers = plt.get_fignums()
    for count in (2, 3, 4, 6):
        assert plot_venn(make_sets(count), ax=left) is left
    assert not right.has_data()
    assert plt.get_fignums() == numbers


@pytest.mark.parametrize("count", [2, 3, 8])
def test_upset_draws_any_number_of_sets_and_closes_only_its_own_figures(count):
    foreign = plt.figure()
    sets = make_sets(count)
    before = dict(sets)
    figure = plot_upset(sets)
    assert isinstance(figure, Figure)
    assert plt.fignum_exists(foreign.number)
    assert figure is not foreign
    assert not foreign.axes
    assert len(set(plt.get_fignums()) - {foreign.number}) <= 1
    figure.canvas.draw()
    texts = texts_of(figure.axes[0])
    assert all(name in texts for name in sets)
    assert sets == before


def test_upset_leaves_empty_sets_out_and_needs_two_others():
    figure = plot_upset(make_sets(2) | {"nobody": frozenset()})
    assert "nobody" not in texts_of(figure.axes[0])
    with pytest.raises(ValueError, match="at least two"):
        plot_upset(make_sets(1) | {"nobody": frozenset()})


def test_upset_counts_nodes_by_side_and_draws_the_largest():
    """Exclusive intersections: 4 nodes of a alone, 3 shared, 2 of b alone, node 20 in both with other sides."""
    a = {(node, 1) for node in range(7)} | {(20, 1)}
    b = {(node, 1) for node in range(4, 7)} | {(10, 1)} | {(20, -1)}
    texts = texts_of(plot_upset({"a": frozenset(a), "b": frozenset(b)}).axes[0])
    assert {"5", "3", "2"} <= set(texts)
    fewer = texts_of(plot_upset({"a": frozenset(a), "b": frozenset(b)}, max_intersections=2).axes[0])
    assert {"5", "3"} <= set(fewer)
