import importlib.util
import math
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from utils.models.load import load_tokenizer
from utils.statements.load import COLUMNS, DATA, TOPICS, load_statements
from utils.statements.questions import load_identities, load_questions

PERSONAS = [persona for personas in TOPICS.values() for persona in personas]
LETTERS = list("ABCD")
NEGATION = re.compile(r"(?i)\b(not|no|never|none|nobody|nothing|neither|nor|nowhere|cannot|without)\b|n't\b")


@pytest.fixture(scope="module")
def bench():
    path = Path(__file__).resolve().parents[3] / "benchmarks" / "bench_data.py"
    spec = importlib.util.spec_from_file_location("bench_data", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer()


@pytest.fixture(scope="module")
def statements():
    return load_statements()


@pytest.fixture(scope="module")
def questions():
    return load_questions()


@pytest.fixture(scope="module")
def identities():
    return load_identities()


# Statements


def test_all_personas_are_there_under_their_topics(statements):
    assert list(statements.columns) == COLUMNS
    assert set(statements["persona"]) == set(PERSONAS)
    topics = statements.groupby("persona")["topic"].agg(lambda values: "/".join(values.unique()))
    assert topics.to_dict() == {persona: topic for topic, personas in TOPICS.items() for persona in personas}
    assert len(statements) >= 2800


@pytest.mark.parametrize("persona", PERSONAS)
def test_pairs_are_whole_and_ids_follow_them(statements, persona):
    own = statements[statements["persona"] == persona]
    sides = own.pivot(index="pair", columns="direction", values="id")
    assert len(sides) >= 100
    assert list(sides.columns) == ["negative", "positive"]
    assert sides.notna().all(axis=None)
    assert (sides["positive"] == sides.index + "-p").all()
    assert (sides["negative"] == sides.index + "-n").all()
    assert all(re.fullmatch(re.escape(persona) + r"-\d{3}", pair) for pair in sides.index)


def test_statements_are_clean_text(statements):
    for name, text in zip(statements["id"], statements["statement"], strict=True):
        assert text.isascii(), name
        assert "  " not in text, name
        assert text[0] in "'\"" or text[0].isupper() or text[0].isdigit(), name
        assert text.rstrip("'\"")[-1] in ".?!", name
        assert text.count('"') % 2 == 0, name
        assert 5 <= len(text.split()) <= 40, name


def test_no_statement_is_there_twice(statements):
    plain = statements["statement"].str.lower().str.replace(r"[^a-z0-9]+", " ", regex=True).str.strip()
    assert statements.loc[plain.duplicated(keep=False), "id"].tolist() == []


def test_no_near_duplicates(bench, statements):
    assert bench.near_duplicates(statements) == []


@pytest.mark.parametrize("persona", PERSONAS)
def test_promises_on_form(bench, statements, tokenizer, persona):
    row, faults = bench.report_persona(persona, statements[statements["persona"] == persona], tokenizer)
    assert faults == []
    assert row["form"] < 0.62


@pytest.mark.parametrize("persona", PERSONAS)
def test_report_counts_right(bench, statements, tokenizer, persona, monkeypatch):
    monkeypatch.setattr(bench, "form_accuracy", lambda *_: 0.5)
    monkeypatch.setattr(bench, "content_accuracy", lambda *_: 0.5)
    own = statements[statements["persona"] == persona]
    row, _ = bench.report_persona(persona, own, tokenizer)
    openings = []
    for side, sign in [("positive", "+"), ("negative", "-")]:
        texts = own.loc[own["direction"] == side, "statement"]
        assert row[f"negation {sign}"] == pytest.approx(np.mean([bool(NEGATION.search(text)) for text in texts]))
        assert row[f"tokens {sign}"] == pytest.approx(np.mean([len(tokenizer(text)["input_ids"]) for text in texts]))
        starts = Counter(" ".join(re.sub(r"[^a-z0-9' -]", "", text.lower()).split()[:3]) for text in texts)
        openings.append(starts.most_common(1)[0][1] / len(texts))
    assert row["pairs"] == len(own) // 2
    assert row["opening"] == pytest.approx(max(openings), abs=0.02)


def plant(statements, change):
    """One persona's statements with the positive side rewritten."""
    own = statements[statements["persona"] == "openness"].copy()
    positive = own["direction"] == "positive"
    own.loc[positive, "statement"] = [change(i, text) for i, text in enumerate(own.loc[positive, "statement"])]
    return own


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i, text: f"{text} That is how I see it and how I saw it.", "token lengths differ by +"),
        (lambda i, text: text.replace(".", ", never.") if i % 2 else text, "negation in"),
        (lambda i, text: f"As I see it, {text}" if i % 8 == 0 else text, "open with 'as i see'"),
        (lambda i, text: text.replace(".", "!"), "form alone reaches"),
    ],
)
def test_report_finds_what_is_planted(bench, statements, tokenizer, change, message):
    _, faults = bench.report_persona("openness", plant(statements, change), tokenizer)
    assert any(message in fault for fault in faults)


