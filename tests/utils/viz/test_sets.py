import logging

import matplotlib.pyplot as plt
import pytest
from matplotlib.axes import Axes
from matplotlib.text import Text

from utils.viz.sets import plot_upset, plot_venn


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def make_sets(count, *, empty=0):
    """Sets of 4 to 7 nodes that overlap, and empty ones after them."""
    filled = {f"persona-{i}": frozenset((node, 1) for node in range(i % 4, 4 + i)) for i in range(count)}
    return filled | {f"nobody-{i}": frozenset() for i in range(empty)}


def shown_texts(figure):
    figure.draw_without_rendering()
    texts = figure.findobj(Text)
    return [text for text in texts if text.get_visible() and text.get_text().strip()]


def words_of(figure):
    return " ".join(" ".join(text.get_text() for text in shown_texts(figure)).split())


def overlapping(figure):
    """Pairs of texts whose boxes share more than their edges."""
    texts = shown_texts(figure)
    boxes = [text.get_window_extent().padded(-1) for text in texts]
    return [
        (texts[i].get_text(), texts[j].get_text())
        for i in range(len(texts))
        for j in range(i)
        if boxes[i].overlaps(boxes[j])
    ]


@pytest.mark.parametrize("empty", [0, 2])
@pytest.mark.parametrize("count", [7, 9])
def test_more_sets_than_a_venn_diagram_shows_are_an_upset_plot_that_says_so(count, empty, caplog):
    ax = plot_venn(make_sets(count, empty=empty))
    assert isinstance(ax, Axes)
    words = words_of(ax.figure)
    assert f"{count} sets are more than a Venn diagram shows (6): drawn as an UpSet plot." in words
    assert all(f"persona-{i}" in words for i in range(count))
    assert ("empty sets: nobody-0, nobody-1" in words) == bool(empty)
    assert [record.levelno for record in caplog.records if "UpSet" in record.message] == [logging.WARNING]
    assert not overlapping(ax.figure)
    # The matrix has a row a set and a column an intersection.
    assert [round(abs(high - low)) for low, high in [ax.get_ylim()]] == [count]


def test_empty_sets_do_not_count_against_a_venn_diagram(caplog):
    ax = plot_venn(make_sets(6, empty=3))
    assert "UpSet" not in words_of(ax.figure)
    assert not caplog.records


def test_too_many_sets_do_not_fit_into_given_axes():
    _, ax = plt.subplots()
    numbers = plt.get_fignums()
    with pytest.raises(ValueError, match=r"7 sets are more .* leave out ax or use plot_upset"):
        plot_venn(make_sets(7), ax=ax)
    assert plt.get_fignums() == numbers


@pytest.mark.parametrize("empty", [1, 2])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_empty_sets_are_named_below_the_diagram(count, empty):
    ax = plot_venn(make_sets(count, empty=empty))
    ax.figure.draw_without_rendering()
    texts = {text.get_text(): text for text in shown_texts(ax.figure)}
    assert {"empty:", *(f"nobody-{i} (0)" for i in range(empty))} <= set(texts)
    bottom = ax.get_window_extent().y0
    assert all(text.get_window_extent().y1 <= bottom for name, text in texts.items() if "nobody" in name)
    assert not overlapping(ax.figure)


def test_one_set_beside_empty_ones_is_one_circle_with_its_count():
    ax = plot_venn({"a": frozenset({(1, 1), (2, -1)}), "b": frozenset()})
    numbers = [text.get_text() for text in shown_texts(ax.figure)]
    assert sorted(numbers) == ["2", "a (2)", "b (0)", "empty:"]


def test_a_set_keeps_its_colour_when_another_is_empty():
    sets = {"a": frozenset({(1, 1)}), "b": frozenset({(2, 1), (3, 1)}), "c": frozenset({(4, 1)})}
    colours = [patch.get_facecolor() for patch in plot_venn(sets).patches]
    alone = [patch.get_facecolor() for patch in plot_venn(sets | {"a": frozenset()}).patches]
    assert len(alone) == 2
    assert all(colour in colours for colour in alone)


def test_upset_says_which_intersections_are_left_out():
    """Exclusive intersections of 5, 4, 1 and 1 nodes."""
    sizes = {("a",): 5, ("b",): 4, ("a", "b"): 1, ("c",): 1}
    nodes = iter(range(100))
    sets = {name: set() for name in "abc"}
    for names, size in sizes.items():
        for node in [next(nodes) for _ in range(size)]:
            for name in names:
                sets[name].add((node, 1))
    frozen = {name: frozenset(held) for name, held in sets.items()}
    assert "Not drawn" not in words_of(plot_upset(frozen))
    figure = plot_upset(frozen, max_intersections=2)
    assert "Not drawn: 2 intersections of at most 1 node" in words_of(figure)
    assert not overlapping(figure)


@pytest.mark.parametrize("count", [2, 8])
def test_upset_names_empty_sets_and_has_a_title(count):
    figure = plot_upset(make_sets(count, empty=2), title="Who holds what")
    words = words_of(figure)
    assert "Who holds what" in words
    assert "Not drawn: empty sets: nobody-0, nobody-1" in words
    assert not overlapping(figure)


@pytest.mark.parametrize("plot", [plot_venn, plot_upset])
def test_nothing_but_empty_sets_is_refused(plot):
    with pytest.raises(ValueError, match="empty"):
        plot(make_sets(0, empty=3))
