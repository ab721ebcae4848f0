import numpy as np
import pandas as pd
import pytest
import torch

from utils.models.prompts import render_chat
from utils.responses.answers import answer_questions
from utils.responses.measures import (
    AGREEMENT,
    agreement_readout,
    likelihood_readout,
    odds_readout,
    question_readout,
    score_prompts,
    text_readout,
)
from utils.responses.wording import LETTERS

STATEMENTS = ["I like cats.", "  No state helps those in need. "]


def decode(lm, ids):
    return lm.tokenizer.decode(list(ids))


def test_statements_are_found_where_they_are_read_and_where_they_are_asked_about(tiny):
    lm = tiny()
    said, asked = likelihood_readout(lm.tokenizer, STATEMENTS), agreement_readout(lm.tokenizer, STATEMENTS)
    for i, text in enumerate(STATEMENTS):
        for readout in (said, asked):
            first, stop = readout.statements[i]
            assert decode(lm, readout.prompts[i].ids[first:stop]).strip() == text.strip()
        assert said.statements[i] == (said.prompts[i].start, said.prompts[i].stop)
        assert asked.prompts[i].start == len(asked.prompts[i].ids)
        assert decode(lm, asked.prompts[i].ids).endswith("<|assistant|>\n")
    assert list(asked.n_read) == [1, 1]


def test_a_statement_is_found_behind_a_question_that_repeats_its_words(tiny):
    lm = tiny()
    readout = odds_readout(lm.tokenizer, ["cats? I like cats"], ("Yes", "No"), statements=["cats"])
    first, stop = readout.statements[0]
    text = decode(lm, readout.prompts[0].ids)
    before = decode(lm, readout.prompts[0].ids[:first])
    assert text.rfind("cats") <= len(before) + 1
    assert "cats" in decode(lm, readout.prompts[0].ids[first:stop])


def test_whole_questions_are_the_statement_by_default(tiny):
    lm = tiny()
    readout = odds_readout(lm.tokenizer, ["Do you like dogs?"], ("Yes", "No"))
    first, stop = readout.statements[0]
    assert decode(lm, readout.prompts[0].ids[first:stop]).strip() == "Do you like dogs?"


def test_texts_are_read_behind_their_first_token(tiny):
    lm = tiny(adds_bos=False)
    readout = text_readout(lm.tokenizer, ["I like cats and dogs."])
    ids = torch.tensor([readout.prompts[0].ids])
    with torch.no_grad():
        log_p = lm.model(ids).logits[0].log_softmax(-1)
    expected = sum(float(log_p[at - 1, ids[0, at]]) for at in range(1, ids.shape[1]))
    assert readout.prompts[0].start == 1
    assert score_prompts(lm, readout, progress=False)[0] == pytest.approx(expected, abs=1e-3)


def test_a_question_is_right_where_its_letter_is_largest(tiny):
    lm = tiny(max_position_embeddings=512)
    questions = pd.DataFrame(
        [
            {"id": f"q{i}", "question": f"What is {i}?", **dict.fromkeys(LETTERS, "x"), "answer": LETTERS[i]}
            for i in range(4)
        ]
    )
    found = score_prompts(lm, question_readout(lm.tokenizer, questions), progress=False)
    np.testing.assert_array_equal(found, answer_questions(lm, questions, progress=False)["correct"])


@pytest.mark.parametrize("template", ["plain", "no-system", "with-bos", None])
def test_a_system_prompt_comes_before_the_statement(tiny, template):
    lm = tiny(template=template)
    readout = agreement_readout(lm.tokenizer, STATEMENTS, system="Be kind.")
    for prompt, (first, _) in zip(readout.prompts, readout.statements, strict=True):
        assert "Be kind." in decode(lm, prompt.ids[:first])


def test_bad_input_is_named(tiny):
    lm = tiny(template="drops-system")
    with pytest.raises(ValueError, match="same token"):
        odds_readout(lm.tokenizer, ["Well?"], ("Agree", "Agree."))
    with pytest.raises(ValueError, match="2 system prompts for 1 prompts"):
        likelihood_readout(lm.tokenizer, ["a"], system=["x", "y"])
    assert AGREEMENT.format(statement="I like cats.") in render_chat(
        lm.tokenizer, AGREEMENT.format(statement="I like cats.")
    )