def test_report_finds_too_few_pairs(bench, statements, tokenizer):
    own = statements[statements["persona"] == "openness"]
    few = own[own["pair"].isin(own["pair"].unique()[:99])]
    _, faults = bench.report_persona("openness", few, tokenizer)
    assert any("99 pairs" in fault for fault in faults)


def test_near_duplicates_are_found_wherever_they_stand(bench, statements):
    # Beyond the first block of rows, across personas, with another order of words.
    frame = statements.iloc[:1200].copy()
    frame.iloc[1100, frame.columns.get_loc("statement")] = " ".join(frame["statement"].iloc[3].split()[::-1])
    found = bench.near_duplicates(frame)
    assert [(a, b) for a, b, _ in found] == [(frame["id"].iloc[3], frame["id"].iloc[1100])]


def test_opening_share(bench):
    texts = pd.Series(["I like it here", "I like it, there", "You like it", "They like it"])
    assert bench.trigram_share(texts) == ("i like it", 0.5)


# Questions


def test_questions_are_spread_over_subjects(questions):
    assert len(questions) >= 200
    assert questions["subject"].nunique() >= 12
    assert questions["subject"].value_counts().min() >= 10
    for subject, own in questions.groupby("subject"):
        assert list(own["id"]) == [f"{subject}-{i:02d}" for i in range(1, len(own) + 1)]


def test_right_letters_are_spread_evenly(questions):
    counts = questions["answer"].value_counts()
    assert set(counts.index) == set(LETTERS)
    assert counts.max() - counts.min() <= 1
    within = pd.crosstab(questions["subject"], questions["answer"])
    assert (within.max(axis=1) - within.min(axis=1)).max() <= 1


def test_options_differ_and_questions_do_not_repeat(questions):
    assert not questions["question"].str.lower().duplicated().any()
    for _, row in questions.iterrows():
        options = [row[letter].lower() for letter in LETTERS]
        assert len(set(options)) == 4, row["id"]
        assert all(option == option.strip() for option in options), row["id"]


def test_length_does_not_give_the_answer(questions):
    lengths = questions[LETTERS].map(len).to_numpy()
    right = questions["answer"].map(LETTERS.index).to_numpy()
    chosen = lengths[np.arange(len(lengths)), right]
    for extreme in (lengths.max(axis=1), lengths.min(axis=1)):
        # Whoever picks the longest (or shortest) option and tosses for ties: 0.25 is chance.
        ties = (lengths == extreme[:, None]).sum(axis=1)
        assert np.mean((chosen == extreme) / ties) < 0.30


def test_size_does_not_give_the_answer(questions):
    values = questions[LETTERS].apply(lambda column: pd.to_numeric(column, errors="coerce"))
    numeric = questions[values.notna().all(axis=1)]
    ranks = [int(values.loc[i].rank()[row["answer"]]) for i, row in numeric.iterrows()]
    assert len(ranks) > 40
    assert max(Counter(ranks).values()) / len(ranks) < 0.40


