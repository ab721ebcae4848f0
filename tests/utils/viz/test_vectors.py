import numpy as np
import pandas as pd
import pytest

from utils.viz.vectors import (
    colour_tokens,
    plot_before_and_said,
    plot_cosines,
    plot_doses,
    plot_interference,
    plot_tokens,
    plot_turned,
)

NAMES = ["openness", "politically-liberal"]
TOKENS = pd.DataFrame(
    {
        "place": range(4),
        "token": ["<s>", "<b>", "I ", "like"],
        "part": ["prompt", "prompt", "answer", "answer"],
        "layer": 3,
        "persona": "openness",
        "projection": [9.0, -0.5, 0.1, 0.4],
    }
)


def test_cosines_are_written_where_they_belong():
    ax = plot_cosines(pd.DataFrame([[1, 0.25], [0.25, 1]], NAMES, NAMES))
    assert [text.get_text() for text in ax.texts] == ["1.00", "0.25", "0.25", "1.00"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["openness", "liberal"]


def test_stars_stand_where_the_adjusted_p_is_small():
    rows = [(a, b, i + 0.5, p) for i, (a, b, p) in enumerate(zip("aabb", "abab", [0.01, 0.5, 0.04, 0.06], strict=True))]
    ax = plot_interference(pd.DataFrame(rows, columns=["steered", "measured", "effect", "p_adjusted"]))
    assert [text.get_text() for text in ax.texts] == ["0.50*", "1.50", "2.50*", "3.50"]
    assert ax.get_xlabel() == "measured"


def test_doses_go_through_nothing_at_0():
    doses = pd.DataFrame({"persona": "a", "strength": [0.2, 0.0, -0.2], "effect": [1.0, 0.0, -1.0]})
    doses = doses.assign(low=doses["effect"] - 0.1, high=doses["effect"] + 0.1, perplexity_ratio=[1.3, 1.0, 1.2])
    effect, cost = plot_doses(doses, bound=1.1)
    np.testing.assert_allclose(effect.lines[1].get_xydata(), [[-0.2, -1], [0, 0], [0.2, 1]])
    np.testing.assert_allclose(cost.lines[1].get_xydata()[:, 1], [1.2, 1.0, 1.3])
    assert cost.lines[-1].get_ydata()[0] == 1.1


def test_turned_personas_stand_before_what_drawn_vectors_do():
    columns = ["effect", "low", "high", "random_low", "random_high", "flipped_low", "flipped_high"]
    turned = pd.DataFrame([[0.5, 0.3, 0.7, -0.1, 0.1, -0.2, 0.2]] * 2, columns=columns).assign(persona=NAMES)
    ax = plot_turned(turned)
    assert [round(bar.get_width(), 3) for bar in ax.patches] == [0.2, 0.4, 0.2, 0.4]


def test_tokens_are_coloured_by_their_projections_and_their_text_is_safe():
    page = colour_tokens(TOKENS, persona="openness", layer=3).data
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert 'title="0.400"' in page
    assert page.count("font-weight:600") == 2
    assert "±0.50" in page  # the first token does not set the scale
    ax = plot_tokens(TOKENS, persona="openness", layer=3)
    np.testing.assert_allclose(ax.lines[-1].get_xydata(), [[2, 0.1], [3, 0.4]])
    with pytest.raises(ValueError, match="read the tokens with that vector"):
        colour_tokens(TOKENS, persona="openness", layer=4)


def test_each_system_prompt_has_its_own_dots():
    answers = pd.DataFrame({"system": ["", "", "Be calm."], "before": [0.1, 0.2, 0.3], "said": [1.0, 2.0, 3.0]})
    ax = plot_before_and_said(answers.assign(persona="a", layer=1), persona="a", layer=1)
    assert [len(line.get_xdata()) for line in ax.lines] == [2, 1]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["(none)", "Be calm."]
