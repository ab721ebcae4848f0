import numpy as np
import pandas as pd
import pytest
from paired import make_statements

from utils.responses.evaluation import Condition, evaluate, summarise
from utils.responses.preference import neutral_texts, perplexity, self_report, statement_likelihood, text_likelihood
from utils.responses.wording import examples_prompt
from utils.statements.questions import load_questions
from utils.statements.splits import pair_differences
from utils.subnetworks.build import calibrate, persona_mask

QUIET = {"progress": False}
TEXTS = ["I like cats.", "The state is a state.", "Two and two."]


@pytest.fixture
def masked(tiny):
    """A tiny model, a mask from other statements, and statements to measure on."""
    lm = tiny(max_position_embeddings=512)
    used = make_statements(4, first=50)
    sides = [used[used["direction"] == side] for side in ("positive", "negative")]
    return lm, persona_mask(lm, calibrate(lm, *sides, **QUIET), **QUIET), make_statements()


def test_values_are_those_of_the_model_under_each_condition(masked):
    lm, mask, statements = masked
    questions = load_questions().head(3)
    conditions = [Condition("dense"), Condition("asked", system="You are kind."), Condition("mask", mask)]
    table = evaluate(lm, conditions, statements, questions=questions, texts=TEXTS, **QUIET)
    assert set(table["measure"]) == {
        *("likelihood", "self_report", "two_options", "accuracy", "perplexity", "prompt_tokens", "seconds")
    }
    wide = table.set_index(["condition", "measure"]).sort_index()

    def values(condition, measure):
        return wide.loc[(condition, measure), "value"].to_numpy()

    expected = pair_differences(self_report(lm, statements, system="You are kind.", **QUIET))
    np.testing.assert_allclose(values("asked", "self_report"), expected, atol=1e-5)
    with mask.applied(lm):
        expected = pair_differences(statement_likelihood(lm, statements, **QUIET))
        masked_perplexity = perplexity(text_likelihood(lm, TEXTS, **QUIET))
    np.testing.assert_allclose(values("mask", "likelihood"), expected, atol=1e-5)
    assert not np.allclose(values("dense", "likelihood"), values("mask", "likelihood"), atol=1e-4)
    np.testing.assert_allclose(values("dense", "perplexity"), values("asked", "perplexity"))
    summary = summarise(table).set_index(["condition", "measure"])
    assert summary.loc[("mask", "perplexity"), "estimate"] == pytest.approx(masked_perplexity, rel=1e-5)
    assert summary.loc[("dense", "likelihood"), ["change", "change_low", "change_high"]].tolist() == [0, 0, 0]


def test_examples_are_retrieved_for_each_pair(masked, monkeypatch):
    lm, _, statements = masked
    given = []
    monkeypatch.setattr("utils.responses.evaluation.statement_likelihood", _record(given, statement_likelihood))
    examples = ("I welcome thing 3.", "I welcome thing 4.", "Nothing at all.")
    condition = Condition("few-shot", examples=examples, n_examples=1)
    evaluate(lm, [condition], statements.iloc[6:10], preferences=["likelihood"], **QUIET)
    # Words of one letter do not count, so that the examples tie and go to the first; both sides of a pair get one prompt.
    assert given[0] == [examples_prompt(examples[:1])] * 4


def _record(given, real):
    def measure(lm, statements, *, system, **options):
        given.append(system)
        return real(lm, statements, system=system, **options)

    return measure


@pytest.mark.parametrize("shared", ["pair", "text", "example"])
def test_what_was_calibrated_on_is_not_measured_on(masked, shared):
    lm, mask, _ = masked
    statements = make_statements(2, first=50)
    if shared == "pair":
        statements["statement"] += " Indeed."
    if shared == "text":
        statements["pair"] = statements["pair"] + "x"
    condition = Condition("m", mask)
    if shared == "example":
        condition = Condition("e", examples=(statements["statement"][0],), n_examples=1)
    with pytest.raises(ValueError, match="was made from statements or pairs"):
        evaluate(lm, [condition], statements, **QUIET)


def test_answers_are_timed_with_the_self_report_only(masked):
    lm, _, statements = masked
    table = evaluate(lm, [Condition("dense")], statements, preferences=["likelihood"], **QUIET)
    assert set(table["measure"]) == {"likelihood"}


def test_a_measure_that_some_conditions_lack():
    """Nulls measured on fewer columns: what they have is compared with the baseline, what they lack is not there."""
    both = pd.concat(
        [make_measured({"a": np.ones(4), "b": np.zeros(4)}), make_measured({"a": np.ones(4)}, measure="x")]
    )
    found = summarise(both, baseline="a").set_index(["condition", "measure"])
    assert found.loc[("b", "likelihood"), "change"] == -1
    assert ("b", "x") not in found.index


def test_conditions_of_one_name(masked):
    lm, mask, statements = masked
    with pytest.raises(ValueError, match="names of their own"):
        evaluate(lm, [Condition("a"), Condition("a", mask)], statements, **QUIET)


def make_measured(values, *, measure="likelihood", weight=1.0):
    return pd.concat(
        pd.DataFrame({"unit": [str(i) for i in range(len(v))], "value": v, "weight": weight}).assign(
            condition=name, measure=measure
        )
        for name, v in values.items()
    )


def test_intervals_cover_the_mean_as_often_as_they_say():
    rng, covered = np.random.default_rng(0), []
    for seed in range(200):
        base = rng.normal(size=60)
        table = summarise(make_measured({"a": base, "b": base + rng.normal(0.5, 1, 60)}), n_bootstrap=300, rng=seed)
        covered.append(table["change_low"][1] <= 0.5 <= table["change_high"][1])
    assert 0.89 <= np.mean(covered) <= 0.98


def test_units_are_matched_by_name():
    """Shared differences between pairs cancel, in whatever order the units come."""
    base = np.linspace(-50, 50, 40)
    table = make_measured({"a": base, "b": base + 1})
    shuffled = table.sample(frac=1, random_state=0)
    found = summarise(shuffled, baseline="a").set_index("condition")
    assert found.loc["b", ["change", "change_low", "change_high"]].tolist() == pytest.approx([1, 1, 1])
    with pytest.raises(ValueError, match="no condition 'c'"):
        summarise(table, baseline="c")


def test_perplexity_is_compared_as_a_ratio():
    table = make_measured({"a": -np.ones(5), "b": -2 * np.ones(5)}, measure="perplexity", weight=1.0)
    found = summarise(table).set_index("condition")
    assert found.loc["b", "estimate"] == pytest.approx(np.exp(2))
    assert found.loc["b", "change"] == pytest.approx(np.e)


def test_neutral_texts_hold_the_right_answer():
    questions = load_questions().head(1)
    assert neutral_texts(questions) == ["What is 3 + 4? 7."]
