import io
import logging

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib import font_manager

from utils.viz.labels import as_label, fall_back, persona_label, spell
from utils.viz.layers import plot_layer_heatmap
from utils.viz.nodes import plot_overlap
from utils.viz.pages import save_figure
from utils.viz.patching import plot_group_attention
from utils.viz.sets import plot_upset, plot_venn

HOSTILE = ["Ba$$in", "costs $5 and $6", "北京", "_hidden", r"a\b^{c}", "🦊 fox", "x" * 300, "$\\frac{", "a\tb"]


def rendered(text):
    """What the renderer draws for a label, taken from the path of its glyphs."""
    figure = plt.figure(figsize=(4, 1))
    figure.text(0.1, 0.5, text)
    file = io.BytesIO()
    figure.savefig(file, format="raw", dpi=60)
    plt.close(figure)
    return file.getvalue()


@pytest.fixture(autouse=True)
def plain_font():
    with plt.rc_context({"font.family": ["DejaVu Sans"]}):
        yield
    plt.close("all")


@pytest.mark.parametrize("text", ["Ba$$in", "costs $5 and $6", "$", "a$b", r"a\$b"])
def test_dollars_are_drawn_as_they_are_read(text):
    figure = plt.figure(figsize=(4, 1))
    figure.text(0.1, 0.5, text, parse_math=False)
    file = io.BytesIO()
    figure.savefig(file, format="raw", dpi=60)
    plt.close(figure)
    assert rendered(as_label(text)) == file.getvalue()


def test_legends_show_names_with_a_leading_underscore():
    ax = plt.figure().add_subplot()
    ax.plot([0, 1], label=as_label("_hidden"))
    assert len(ax.get_legend_handles_labels()[1]) == 1


def test_long_names_keep_both_ends():
    label = as_label("a" * 100 + "z" * 100)
    assert len(label) <= 50
    assert label.startswith("aaa")
    assert label.endswith("zzz")


def test_short_names():
    assert persona_label("subscribes-to-deontology") == "deontology"
    assert persona_label("politically-liberal") == "liberal"
    assert as_label("Zoë – naïve") == "Zoë – naïve"


def test_characters_without_a_glyph_are_transliterated_and_it_is_noted(caplog):
    with caplog.at_level(logging.WARNING):
        spelt = spell("北京 fox")
    assert spelt.isascii()
    assert spelt.lower().replace(" ", "") == "beijingfox"
    assert "北京" in caplog.text
    assert spelt in caplog.text


def test_an_installed_font_that_has_the_glyphs_is_taken(monkeypatch):
    family = "DejaVu Sans Mono"
    others = [font for font in font_manager.fontManager.ttflist if font.name == family]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", others)
    monkeypatch.setattr("utils.viz.labels._WRITINGS", "d")
    monkeypatch.setattr("utils.viz.labels._glyphs", lambda families: frozenset("abc" + "d" * (len(families) > 1)))
    assert fall_back() == [family]


def test_a_font_of_boxes_is_not_taken(monkeypatch):
    boxes = [font for font in font_manager.fontManager.ttflist if "Last Resort" in font.name]
    assert boxes
    monkeypatch.setattr(font_manager.fontManager, "ttflist", boxes)
    assert fall_back() == []


def test_figures_of_hostile_names_are_drawn(tmp_path, recwarn):
    layers = pd.DataFrame([{"persona": name, "layer": k, "silhouette": 0.1 * k} for name in HOSTILE for k in range(3)])
    overlap = pd.DataFrame({"a": HOSTILE[:-1], "b": HOSTILE[1:], "jaccard": 0.5, "p_adjusted": 0.01})
    sets = {name: frozenset({(i, 1), (i + 1, 1)}) for i, name in enumerate(HOSTILE)}
    attention = pd.DataFrame(
        [{"group": name, "layer": 1, "head": 0, "weighted": float(i)} for name in HOSTILE for i in range(4)]
    )
    figures = [
        plot_layer_heatmap(layers).figure,
        plot_overlap(overlap).figure,
        plot_upset(sets),
        plot_venn(dict(list(sets.items())[:3])).figure,
        plot_venn(dict(list(sets.items())[:5])).figure,
        plot_group_attention(attention, [(1, 0)]).flat[0].figure,
    ]
    for number, figure in enumerate(figures):
        for kind in ("png", "svg", "pdf"):
            save_figure(figure, tmp_path / str(number), kind)
    assert not [str(each.message) for each in recwarn if "Glyph" in str(each.message)]


def test_same_figure_has_the_same_bytes(tmp_path):
    attention = pd.DataFrame(
        [{"group": name, "layer": 1, "head": 0, "weighted": float(i)} for name in "ab" for i in range(9)]
    )
    for name in ("one", "two"):
        np.random.seed(len(name) + ord(name[0]))  # noqa: NPY002  (the global state must not matter)
        figure = plot_group_attention(attention, [(1, 0)]).flat[0].figure
        for kind in ("png", "svg", "pdf"):
            save_figure(figure, tmp_path / name, kind)
    for ending in (".png", ".svg", ".pdf"):
        one, two = ((tmp_path / name).with_suffix(ending).read_bytes() for name in ("one", "two"))
        assert one == two
