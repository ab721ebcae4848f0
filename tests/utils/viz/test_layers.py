import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from utils.viz.layers import plot_metric_map, plot_metric_maps, plot_thirds


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def thirds():
    d = np.array([0.02, -0.01, 0.001])
    names = ["politically-liberal", "openness", "mean over personas"]
    verdicts = ["supported", "not supported", "mixed"]
    return pd.DataFrame({"persona": names, "d": d, "d_low": d - 0.005, "d_high": d + 0.005, "verdict": verdicts})


def make_table(*, flips=True):
    """Three layers; silhouette lies beyond its flips at the last, Davies–Bouldin (lower is apart) at the first."""
    table = pd.DataFrame(
        {"persona": "openness", "topic": "t", "layer": [0, 1, 2, 3], "silhouette": [np.nan, 0.1, 0.2, 0.5]}
    )
    table["davies_bouldin"] = [np.nan, 1.0, 3.0, 2.0]
    if flips:
        table["silhouette_null_high"] = 0.3
        table["davies_bouldin_null_low"] = 1.5
    return table


def dots(ax):
    return {(int(x), int(y)) for line in ax.lines if line.get_marker() == "." for x, y in line.get_xydata()}


def test_each_persona_has_its_d_and_verdict(thirds):
    ax = plot_thirds(thirds)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["liberal", "openness", "mean over personas"]
    shown = {container.get_label(): container.lines[0].get_xydata().tolist() for container in ax.containers}
    assert shown == {"supported": [[0.02, 2]], "not supported": [[-0.01, 1]], "mixed": [[0.001, 0]]}


def test_verdicts_that_nobody_has_are_not_in_the_legend(thirds):
    ax = plot_thirds(thirds.head(1))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["supported"]


def test_each_metric_goes_from_its_lowest_to_its_highest_layer_and_the_turned_one_backwards():
    ax = plot_metric_map(make_table(), mark=2)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["silhouette", "−Davies–Bouldin"]
    np.testing.assert_allclose(ax.images[0].get_array(), [[0, 0.25, 1], [1, 0, 0.5]])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "2", "3"]


def test_dots_mark_what_lies_beyond_the_flips():
    assert dots(plot_metric_map(make_table())) == {(2, 0), (0, 1)}
    assert dots(plot_metric_map(make_table(flips=False))) == set()


def test_a_metric_without_spread_is_drawn():
    assert np.isfinite(plot_metric_map(make_table().assign(silhouette=0.1)).images[0].get_array()).all()


def test_a_panel_a_persona():
    both = pd.concat([make_table(), make_table().assign(persona="neuroticism")])
    axes = plot_metric_maps(both, mark=2)
    assert [ax.get_title() for ax in axes.flat] == ["openness", "neuroticism"]
