import itertools

import numpy as np
import pandas as pd
import pytest

from utils.patching.effects import check_groups, check_thirds


def make_cells(effects, *, n_layers=9, n=30, noise=0.05, fallback=False, seed=0):
    """Cells of 9 layers in which ``effects[component, segment]`` are the mean effects of the thirds."""
    rng = np.random.default_rng(seed)
    rows = []
    for question in range(n):
        shift = rng.uniform(0.5, 2)
        for (component, segment), layer in itertools.product(
            [("mlp", "persona"), ("attn", "last")], range(1, n_layers + 1)
        ):
            effect = effects[component][(layer - 1) * 3 // n_layers] + noise * rng.normal()
            rows.append([component, layer, segment, question, fallback, 1.0, 1.0 + shift, 1.0 + effect * shift])
    return pd.DataFrame(
        rows, columns=["component", "layer", "segment", "question", "fallback", "m_base", "m_source", "m_patched"]
    )


def check(mlp, attn, **options):
    return check_thirds(make_cells({"mlp": mlp, "attn": attn}, **options), 9)


def test_what_was_planted_is_supported():
    table = check([0.3, 0.1, 0.0], [0.0, 0.2, 0.1])
    assert table["verdict"].tolist() == ["supported", "supported"]
    assert table["first"][0] == pytest.approx(0.3, abs=0.02)
    assert table["d"][0] == pytest.approx(0.2, abs=0.03)
    assert (table["d_low"] < table["d"]).all()
    assert (table["d"] < table["d_high"]).all()


@pytest.mark.parametrize(
    ("mlp", "verdict"), [([0.1, 0.3, 0], "not supported"), ([0, 0, 0], "not supported"), ([0.2, 0.2, 0], "mixed")]
)
def test_what_was_not_planted_is_not_supported(mlp, verdict):
    assert check(mlp, [0, 0, 0])["verdict"][0] == verdict


def test_the_kind_of_question_decides_of_which_there_are_more():
    flipped = make_cells({"mlp": [0.3, 0, 0], "attn": [0, 0, 0]})
    others = make_cells({"mlp": [0, 0, 0.3], "attn": [0, 0, 0]}, fallback=True).assign(
        question=lambda t: t["question"] + 99
    )
    table = check_thirds(pd.concat([flipped, others]), 9)  # As many of both.
    assert table["verdict"][0] == "supported"
    assert (table["fallback"] == False).all()  # noqa: E712
    few = flipped[flipped["question"] < 10]
    assert check_thirds(pd.concat([few, others]), 9)["fallback"].all()


def test_few_questions_decide_nothing():
    table = check([0.3, 0.1, 0.0], [0.0, 0.2, 0.1], n=4)
    assert table["verdict"].tolist() == ["mixed", "mixed"]
    assert table["d_low"].isna().all()


def test_thirds_that_were_not_patched():
    cells = make_cells({"mlp": [0, 0, 0], "attn": [0, 0, 0]})
    with pytest.raises(ValueError, match="no mlp at the persona tokens in the middle third"):
        check_thirds(cells[~cells["layer"].between(4, 6)], 9)


def heads(p_adjusted, difference):
    return pd.DataFrame({"group": ["race-and-colour", "age"] * 2, "p_adjusted": p_adjusted, "difference": difference})


def test_heads_that_read_a_group_are_counted():
    table = check_groups(heads([0.01, 0.2, 0.03, 0.9], [1.0, 1, -1, 1])).set_index("group")
    assert table.loc["race-and-colour"].tolist() == [2, 1, 0.01, "supported"]
    assert table.loc["age"].tolist() == [0, 0, 0.2, ""]
    assert check_groups(heads([0.1] * 4, [1.0] * 4))["verdict"].tolist() == ["not supported", ""]
