import pytest

from utils.responses.wording import examples_prompt, persona_prompt, retrieve_examples


def test_nearest_examples_come_first():
    examples = ["The harbour was full of boats.", "Bread and butter again.", "Boats, boats and more boats."]
    queries = ["Where are the boats?", "Butter please."]
    found = retrieve_examples(examples, queries, 2)
    assert found[0] == [examples[2], examples[0]]
    assert found[1][0] == examples[1]
    with pytest.raises(ValueError, match="4 examples are asked for"):
        retrieve_examples(examples, queries, 4)


@pytest.mark.parametrize(
    ("persona", "words"),
    [
        ("openness", "a high degree of openness"),
        ("subscribes-to-virtue-ethics", "someone who subscribes to virtue ethics"),
        ("anti-LGBTQ-rights", "someone who is anti-LGBTQ-rights"),
        ("politically-liberal", "someone who is politically liberal"),
    ],
)
def test_prompts_name_the_persona(persona, words):
    assert words in persona_prompt(persona)


def test_examples_stand_behind_the_system_prompt():
    assert examples_prompt(["One.", "Two."], "Be kind.").splitlines()[0] == "Be kind."
    assert examples_prompt(["One.", "Two."]).splitlines()[-2:] == ["- One.", "- Two."]
