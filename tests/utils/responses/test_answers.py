import numpy as np
import pandas as pd
import pytest
import torch
from patched import make_questions, make_wide
from scipy.stats import binomtest

from utils.models.prompts import render_chat
from utils.responses.answers import LOGITS, answer_questions, compare_answers, persona_answers
from utils.responses.wording import question_text


def ask(lm, questions, **options):
    return answer_questions(lm, questions, progress=False, **options)


@pytest.mark.parametrize("kind", ["llama", "gemma-2", "opt"])
@pytest.mark.parametrize("system", [None, "You are a nurse."])
def test_logits_are_those_of_the_letters_behind_the_whole_prompt(kind, system):
    lm, questions = make_wide(kind), make_questions(4)
    found = ask(lm, questions, system=system)
    letters = lm.tokenizer.convert_tokens_to_ids(list("ABCD"))
    for row, (_, question) in zip(found.itertuples(), questions.iterrows(), strict=True):
        text = render_chat(lm.tokenizer, question_text(question), system=system)
        with torch.no_grad():
            logits = lm.model(lm.tokenizer(text, return_tensors="pt")["input_ids"]).logits[0, -1].double()
        np.testing.assert_allclose([getattr(row, name) for name in LOGITS], logits[letters], atol=1e-5)
        assert row.answer == "ABCD"[int(logits[letters].argmax())]
        assert row.correct == (row.answer == question["answer"])
        assert row.letter_mass == pytest.approx(float(logits.softmax(0)[letters].sum()), rel=1e-5)
    assert found["id"].tolist() == questions["id"].tolist()


def test_batches_do_not_matter():
    lm, questions = make_wide(), make_questions(5)
    one, all_together = ask(lm, questions, batch_size=1), ask(lm, questions.iloc[::-1], batch_size=5)
    np.testing.assert_allclose(one[LOGITS], all_together.iloc[::-1][LOGITS], atol=1e-5)


def test_questions_longer_than_the_context():
    lm = make_wide()
    lm.model.config.max_position_embeddings = 40
    with pytest.raises(ValueError, match="the model's context window has 40"):
        ask(lm, make_questions())


def test_answers_of_identities():
    lm, questions = make_wide(), make_questions(4)
    identities = pd.DataFrame({"identity": ["person", "nurse"], "group": ["control", "job"]})
    table = persona_answers(lm, questions, identities, n_bootstrap=20, progress=False)
    assert table["kind"].tolist() == ["identity", "identity", "group", "group"]
    own = table.iloc[0]
    assert (own["changed"], own["shift"], own["gained"], own["lost"], own["p_value"]) == (0, 0, 0, 0, 1)
    # Groups of one answer as their only identity does.
    assert table.iloc[1, 3:].equals(table.iloc[3, 3:])
    nurse = ask(lm, questions, system="You are a nurse.")
    assert table.iloc[1]["accuracy"] == nurse["correct"].mean()


def logits_of(answers):
    """Logits by which these letters (0 to 3) are answered."""
    return np.eye(4)[answers] * 2.0


def test_measures_in_closed_form():
    right = np.array([0, 1, 2, 3])
    base = logits_of([0, 1, 0, 0])
    changed = logits_of([0, 0, 2, 3])
    identities = pd.DataFrame({"identity": ["a"], "group": ["g"]})
    row = compare_answers(base, changed[None], right, identities).iloc[0]
    assert (row["accuracy"], row["accuracy_change"], row["changed"]) == (0.75, 0.25, 0.75)
    assert (row["gained"], row["lost"]) == (2, 1)
    assert row["p_value"] == binomtest(2, 3).pvalue
    # Three questions move a letter by 2 up and another by 2 down.
    assert row["shift"] == pytest.approx(3 * 4 / 4)
    assert row["right_shift"] == pytest.approx(2 * (2 - 1) / 4)
    assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]


def test_p_values_are_corrected_among_identities_and_among_groups():
    rng = np.random.default_rng(0)
    right, base = np.zeros(60, int), logits_of(np.ones(60, int))
    better = logits_of(np.where(rng.random(60) < 0.3, 0, 1))
    logits = np.stack([better, base, base, base])
    identities = pd.DataFrame({"identity": list("abcd"), "group": ["g", "h", "h", "h"]})
    table = compare_answers(base, logits, right, identities)
    first = table.iloc[0]
    assert first["p_value"] < 1e-3
    assert first["p_adjusted"] == pytest.approx(min(1, 4 * first["p_value"]))
    assert table.iloc[4]["p_adjusted"] == pytest.approx(min(1, 2 * first["p_value"]))


def test_an_identity_that_is_there_twice():
    identities = pd.DataFrame({"identity": ["nurse", "Nurse"], "group": ["a", "b"]})
    with pytest.raises(ValueError, match="are the same"):
        persona_answers(make_wide(), make_questions(), identities, progress=False)


def test_the_default_model_says_a_letter(lm):
    from utils.statements.questions import load_questions

    found = ask(lm, load_questions().iloc[:4], system="You are a person.")
    assert (found["letter_mass"] > 0.3).all()
