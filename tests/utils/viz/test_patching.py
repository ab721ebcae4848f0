import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from utils.viz.patching import (
    plot_agreement,
    plot_claims,
    plot_group_attention,
    plot_head_map,
    plot_patch_grid,
    plot_terms,
)


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def make_grid():
    rows = [
        ("resid", 0, "persona", 1.0, 0.9, 1.1), ("resid", 1, "persona", 0.5, -0.1, 1.0), ("resid", 2, "last", -0.2, -0.3, -0.1),
        ("mlp", 1, "persona", 0.1, 0.0, 0.2), ("mlp", 2, "last", 0.2, 0.1, 0.3),
    ]  # fmt: skip
    columns = ["component", "layer", "segment", "effect", "effect_low", "effect_high"]
    return pd.DataFrame(rows, columns=columns).assign(head=-1, fallback=False)


def test_every_cell_is_where_it_belongs():
    axes = plot_patch_grid(make_grid())
    assert [ax.get_title() for ax in axes] == ["residual stream", "MLP"]
    image = axes[0].images[0]
    expected = [[1.0, 0.5, np.nan], [np.nan, np.nan, -0.2]]
    np.testing.assert_allclose(np.ma.filled(image.get_array(), np.nan), expected)
    assert image.get_clim() == axes[1].images[0].get_clim() == (-1, 1)
    assert [label.get_text() for label in axes[1].get_yticklabels()] == ["persona", "last"]


def test_dots_mark_intervals_without_zero():
    axes = plot_patch_grid(make_grid())
    dots = [list(zip(*ax.lines[0].get_data(), strict=True)) for ax in axes]
    assert dots == [[(0, 0), (2, 1)], [(2, 1)]]


def test_claims_are_drawn_layer_by_layer_beside_the_third_that_they_expect():
    places = [(component, segment) for component, segment in (("mlp", "persona"), ("attn", "last")) for _ in range(7)]
    table = pd.DataFrame(places, columns=["component", "segment"]).assign(layer=[*range(1, 8)] * 2)
    table["effect"] = np.r_[np.arange(7.0), -np.arange(7.0)]
    table = table.assign(effect_low=table["effect"] - 0.5, effect_high=table["effect"] + 0.25)
    axes = plot_claims(table.sample(frac=1, random_state=0))
    for ax, sign, (first, last) in zip(axes, (1, -1), ((1, 2), (3, 4)), strict=True):
        np.testing.assert_allclose(ax.lines[0].get_xydata(), np.c_[np.arange(1, 8), sign * np.arange(7)])
        bars = np.array(ax.collections[0].get_segments())[:, :, 1]
        np.testing.assert_allclose(bars, np.c_[sign * np.arange(7) - 0.5, sign * np.arange(7) + 0.25])
        assert ax.patches[0].get_x() == first - 0.5
        assert ax.patches[0].get_x() + ax.patches[0].get_width() == last + 0.5


def test_head_map():
    table = pd.DataFrame({"layer": [1, 1, 2, 2], "head": [0, 1, 0, 1], "effect": [0.1, 0.2, -0.4, 0.0]})
    ax = plot_head_map(table)
    np.testing.assert_allclose(ax.images[0].get_array(), [[0.1, -0.4], [0.2, 0.0]])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("layer", "head")


def test_a_map_without_any_effect_is_still_drawn():
    table = pd.DataFrame({"layer": [1, 2], "head": [0, 0], "effect": [np.nan, np.nan]})
    assert plot_head_map(table).images[0].get_clim() == (-1, 1)


def test_one_panel_a_head():
    names = [
        (f"{group}{i}", group, layer, head) for group in "ab" for i in range(3) for layer in (1, 2) for head in (0, 1)
    ]
    table = pd.DataFrame(names, columns=["identity", "group", "layer", "head"]).assign(weighted=np.arange(24.0))
    axes = plot_group_attention(table, [(1, 0), (2, 1)])
    assert [ax.get_title() for ax in axes.flat] == ["layer 1, head 0", "layer 2, head 1"]
    drawn = np.sort(np.concatenate([line.get_xdata() for line in axes.flat[0].lines if line.get_marker() == "o"]))
    np.testing.assert_allclose(drawn, table.query("layer == 1 and head == 0")["weighted"])


def test_agreement_shows_each_cell_once():
    exact = make_grid()
    ax = plot_agreement(exact, exact.assign(effect=exact["effect"] * 2))
    points = np.concatenate([points.get_offsets() for points in ax.collections])
    np.testing.assert_allclose(points[:, 1], 2 * points[:, 0])
    assert len(points) == 5
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["residual stream", "MLP"]


def test_terms_show_the_change_of_each_layer():
    rows = [(who, part, layer, 1.0 + (who == "source") * layer * (part == "mlp")) for who in ("base", "source")
            for part in ("attn", "mlp") for layer in (1, 2)]  # fmt: skip
    ax = plot_terms(pd.DataFrame(rows, columns=["identity", "component", "layer", "term"]))
    assert [bar.get_height() for bar in ax.patches] == [0, 0, 1, 2]
