from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from utils.statements.contrasts import find_contrasts
from utils.statements.form import (
    FORM_LIMIT,
    FUNCTION_WORDS,
    content_accuracy,
    form_accuracy,
    form_features,
    form_table,
    has_negation,
    words,
)
from utils.statements.load import load_statements

EVALS = Path(__file__).resolve().parents[4] / "shared" / "data" / "anthropic-evals" / "persona"
COMMON = ["the", "of", "and", "to", "in", "my", "it", "was", "for", "with", "on", "at", "we", "they", "this", "so"]
NOUNS = ["lamp", "river", "garden", "letter", "window", "market", "teacher", "train", "bread", "winter", "song", "coat"]


def draw_statements(n, rng, add=()):
    """Nonsense of one form: function words and nouns in even shares, with one extra item each from ``add``."""
    texts = []
    for _ in range(n):
        length = rng.integers(8, 16)
        row = [str(rng.choice(COMMON if rng.random() < 0.5 else NOUNS)) for _ in range(length)]
        if add:
            row.insert(int(rng.integers(0, length)), str(rng.choice(add)))
        texts.append(" ".join(row))
    return texts


def lay_out(n_pairs):
    """Labels and pair numbers of n negative statements before their n positive ones."""
    return np.repeat([False, True], n_pairs), np.tile(np.arange(n_pairs), 2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I don't know.", ["i", "don't", "know"]),
        ("I don\u2019t know", ["i", "don't", "know"]),
        ("A well-known, 'quoted' word", ["a", "well-known", "quoted", "word"]),
        ("It's 5 o'clock; the dogs' bowls!", ["it's", "5", "o'clock", "the", "dogs", "bowls"]),
        ("Wait - what?", ["wait", "what"]),
        ("...", []),
    ],
)
def test_words(text, expected):
    assert words(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "Not me",
        "no.",
        "I NEVER did",
        "none left",
        "Nobody came",
        "nothing",
        "neither of us",
        "nor I",
        "nowhere to go",
        "I cannot",
        "without you",
        "I can't",
        "It isn't.",
        "They won\u2019t go",
        "Why? No, thanks",
    ],
)
def test_negation_is_found(text):
    assert has_negation(text)


@pytest.mark.parametrize(
    "text",
    [
        "A knot in the north",
        "another note",
        "now and then",
        "a noble notion",
        "I know",
        "snow",
        "nonetheless fine",
        "within reach",
        "I can",
        "He wants it",
        "nonsense",
        "Nora notices",
        "",
    ],
)
def test_other_words_are_no_negation(text):
    assert not has_negation(text)


def test_every_function_word_is_one_word():
    assert [word for word in FUNCTION_WORDS if words(word) != [word]] == []


def test_features_are_counts():
    features = form_features(["The cat, the dog and I.", "Why not? I'm here - and it is.", "(Well!)"])
    assert features["the"].tolist() == [2, 0, 0]
    assert features["and"].tolist() == [1, 1, 0]
    assert features["not"].tolist() == [0, 1, 0]
    assert features["i'm"].tolist() == [0, 1, 0]
    assert "cat" not in features
    assert "dog" not in features
    assert features["words"].tolist() == [6, 7, 1]
    assert features["characters"].tolist() == [23, 30, 7]
    marks = {mark: features[f"mark {mark}"].tolist() for mark in [",", ".", "?", "-", "'", "!", "("]}
    assert marks == {
        ",": [1, 0, 0],
        ".": [1, 1, 0],
        "?": [0, 1, 0],
        "-": [0, 1, 0],
        "'": [0, 1, 0],
        "!": [0, 0, 1],
        "(": [0, 0, 1],
    }


def test_most_common_function_words_are_taken():
    texts = ["the the the of of and", "the of in"]
    taken = form_features(texts, n_words=2)
    assert [name for name in taken if name in FUNCTION_WORDS] == ["the", "of"]
    # Ties go by the alphabet, whatever the order of the statements.
    for order in (texts, texts[::-1]):
        assert [name for name in form_features(order, n_words=3) if name in FUNCTION_WORDS] == ["the", "of", "and"]


@pytest.mark.parametrize("add", [["not", "never"], ["should"], ["because"]])
def test_planted_function_words_are_found(add):
    rng = np.random.default_rng(1)
    texts = draw_statements(60, rng) + draw_statements(60, rng, add)
    assert form_accuracy(texts, *lay_out(60), repeats=1) > 0.9


@pytest.mark.parametrize("mark", ["!", "?", ";"])
def test_planted_punctuation_is_found(mark):
    rng = np.random.default_rng(2)
    texts = [f"{text}." for text in draw_statements(60, rng)] + [f"{text}{mark}" for text in draw_statements(60, rng)]
    assert form_accuracy(texts, *lay_out(60), repeats=1) > 0.9


