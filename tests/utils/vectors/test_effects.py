import numpy as np
import pandas as pd
import pytest
from wired import NODES, PERSONA

from utils.causal.interventions import steer_along
from utils.responses.preference import statement_likelihood, text_likelihood
from utils.statements.contrasts import find_contrasts, restrict
from utils.statements.load import load_statements
from utils.statements.splits import pair_differences
from utils.vectors.doses import choose_dose, largest_strengths, measure_doses, split_for_steering, take_pairs
from utils.vectors.effects import (
    Change,
    draw_controls,
    evaluate_vectors,
    find_interference,
    find_turned,
    measure_changes,
)
from utils.vectors.fit import persona_vectors
from utils.vectors.steering import add_vectors, steering

TEXTS = ["Tell me something about yourself .", "the word1 word2 word3 the", "A or B : answer the statement"]
LAYER = 2


@pytest.fixture(scope="module")
def setting(wired):
    """The wired model, its statements, their parts, and vectors fitted on one part."""
    lm, study = wired
    frame = load_statements(study.config["statements"])
    part = split_for_steering(frame)
    fit_on = [restrict(contrast, part == "fit") for contrast in find_contrasts(frame)]
    return lm, frame, part, fit_on, persona_vectors(study.activations, fit_on, layers=[1, 2]), study.activations


def controls(setting, strength=0.4, n=39):
    _, _, _, fit_on, vectors, acts = setting
    return draw_controls(vectors, acts, fit_on, layer=LAYER, strength=strength, n_random=n, n_flipped=n)


def test_the_parts_are_whole_pairs_and_none_is_in_two(setting):
    _, frame, part, *_ = setting
    assert set(part) == {"select", "fit", "measure"}
    assert frame.assign(part=part).groupby("pair")["part"].nunique().max() == 1
    few = take_pairs(frame[part == "measure"], 5)
    assert few["pair"].nunique() == 5
    assert len(few) == 10


def test_a_wired_persona_is_turned_and_random_vectors_do_not_turn_it(setting):
    lm, frame, part, *_ = setting
    held_out = take_pairs(frame[part == "measure"], 8)
    measured = measure_changes(lm, controls(setting), held_out, texts=TEXTS, progress=False)
    (row,) = find_turned(measured, [PERSONA]).to_dict("records")
    assert row["effect"] > row["random_high"]
    assert row["low"] > 0
    assert row["p_random"] == pytest.approx(1 / 40)
    assert row["p_random_adjusted"] == pytest.approx(1 / 40)
    assert row["n_pairs"] == 8
    # The same numbers, by the plain way of measuring under a context.
    vectors = setting[4]
    with steering(lm, add_vectors(lm, vectors, 0.4, layers=LAYER)):
        steered = pair_differences(statement_likelihood(lm, held_out, progress=False)).mean()
        costed = text_likelihood(lm, TEXTS, progress=False)
    plain = pair_differences(statement_likelihood(lm, held_out, progress=False)).mean()
    assert row["effect"] == pytest.approx(steered - plain, abs=1e-4)
    assert row["clean"] == pytest.approx(plain, abs=1e-4)
    before = text_likelihood(lm, TEXTS, progress=False)
    ratio = np.exp((before["log_likelihood"] - costed["log_likelihood"]).sum() / before["tokens"].sum())
    assert row["perplexity_ratio"] == pytest.approx(ratio, rel=1e-4)


def test_level_of_the_ranks_where_the_vector_is_a_random_one(setting):
    """A direction drawn like the random ones is as likely to have any rank."""
    lm, frame, part, *_ = setting
    held_out = take_pairs(frame[part == "measure"], 4)
    generator = np.random.default_rng(5)
    p_values = []
    changes = [
        Change(str(i), steer_along(LAYER, generator.normal(size=lm.d_model), strength=0.4, norm=5.0))
        for i in range(120)
    ]
    measured = measure_changes(
        lm,
        [*changes, Change("none", steer_along(LAYER, np.ones(lm.d_model), strength=0, norm=1))],
        held_out,
        progress=False,
    )
    by_name = dict(list(measured.groupby("condition")))
    for first in range(0, 120, 6):
        own = by_name[str(first)].assign(condition=PERSONA)
        drawn = [by_name[str(first + i)].assign(condition=f"random {i}") for i in range(1, 6)]
        p_values.append(find_turned(pd.concat([own, *drawn, by_name["none"]]), [PERSONA])["p_random"].iloc[0])
    assert 0.4 < np.mean(p_values) < 0.77  # (1 + 6) / 12 = 0.58 if every rank is as likely; s.e. 0.064
    assert set(np.round(np.array(p_values) * 6, 6)) <= set(range(1, 7))


