import pytest

from utils.statements.load import load_statements
from utils.statements.names import ByPersona, find_names, short_name

PERSONAS = ["subscribes-to-deontology", "politically-liberal", "openness"]


def test_names_keep_their_order_and_short_ones_are_completed():
    assert find_names("persona", ["openness", "deontology", "liberal"], PERSONAS) == [PERSONAS[2], *PERSONAS[:2]]
    assert find_names("letter", ["b", "a"], iter(["a", "b", "b"])) == ["b", "a"]
    assert find_names("letter", [], []) == []


def test_a_full_name_goes_before_a_short_one():
    assert find_names("persona", ["liberal"], ["politically-liberal", "liberal"]) == ["liberal"]


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("deontologie", r"unknown persona 'deontologie'; did you mean subscribes-to-deontology\?"),
        ("subscribe-to-deontology", r"did you mean subscribes-to-deontology\?"),
        ("qqq", r"known are: subscribes-to-deontology, politically-liberal, openness\."),
    ],
)
def test_misspelt_names(wanted, said):
    with pytest.raises(ValueError, match=said):
        find_names("persona", ["openness", wanted], PERSONAS)


def test_a_short_name_of_several_is_refused():
    with pytest.raises(ValueError, match=r"did you mean politically-calm or subscribes-to-calm\?"):
        find_names("persona", ["calm"], ["politically-calm", "subscribes-to-calm"])


def test_by_persona_answers_to_short_names():
    held = ByPersona(dict.fromkeys(PERSONAS, 1) | {"subscribes-to-deontology": 2})
    assert held["deontology"] == held["subscribes-to-deontology"] == 2
    assert list(held) == PERSONAS
    with pytest.raises(KeyError, match="did you mean openness"):
        held["opennes"]


def test_shipped_personas_by_short_name():
    whole = load_statements()
    short = load_statements(personas=[short_name(name) for name in whole["persona"].unique()])
    assert short.equals(whole)
