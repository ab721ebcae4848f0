import math

import numpy as np
import pandas as pd
import pytest
import torch

from utils.models.prompts import render_chat
from utils.responses.measures import AGREEMENT, OPENING
from utils.responses.preference import (
    CHOICE,
    answer_odds,
    choose_statements,
    perplexity,
    self_report,
    statement_likelihood,
    text_likelihood,
)
from utils.statements.splits import pair_differences

STATEMENTS = pd.DataFrame(
    {
        "id": ["a-p", "b-n", "a-n", "b-p"],
        "direction": ["positive", "negative", "negative", "positive"],
        "pair": ["a", "b", "a", "b"],
        "statement": ["I like cats.", "Those in need are many and so it goes.", "I like dogs.", "No state helps."],
    }
)
QUIET = {"progress": False}
KINDS = ["llama", "gemma-2", "granite", "gpt-2"]


def log_probabilities(lm, text):
    """Ids, and transformers' own log-probabilities of each next token, for one text without batch or cache."""
    ids = lm.tokenizer(text)["input_ids"]
    with torch.no_grad():
        return ids, lm.model(torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(-1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("system", [None, "You are kind.", ["A.", "You are a cat.", "B.", "C."]])
def test_likelihood_is_that_of_the_answers_tokens(tiny, kind, system):
    lm = tiny(kind, max_position_embeddings=256) if kind != "gpt-2" else tiny(kind, n_positions=256)
    table = statement_likelihood(lm, STATEMENTS, system=system, **QUIET)
    for i, text in enumerate(STATEMENTS["statement"]):
        opened = render_chat(lm.tokenizer, OPENING, system=system[i] if isinstance(system, list) else system)
        ids, found = log_probabilities(lm, opened + text)
        first = len(lm.tokenizer(opened)["input_ids"])
        expected = sum(float(found[at - 1, ids[at]]) for at in range(first, len(ids)))
        assert table["tokens"][i] == len(ids) - first
        assert table["log_likelihood"][i] == pytest.approx(expected, abs=1e-3)
        assert table["value"][i] == pytest.approx(expected / (len(ids) - first), abs=1e-4)
    assert list(table["id"]) == list(STATEMENTS["id"])


@pytest.mark.parametrize("kind", KINDS)
def test_self_report_compares_the_next_token(tiny, kind):
    lm = tiny(kind, max_position_embeddings=512) if kind != "gpt-2" else tiny(kind, n_positions=512)
    table = self_report(lm, STATEMENTS, **QUIET)
    agree, disagree = (lm.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("Agree", "Disagree"))
    for i, text in enumerate(STATEMENTS["statement"]):
        _, found = log_probabilities(lm, render_chat(lm.tokenizer, AGREEMENT.format(statement=text)))
        assert table["value"][i] == pytest.approx(float(found[-1, agree] - found[-1, disagree]), abs=1e-4)


def test_two_options_are_offered_in_both_orders(tiny):
    lm = tiny(max_position_embeddings=512)
    table = choose_statements(lm, STATEMENTS, **QUIET)
    assert list(table["pair"]) == ["a", "b"]
    a, b = "I like cats.", "I like dogs."
    asked = [CHOICE.format(first=a, second=b), CHOICE.format(first=b, second=a)]
    odds = answer_odds(lm, asked, ("A", "B"), **QUIET)
    assert table["value"][0] == pytest.approx((odds[0] - odds[1]) / 2, abs=1e-5)


def test_swapping_the_sides_turns_the_choice_around(tiny):
    lm = tiny(max_position_embeddings=512)
    swapped = STATEMENTS.assign(direction=STATEMENTS["direction"].map({"positive": "negative", "negative": "positive"}))
    there, back = (choose_statements(lm, frame, **QUIET).set_index("pair")["value"] for frame in (STATEMENTS, swapped))
    np.testing.assert_allclose(there, -back[there.index], atol=1e-5)


def test_batches_do_not_matter(tiny):
    lm = tiny(max_position_embeddings=256)
    one, four = (statement_likelihood(lm, STATEMENTS, batch_size=size, **QUIET)["value"] for size in (1, 4))
    np.testing.assert_allclose(one, four, atol=1e-5)


@pytest.mark.parametrize("adds_bos", [True, False])
def test_perplexity_of_plain_texts(tiny, adds_bos):
    lm = tiny(adds_bos=adds_bos)
    texts = ["I like cats and dogs.", "No."]
    likelihood = text_likelihood(lm, texts, **QUIET)
    total, count = 0.0, 0
    for text in texts:
        ids, found = log_probabilities(lm, text)
        total += sum(float(found[at - 1, ids[at]]) for at in range(1, len(ids)))
        count += len(ids) - 1
    assert perplexity(likelihood) == pytest.approx(math.exp(-total / count), rel=1e-4)


def test_differences_go_by_pair():
    values = STATEMENTS.assign(value=[1.0, 20.0, 4.0, 50.0])
    assert pair_differences(values).to_dict() == {"a": -3.0, "b": 30.0}
    assert pair_differences(pd.DataFrame({"pair": ["a"], "value": [2.0]})).to_dict() == {"a": 2.0}


@pytest.mark.parametrize("pair", [["a", "b", "a", "c"], ["", "", "", ""], [None] * 4])
def test_statements_without_whole_pairs(pair):
    with pytest.raises(ValueError, match="whole pairs"):
        pair_differences(STATEMENTS.assign(pair=pair, value=0.0))


def test_answers_that_begin_alike(tiny):
    with pytest.raises(ValueError, match="begin with the same token"):
        answer_odds(tiny(), ["Well?"], ("Agree", "Agree."), **QUIET)


def test_wrong_number_of_system_prompts(tiny):
    with pytest.raises(ValueError, match="2 system prompts for 4"):
        self_report(tiny(), STATEMENTS, system=["a", "b"], **QUIET)


def test_prompts_longer_than_the_context_window(tiny):
    with pytest.raises(ValueError, match="context window has 16"):
        self_report(tiny(max_position_embeddings=16), STATEMENTS, **QUIET)


def test_logits_that_are_not_finite(tiny):
    lm = tiny(max_position_embeddings=512)
    with torch.no_grad():
        lm.model.get_parameter("model.norm.weight").fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        self_report(lm, STATEMENTS, **QUIET)