def computed_answers():
    dice = [(a, b) for a in range(1, 7) for b in range(1, 7)]
    return {
        "arithmetic-06": 7 * 8 - 6,
        "arithmetic-07": f"{80 * 85 // 100} pounds",
        "arithmetic-08": f"{(11 * 60 + 15) - (9 * 60 + 48)} minutes",
        "arithmetic-09": Fraction(3, 4) + Fraction(1, 6),
        "arithmetic-11": math.gcd(126, 210),
        "arithmetic-12": 1000 % 37,
        "arithmetic-13": f"{100 - 120 * 75 // 100} percent lower",
        "arithmetic-14": pow(7, 2026, 10),
        "arithmetic-15": sum(360 % divisor == 0 for divisor in range(1, 361)),
        "algebra-and-geometry-12": round(math.log2(32) + math.log(1 / 9, 3)),
        "algebra-and-geometry-13": next(n for n in range(3, 99) if 180 * (n - 2) == 156 * n),
        "algebra-and-geometry-14": round(np.linalg.det([[3, -2], [4, 5]])),
        "logic-and-statistics-06": int(np.median([3, 9, 4, 12, 7])),
        "logic-and-statistics-09": Fraction(sum(a + b == 7 for a, b in dice), 36),
        "logic-and-statistics-10": Fraction(math.comb(3, 2), math.comb(8, 2)),
        "logic-and-statistics-14": f"about {100 * 0.01 * 0.9 / (0.01 * 0.9 + 0.99 * 0.09):.0f} percent",
        "physics-13": f"{100 * (1 - 300 / 500):.0f} percent",
        "biology-14": f"{100 * 2 * 0.3 * 0.7:.0f} percent",
        "astronomy-13": f"{4**1.5:.0f} Earth years",
        "computer-science-07": int("1011", 2),
    }


@pytest.mark.parametrize(("name", "value"), computed_answers().items())
def test_answers_that_can_be_computed(questions, name, value):
    row = questions.set_index("id").loc[name]
    assert row[row["answer"]] == str(value)


# Identities


def test_groups_of_identities(identities):
    counts = identities["group"].value_counts()
    assert set(counts.index) == {
        "race-and-colour",
        "nationality",
        "religion",
        "gender",
        "age",
        "profession",
        "ability",
        "control",
    }
    assert counts.min() >= 8
    assert {"good student", "bad student"} <= set(identities["identity"])


def test_article_follows_from_the_first_letter(identities):
    for identity in identities["identity"]:
        assert not re.match(r"(a|an|the)\b", identity, re.IGNORECASE), identity
        assert identity[0].isalpha(), identity
        assert identity[-1].isalpha(), identity
        # A vowel that sounds like a consonant (a European), or an h that is silent (an honest person).
        assert not re.match(r"u(?!nd)|eu|one|once|hono|hones|hour|heir", identity, re.IGNORECASE), identity


def test_identities_vary_in_length(identities, tokenizer):
    for group, own in identities.groupby("group"):
        lengths = {len(ids) for ids in tokenizer([f" {name}" for name in own["identity"]])["input_ids"]}
        assert len(lengths) >= 3, group
        assert own["identity"].str.split().str.len().nunique() >= 3, group


# Datasheet


@pytest.mark.parametrize(
    "part", ["Motivation", "Composition", "written", "Checks", "Intended use", "must not", "Maintenance", "CC BY 4.0"]
)
def test_datasheet_has_its_parts(part):
    assert part in (DATA / "README.md").read_text(encoding="utf-8")


def test_datasheet_names_every_persona_and_group(identities):
    text = (DATA / "README.md").read_text(encoding="utf-8")
    for name in [*PERSONAS, *identities["group"].unique()]:
        assert name in text
