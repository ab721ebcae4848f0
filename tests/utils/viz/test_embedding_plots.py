import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from utils.viz.layers import plot_component_pairs, plot_layer_embeddings


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def make_points(n_components=2, layers=(3,)):
    rng = np.random.default_rng(0)
    frames = []
    for layer in layers:
        frame = pd.DataFrame(rng.normal(size=(20, n_components)), columns=[f"x{i + 1}" for i in range(n_components)])
        frames.append(frame.assign(direction=["negative", "positive"] * 10, layer=layer, id="s"))
    return pd.concat(frames, ignore_index=True)


def points_of(ax):
    return np.concatenate([np.asarray(collection.get_offsets()) for collection in ax.collections])


@pytest.mark.parametrize(("n_layers", "shape"), [(1, (1, 1)), (4, (1, 4)), (8, (2, 6))])
def test_a_panel_a_layer_on_shared_axes(n_layers, shape):
    points = make_points(layers=range(n_layers))
    axes = plot_layer_embeddings(points)
    assert axes.shape == shape
    shown = [ax for ax in axes.flat if ax.get_visible()]
    assert [ax.get_title() for ax in shown] == [f"layer {layer}" for layer in range(n_layers)]
    assert len({ax.get_xlim() for ax in shown}) == 1
    for layer, ax in enumerate(shown):
        own = points[points["layer"] == layer]
        expected = np.concatenate([own[own["direction"] == side][["x1", "x2"]] for side in ("negative", "positive")])
        np.testing.assert_allclose(points_of(ax), expected)


def test_every_two_components_below_the_diagonal():
    points = make_points(n_components=3)
    axes = plot_component_pairs(points)
    assert axes.shape == (3, 3)
    for y, x in zip(*np.triu_indices(3, 1), strict=True):
        assert axes[y, x] is None
    found = points_of(axes[2, 0])
    assert {tuple(row) for row in found.round(6)} == {tuple(row) for row in points[["x1", "x3"]].to_numpy().round(6)}