def test_doses_and_what_is_chosen_by_them(setting):
    lm, frame, part, _, vectors, _ = setting
    select = take_pairs(frame[part == "select"], 6)
    doses = measure_doses(lm, vectors, select, strengths=[-0.4, 0.1, 0.4], texts=TEXTS, progress=False)
    at = doses[doses["layer"] == LAYER].set_index("strength")
    assert at["effect"].is_monotonic_increasing
    assert at.loc[0.0, "effect"] == 0
    assert at.loc[0.0, "perplexity_ratio"] == 1
    layer, strength = choose_dose(doses, bound=np.inf)
    assert layer in (1, 2)
    means = doses[doses["strength"] > 0].groupby(["layer", "strength"])["margin"].mean()
    assert means.idxmax() == (layer, strength)
    with pytest.raises(ValueError, match="expected 1, the model as it is, or more"):
        largest_strengths(doses, bound=0.9)
    wide = largest_strengths(doses, bound=np.inf).set_index(["layer", "side"])
    assert wide.loc[(LAYER, "up"), "strength"] == 0.4
    assert wide.loc[(LAYER, "down"), "strength"] == -0.4


def test_a_strength_over_the_bound_ends_the_way():
    doses = pd.DataFrame(
        {"layer": 1, "persona": "a", "strength": [0.0, 0.1, 0.2, 0.4], "perplexity_ratio": [1, 1.05, 1.3, 1.08]}
    )
    doses = doses.assign(effect=[0, 1, 2, 3], low=0.0, high=0.0, margin=[0, 1, 2, 3])
    up = largest_strengths(doses, bound=1.1).set_index("side").loc["up"]
    assert up["strength"] == 0.1
    assert choose_dose(doses, bound=1.1) == (1, 0.4)
    assert choose_dose(doses, bound=1.06) == (1, 0.1)
    assert choose_dose(doses, bound=0.5) == (1, 0.1)


def test_interference_finds_the_planted_cells_alone():
    generator = np.random.default_rng(0)
    names = ["a", "b", "c"]
    planted = {("a", "a"): 0.5, ("a", "b"): -0.5, ("b", "b"): 0.5}
    rows = []
    for shown in names:
        clean = generator.normal(size=16)
        for condition in ["none", *names]:
            change = planted.get((condition, shown), 0.0) + 0.2 * generator.normal(size=16)
            value = clean if condition == "none" else clean + change
            rows.append(pd.DataFrame({"condition": condition, "persona": shown, "unit": range(16), "value": value}))
    measured = pd.concat(rows).assign(measure="likelihood", weight=1.0)
    cosines = pd.DataFrame(np.eye(3), names, names)
    table = find_interference(measured, cosines).set_index(["steered", "measured"])
    found = set(table.index[table["p_adjusted"] <= 0.05])
    assert found == set(planted)
    assert table.loc[("a", "b"), "effect"] < 0
    assert table.loc[("a", "a"), "flip_high"] < table.loc[("a", "a"), "effect"]


def test_vectors_in_the_shared_evaluation(setting):
    lm, frame, part, _, vectors, _ = setting
    held_out = take_pairs(frame[part == "measure"], 5)
    steered = {"up": add_vectors(lm, vectors, 0.4, layers=LAYER), "nothing": []}
    options = {"preferences": ("likelihood",), "progress": False}
    measured = evaluate_vectors(lm, steered, held_out, vectors=vectors, **options)
    means = measured[measured["measure"] == "likelihood"].groupby("condition")["value"].mean()
    assert means["up"] > means["none"]
    assert means["nothing"] == means["none"]
    with pytest.raises(ValueError, match="fitted on statements or pairs"):
        evaluate_vectors(lm, steered, frame[part == "fit"], vectors=vectors, **options)


def test_the_vector_lies_in_the_wired_nodes(setting):
    vectors = setting[4]
    largest = np.argsort(-np.abs(vectors.at(1).units[0, 0]))[: len(NODES)]
    assert set(largest.tolist()) == set(NODES)
