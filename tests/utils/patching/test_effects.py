import logging

import numpy as np
import pandas as pd
import pytest

from utils.patching.effects import choose_letters, choose_questions, summarise_cells


def make_cells(m_base, m_source, m_patched, *, fallback=False, layer=1):
    n = len(m_base)
    columns = {"m_base": m_base, "m_source": m_source, "m_patched": m_patched, "m_direct": m_base}
    names = {"component": "mlp", "layer": layer, "segment": "last", "head": -1, "fallback": fallback}
    return pd.DataFrame({**columns, "question": [f"q{i}" for i in range(n)], "kl_base": 1.0, "kl_source": 0.5}).assign(
        **names
    )


def test_effect_is_aratio_of_sums_and_not_a_mean_of_ratios():
    cells = make_cells([0.0, 0.0], [1.0, 9.0], [1.0, 0.0])
    row = summarise_cells(cells).iloc[0]
    assert row["effect"] == pytest.approx(0.1)  # The mean of the ratios would be 0.5.
    assert (row["direct"], row["indirect"]) == (0, pytest.approx(0.1))
    assert (row["logit_difference"], row["logit_difference_change"]) == (0.5, 0.5)


def test_interval_is_as_wide_as_repeated_samples_are():
    rng = np.random.default_rng(0)
    width = []
    points = []
    for draw in range(60):
        change = rng.normal(0.5, 0.3, size=40)
        row = summarise_cells(make_cells(np.zeros(40), np.ones(40), change), n_bootstrap=300, rng=draw).iloc[0]
        width.append(row["effect_high"] - row["effect_low"])
        points.append(row["effect_low"] <= 0.5 <= row["effect_high"])
    assert np.mean(width) == pytest.approx(2 * 1.96 * 0.3 / np.sqrt(40), rel=0.1)
    assert 0.86 <= np.mean(points) <= 1


def test_nothing_to_divide_by_gives_nan_and_says_so(caplog):
    row = summarise_cells(make_cells([1.0, 2.0], [1.0, 2.0], [3.0, 2.0])).iloc[0]
    assert np.isnan([row["effect"], row["effect_low"], row["direct"], row["indirect"]]).all()
    assert row["logit_difference_change"] == 1
    assert "effects are NaN" in caplog.text


@pytest.mark.parametrize("n", [1, 4, 5])
def test_few_questions_have_no_interval(n):
    row = summarise_cells(make_cells([0.0] * n, [2.0] * n, [1.0] * n)).iloc[0]
    assert row["effect"] == 0.5
    assert np.isnan([row["effect_low"], row["effect_high"]]).all() == (n < 5)


def test_rows_may_come_in_any_order():
    one, two = make_cells([0.0] * 6, [1.0] * 6, np.arange(6.0)), make_cells([0.0] * 6, [1.0] * 6, [2.0] * 6, layer=2)
    by_cell = pd.concat([one, two], ignore_index=True)
    shuffled = by_cell.sample(frac=1, random_state=0)
    for cells in (by_cell, shuffled):
        table = summarise_cells(cells).set_index("layer")
        assert table["effect"].to_dict() == pytest.approx({1: 2.5, 2: 2})
        assert table.loc[2, "effect_low"] == pytest.approx(2)
    with pytest.raises(ValueError, match="2 cells x 6 questions have 11 rows"):
        summarise_cells(by_cell.iloc[:-1])


def test_flipped_and_fallback_questions_are_not_mixed():
    cells = pd.concat([make_cells([0.0], [1.0], [1.0]), make_cells([0.0], [1.0], [0.0], fallback=True)])
    table = summarise_cells(cells).set_index("fallback")
    assert table["effect"].to_dict() == {False: 1, True: 0}
    assert table["n_questions"].tolist() == [1, 1]


def test_letters_of_a_flip_are_the_two_answers():
    found = choose_letters(np.array([[3.0, 2, 0, 0]]), np.array([[2.0, 3, 0, 9.0]])).iloc[0]
    assert (found["base_letter"], found["source_letter"], found["fallback"]) == ("A", "D", False)
    assert found["shift"] == 10


def test_letters_of_an_unchanged_answer_are_those_that_move_most():
    found = choose_letters(np.array([[9.0, 2, 5, 0]]), np.array([[9.0, 3, 1, 0]])).iloc[0]
    assert (found["base_letter"], found["source_letter"], found["fallback"], found["shift"]) == ("C", "B", True, 5)


def answers_of(*logits):
    columns = dict(zip([f"logit_{letter}" for letter in "ABCD"], np.array(logits, float).T, strict=True))
    return pd.DataFrame({"id": list("xyz"), **columns})


BASE = answers_of([1, 0, 0, 0], [5, 0, 0, 0], [1, 0, 0, 0])
SOURCE = answers_of([0, 1, 0, 0], [1, 4, 0, 0], [9, 0, 0, 0])


def test_flips_go_first_then_the_largest_shift():
    questions = pd.DataFrame({"id": list("xyz")})
    assert choose_questions(questions, BASE, SOURCE, n=2)["id"].tolist() == ["y", "x"]


def test_a_lack_of_flips_is_told(caplog):
    questions = pd.DataFrame({"id": list("xyz")})
    chosen = choose_questions(questions, BASE, SOURCE, n=5)
    assert chosen["fallback"].tolist() == [False, False, True]
    assert "2 of 3 questions change the answer; 1 with the largest shift" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert choose_questions(questions, BASE, BASE, n=2)["fallback"].all()
    assert "none of 3 questions change the answer" in caplog.text


def test_answers_to_other_questions():
    with pytest.raises(ValueError, match="not of these questions"):
        choose_questions(pd.DataFrame({"id": list("xzy")}), BASE, SOURCE)
    with pytest.raises(ValueError, match="n must be at least 1"):
        choose_questions(pd.DataFrame({"id": list("xyz")}), BASE, SOURCE, n=0)
