import pytest
from patched import make_questions
from tiny import make_tokenizer
from tokenizers import AddedToken

from utils.responses.wording import (
    encode_questions,
    identity_prompt,
    letter_tokens,
    question_text,
    render_questions,
)

SPACED = (
    "{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }}</s>"
    "{% else %}[INST] {{ m.content }} [/INST]{% endif %}{% endfor %}"
)


def test_question_and_options_are_in_the_prompt():
    row = make_questions().iloc[1]
    assert question_text(row).splitlines()[:5] == ["Question: 1 + 11?", "A. 1", "B. two", "C. 3", "D. 4"]


@pytest.mark.parametrize(
    ("identity", "prompt"), [("nurse", "You are a nurse."), ("Indian citizen", "You are an Indian citizen.")]
)
def test_article(identity, prompt):
    assert identity_prompt(identity) == prompt


def test_empty_identity():
    with pytest.raises(ValueError, match="the identity is empty"):
        identity_prompt(" ")


@pytest.mark.parametrize("template", ["plain", "no-system", "drops-system", "with-bos", None])
def test_the_marked_tokens_spell_the_identity(template):
    tokenizer = make_tokenizer(template)
    for prompt in encode_questions(tokenizer, make_questions(), system="You are an old nurse.", marked="old nurse"):
        assert tokenizer.decode(prompt.ids[prompt.start : prompt.stop]).strip() == "old nurse"


def test_letters_are_read_behind_the_prompt():
    tokenizer = make_tokenizer()
    text = render_questions(tokenizer, make_questions())[0]
    assert tokenizer.convert_ids_to_tokens(letter_tokens(tokenizer, text)) == ["A", "B", "C", "D"]


def test_letters_have_a_space_where_the_template_puts_one():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = SPACED
    text = render_questions(tokenizer, make_questions())[0]
    with pytest.raises(ValueError, match="letter A is not a single token"):
        letter_tokens(tokenizer, text)
    tokenizer.add_tokens([AddedToken(f" {letter}", normalized=False) for letter in "ABCD"])
    assert tokenizer.convert_ids_to_tokens(letter_tokens(tokenizer, text)) == [" A", " B", " C", " D"]


def test_letters_that_merge_with_the_end_of_the_prompt():
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken(f"\n{letter}", normalized=False) for letter in "ABCD"])
    with pytest.raises(ValueError, match="letter A is not a single token"):
        letter_tokens(tokenizer, "Answer:\n")


def test_no_questions():
    with pytest.raises(ValueError, match="the frame is empty"):
        render_questions(make_tokenizer(), make_questions().iloc[:0])
    with pytest.raises(ValueError, match="no column C"):
        render_questions(make_tokenizer(), make_questions().drop(columns="C"))
