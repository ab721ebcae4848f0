import sys
import types

import numpy as np
import pandas as pd
import pytest

from utils.responses import big_five
from utils.responses.big_five import ITEM, find_trait, load_items, report_traits
from utils.responses.preference import answer_odds


@pytest.fixture
def inventory(monkeypatch):
    """Four items in the form in which the package has them, one of them reversed."""
    core = types.ModuleType("FFM.core")
    core.Qs = ["I worry.", "I talk.", "I am quiet.", "I paint."]

    def score(answers):
        extraversion = (answers[1] + 6 - answers[2]) / 2
        return pd.DataFrame([{"Neuroticism": answers[0], "Extraversion": extraversion, "Openness": answers[3]}])

    core.score = score
    monkeypatch.setitem(sys.modules, "FFM", types.ModuleType("FFM"))
    monkeypatch.setitem(sys.modules, "FFM.core", core)
    monkeypatch.setattr(big_five, "has_items", lambda: True)


def test_keys_are_read_off_the_scoring(inventory):
    items = load_items()
    assert items["trait"].tolist() == ["neuroticism", "extraversion", "extraversion", "openness"]
    assert items["key"].tolist() == [1, 1, -1, 1]


def test_answers_count_by_their_key(tiny, inventory):
    lm = tiny(max_position_embeddings=256)
    report = report_traits(lm, trait="extraversion", progress=False)
    odds = answer_odds(lm, [ITEM.format(item=i) for i in ("I talk.", "I am quiet.")], ("Yes", "No"), progress=False)
    np.testing.assert_allclose(report["value"], odds * [1, -1], atol=1e-5)


def test_saying_yes_to_all_cancels(tiny, inventory, monkeypatch):
    """Two items with one key and one with the other: the same yes to all of them is no trait."""
    core = sys.modules["FFM.core"]
    core.Qs = [*core.Qs, "I sing."]
    core.score = lambda answers: pd.DataFrame([{"Extraversion": sum(answers) - 2 * answers[2]}])
    monkeypatch.setattr(big_five, "answer_odds", lambda _lm, asked, *_args, **_options: np.full(len(asked), 2.5))
    report = report_traits(tiny(), trait="extraversion", progress=False)
    assert sorted(report["key"]) == [-1, 1, 1, 1, 1]
    assert (report["value"] * report["weight"]).sum() == pytest.approx(0)


def test_unknown_trait(tiny, inventory):
    with pytest.raises(ValueError, match="unknown trait 'luck'"):
        report_traits(tiny(), trait="luck")


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(big_five, "has_items", lambda: False)
    assert find_trait("extraversion") is None
    with pytest.raises(ModuleNotFoundError, match="pip install ffm"):
        load_items()


def test_only_big_five_personas_have_a_trait(inventory):
    assert find_trait("extraversion") == "extraversion"
    assert find_trait("politically-liberal") is None


@pytest.mark.skipif(not big_five.has_items(), reason="the optional package ffm is not installed")
def test_the_packages_own_items():
    """24 items a trait; and two whose keys can be told by reading them."""
    items = load_items()
    assert items["trait"].value_counts().to_dict() == dict.fromkeys(big_five.TRAITS, 24)
    keys = items.set_index("item")["key"]
    assert {keys[name] for name in items["item"] if "friends easily" in name.lower()} == {1}
    assert {keys[name] for name in items["item"] if "prefer to be alone" in name.lower()} == {-1}