def test_planted_length_is_found():
    rng = np.random.default_rng(3)
    texts = draw_statements(60, rng) + [f"{text} lamp river garden letter song" for text in draw_statements(60, rng)]
    assert form_accuracy(texts, *lay_out(60), repeats=1) > 0.75


def test_even_form_is_near_chance():
    found = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        found.append(form_accuracy(draw_statements(240, rng), *lay_out(120), repeats=2))
    assert 0.45 < np.mean(found) < 0.55
    assert max(found) < FORM_LIMIT


def test_form_is_blind_to_content():
    rng = np.random.default_rng(4)
    texts = draw_statements(120, rng, ["taxes", "church"]) + draw_statements(120, rng, ["welfare", "unions"])
    assert content_accuracy(texts, *lay_out(120)) > 0.9
    assert form_accuracy(texts, *lay_out(120), repeats=2) < FORM_LIMIT


def test_folds_keep_units_whole():
    # Two statements of a side share a word that nothing else holds: only who has seen the one knows the other.
    names = [f"{a}{b}" for a in "bcdfghjkmp" for b in "aeiou"]
    texts = [name for name in names for _ in range(2)]
    labels = np.repeat(np.arange(len(names)) % 2 == 0, 2)
    units = np.repeat(np.arange(len(names)), 2)
    assert content_accuracy(texts, labels, units, repeats=3) == pytest.approx(0.5, abs=0.1)
    assert content_accuracy(texts, labels, np.arange(len(texts)), repeats=3) > 0.8


def test_pairs_torn_apart_would_be_guessed_wrong():
    names = [f"{a}{b}" for a in "bcdfghjkmp" for b in "aeiou"]
    labels, units = lay_out(len(names))
    assert content_accuracy(names * 2, labels, units, repeats=3) == pytest.approx(0.5, abs=0.1)
    assert content_accuracy(names * 2, labels, np.arange(len(labels)), repeats=3) < 0.2


def test_uneven_sides_have_the_same_chance():
    rng = np.random.default_rng(5)
    labels = np.arange(240) < 24
    assert form_accuracy(draw_statements(240, rng), labels, np.arange(240), repeats=3) == pytest.approx(0.5, abs=0.12)
    # One text throughout: any guess is the same for all, and right for one side alone.
    assert form_accuracy(["the cat"] * 240, labels, np.arange(240), repeats=1) == 0.5


def test_draws_of_folds_are_reproducible():
    texts = draw_statements(80, np.random.default_rng(6))
    labels, units = lay_out(40)
    first = form_accuracy(texts, labels, units, repeats=1, rng=3)
    assert form_accuracy(texts, labels, units, repeats=1, rng=3) == first
    single = [form_accuracy(texts, labels, units, repeats=1, rng=seed) for seed in range(4)]
    assert len(set(single)) > 1
    assert form_accuracy(texts, labels, units, repeats=4, rng=0) == pytest.approx(np.mean(single))


@pytest.mark.parametrize("side", [True, False])
@pytest.mark.parametrize("measure", [form_accuracy, content_accuracy])
def test_one_side_alone_is_refused(measure, side):
    with pytest.raises(ValueError, match=r"all of one side"):
        measure(["the cat", "the dog"] * 5, np.full(10, side), np.arange(10))


def test_table_of_personas():
    rng = np.random.default_rng(7)
    rows = []
    for persona, add in [("even", ()), ("planted", ("never",))]:
        for side, extra in [("positive", add), ("negative", ())]:
            rows += [(persona, side, i, text) for i, text in enumerate(draw_statements(80, rng, extra))]
    frame = pd.DataFrame(rows, columns=["persona", "direction", "number", "statement"])
    frame["pair"] = frame["persona"] + "-" + frame["number"].astype(str)
    frame["id"] = frame["pair"] + "-" + frame["direction"]
    # The contrasts point into the order of the frame, so a shuffled one must give the same answers.
    frame = frame.assign(topic="other").sample(frac=1.0, random_state=8).reset_index(drop=True)
    contrasts = find_contrasts(frame)
    table = form_table(frame["statement"].tolist(), contrasts).set_index("persona")
    assert table.loc["planted", "form_accuracy"] > 0.9
    assert table.loc["even", "form_accuracy"] < FORM_LIMIT
    assert table["gives_away"].to_dict() == {"planted": True, "even": False}


def test_table_of_nothing_has_its_columns():
    assert list(form_table([], []).columns) == ["persona", "form_accuracy", "gives_away"]


@pytest.mark.skipif(not EVALS.is_dir(), reason="the evaluations of Perez et al. are not here")
def test_published_statements_give_themselves_away():
    frame = load_statements(EVALS / "agreeableness.jsonl")
    contrast = find_contrasts(frame)[0]
    texts = frame["statement"].iloc[contrast.rows].tolist()
    assert form_accuracy(texts, contrast.labels, contrast.units, repeats=1) > FORM_LIMIT
