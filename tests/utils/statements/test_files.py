"""Formats and layouts other than CSV and JSON lines, and what is drawn from them."""

import gzip
import json
import logging
from pathlib import Path

import pandas as pd
import pytest

from utils.statements.load import COLUMNS, load_statements, load_trait

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data" / "anthropic-evals" / "persona"
ROWS = [
    {"id": "1", "persona": "p", "topic": "t", "direction": "positive", "statement": "Jazz; again", "pair": "x"},
    {"id": "2", "persona": "p", "topic": "t", "direction": "negative", "statement": 'A "quiet"\nevening', "pair": "x"},
    {"id": "3", "persona": "q", "topic": "t", "direction": "positive", "statement": "Tea, toast", "pair": ""},
]
EXPECTED = pd.DataFrame(ROWS)


def delimited(separator, end="\n"):
    text = pd.DataFrame(ROWS).to_csv(None, sep=separator, index=False, lineterminator=end)
    return text.replace("\nevening", f"{end}evening").encode()


FORMATS = {
    "a.tsv": lambda path: path.write_bytes(delimited("\t")),
    "b.csv": lambda path: path.write_bytes(delimited(";", "\r\n")),
    "c.csv": lambda path: path.write_bytes(delimited("|")),
    "d.csv": lambda path: path.write_bytes(delimited(",", "\r")),
    "e.csv.gz": lambda path: path.write_bytes(gzip.compress(delimited(","))),
    "f.jsonl.gz": lambda path: path.write_bytes(gzip.compress("\n".join(map(json.dumps, ROWS)).encode())),
    "g.json": lambda path: path.write_text(json.dumps(ROWS, indent=2)),
    "h.parquet": lambda path: EXPECTED.to_parquet(path),
    "i.json.gz": lambda path: path.write_bytes(gzip.compress(json.dumps(ROWS).encode())),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats_give_one_frame(tmp_path, name):
    FORMATS[name](tmp_path / name)
    expected = EXPECTED.assign(pair=EXPECTED["pair"].where(EXPECTED["pair"] != "").astype("string"))
    pd.testing.assert_frame_equal(load_statements(tmp_path / name), expected)
    # A folder reads what it holds as the file alone is read.
    pd.testing.assert_frame_equal(load_statements(tmp_path), expected)


def test_folder_names_everything_that_it_leaves_out(tmp_path, caplog):
    EXPECTED.to_parquet(tmp_path / "a.parquet")
    (tmp_path / "LICENSE").write_text("as is")
    (tmp_path / "study.json").write_text('{"config": {"a": 1}}')
    pd.DataFrame({"x": [1]}).to_parquet(tmp_path / "numbers.parquet")
    with caplog.at_level(logging.WARNING):
        assert len(load_statements(tmp_path)) == 3
    for name in ("LICENSE", "study.json", "numbers.parquet"):
        assert name in caplog.text
    assert "a.parquet" not in caplog.text


def test_files_of_one_name_in_two_folders(tmp_path):
    line = '{"statement": "%s", "answer_matching_behavior": "%s"}\n'
    for folder in ("train", "test"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "openness.jsonl").write_text(line % (folder, "Yes") + line % ("b", "No"))
    (tmp_path / "test" / "openness.json").write_text(f"[{line % ('array', 'Yes')}]")
    frame = load_statements(tmp_path).set_index("id")
    assert frame.loc["train/openness-00001", "statement"] == "train"
    assert frame.loc["test/openness.jsonl-00001", "statement"] == "test"
    assert frame.loc["test/openness.json-00001", "statement"] == "array"
    assert set(frame["persona"]) == {"openness"}


QUESTION = "Would you lie?\n\nChoices:\n (A) Yes, if it helps me.\n (B) No, never."
OPTIONS = {
    "letters.jsonl": {
        "question": QUESTION,
        "answer_matching_behavior": " (B)",
        "answer_not_matching_behavior": " (A)",
        "label_confidence": 0.9,
    },
    "words.jsonl": {"question": "Would you lie?", "matching": "No, never.", "not_matching": "Yes, if it helps me."},
    "many.jsonl": {
        "question": QUESTION,
        "answer_matching_behavior": "(B)",
        "answer_not_matching_behavior": ["(A)", "(C)"],
    },
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("as_csv", [False, True])
def test_two_options_become_a_pair(tmp_path, name, as_csv):
    path = tmp_path / name
    path.write_text(json.dumps(OPTIONS[name]) + "\n")
    if as_csv:
        if name == "many.jsonl":
            pytest.skip("a field of a CSV file is no list")
        path = path.with_suffix(".csv")
        pd.DataFrame([OPTIONS[name]]).to_csv(path, index=False)
    frame = load_statements(path)
    assert list(frame["direction"]) == ["positive", "negative"]
    assert list(frame["statement"]) == ["Would you lie?\nNo, never.", "Would you lie?\nYes, if it helps me."]
    assert frame["pair"].nunique() == 1
    assert frame["id"].is_unique
    assert set(frame["persona"]) == {path.stem}
    assert ("label_confidence" in frame) == ("label_confidence" in OPTIONS[name])


def test_trait_with_instructions_and_questions(tmp_path, caplog):
    trait = {
        "instruction": [{"pos": "Be kind.", "neg": "Be cruel."}, {"pos": "Help.", "neg": "Harm."}],
        "questions": ["How was your day?", "What is truth?"],
        "eval_prompt": "Score {answer}.",
    }
    path = tmp_path / "kind.json"
    for indent in (None, 2):
        path.write_text(json.dumps(trait, indent=indent))
        frame = load_statements(path)
        assert list(frame["statement"]) == ["Be kind.", "Be cruel.", "Help.", "Harm."]
        assert list(frame["pair"]) == ["kind-00001"] * 2 + ["kind-00002"] * 2
        assert set(frame["persona"]) == {"kind"}
    assert "its questions are left out" in caplog.text
    read = load_trait(path)
    assert read.instructions == (("Be kind.", "Be cruel."), ("Help.", "Harm."))
    assert read.questions == tuple(trait["questions"])
    assert read.eval_prompt == "Score {answer}."


def test_load_trait_refuses_others(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ROWS))
    with pytest.raises(ValueError, match="holds no trait"):
        load_trait(path)
    path.write_text('{"instruction": [{"pos": "a", "neg": "b"}], "questions": [7]}')
    with pytest.raises(ValueError, match="'questions' must be a list of texts"):
        load_trait(path)


@pytest.mark.parametrize("splits", [1, 2])
def test_saved_dataset(tmp_path, splits):
    datasets = pytest.importorskip("datasets")
    rows = pd.DataFrame({"statement": ["a", "b"], "direction": ["positive", "negative"], "persona": ["p", "p"]})
    one = datasets.Dataset.from_pandas(rows)
    folder = tmp_path / "saved"
    (datasets.DatasetDict({"train": one, "test": one}) if splits == 2 else one).save_to_disk(folder)
    frame = load_statements(folder)
    assert list(frame["statement"]) == ["a", "b"] * splits
    assert frame["id"].is_unique


def test_dataset_that_is_not_within_reach():
    pytest.importorskip("datasets")
    with pytest.raises(FileNotFoundError, match=r"no file or folder someone/some-traits, and no dataset") as caught:
        load_statements("someone/some-traits")
    assert "\n" not in str(caught.value)


def test_dataset_without_the_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ValueError, match=r"personascope\[datasets\]"):
        load_statements("someone/some-traits")


@pytest.fixture
def confident(tmp_path):
    """30 statements a side of one persona without pairs, 20 pairs of another; the confidence of number i is i / 100."""
    single = [
        {"statement": f"{side} {i}", "direction": side, "persona": "single", "pair": "", "label_confidence": i / 100}
        for i in range(30)
        for side in ("positive", "negative")
    ]
    paired = [
        {"statement": f"{side} {i}", "direction": side, "persona": "paired", "pair": f"x{i}", "label_confidence": 1.0}
        for i in range(20)
        for side in ("positive", "negative")
    ]
    paired[0]["label_confidence"] = 0.0
    path = tmp_path / "a.json"
    path.write_text(json.dumps(single + paired))
    return path


def test_least_confidence_keeps_whole_pairs(confident):
    frame = load_statements(confident, min_confidence=0.25)
    single = frame[frame["persona"] == "single"]
    assert sorted(single["label_confidence"].unique()) == [0.25, 0.26, 0.27, 0.28, 0.29]
    assert frame[frame["persona"] == "paired"]["pair"].value_counts().tolist() == [2] * 19


def test_draw_is_of_whole_pairs_and_by_the_seed(confident):
    drawn = load_statements(confident, per_side=7)
    assert drawn.groupby(["persona", "direction"]).size().tolist() == [7] * 4
    assert drawn[drawn["persona"] == "paired"]["pair"].value_counts().tolist() == [2] * 7
    assert drawn.equals(load_statements(confident, per_side=7))
    other = load_statements(confident, per_side=7, rng=1)
    assert set(other["id"]) != set(drawn["id"])
    alone = load_statements(confident, ["paired"], per_side=7)
    assert set(alone["id"]) == set(drawn[drawn["persona"] == "paired"]["id"])


def test_draw_is_fair(confident):
    frame = load_statements(confident, ["paired"])
    found = pd.concat([load_statements(confident, ["paired"], per_side=5, rng=seed)["id"] for seed in range(120)])
    counts = found.value_counts().reindex(frame["id"], fill_value=0)
    # Binomial(120, 1/4): mean 30, standard deviation 4.7; 40 correlated counts stay within 4.5 of these.
    assert counts.between(30 - 21, 30 + 21).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per_side": 0}, "expected 1 or more"),
        ({"per_side": 25, "personas": ["paired"]}, "20 pairs, fewer than the 25"),
        ({"per_side": 31, "personas": ["single"]}, "30 single negative statements, fewer than the 31"),
        ({"min_confidence": float("nan")}, "must be a number"),
        ({"min_confidence": 0.9, "personas": ["single"]}, "the largest of all is 0.29"),
    ],
)
def test_draws_that_cannot_be(confident, options, message):
    with pytest.raises(ValueError, match=message):
        load_statements(confident, **options)


def test_confidence_needs_confidences(tmp_path):
    EXPECTED.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="without label_confidence"):
        load_statements(tmp_path, min_confidence=0.5)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the evaluations of Perez et al. are not here")
@pytest.mark.parametrize("ending", [".tsv", ".csv.gz", ".json", ".parquet"])
def test_published_files_in_other_formats_are_one(tmp_path, ending):
    source = pd.read_json(SHARED / "agreeableness.jsonl", lines=True)
    path = tmp_path / f"agreeableness{ending}"
    if ending == ".parquet":
        source.to_parquet(path)
    elif ending == ".json":
        source.to_json(path, orient="records")
    else:
        source.to_csv(path, sep="\t" if ending == ".tsv" else ",", index=False)
    expected = load_statements(SHARED / "agreeableness.jsonl")
    pd.testing.assert_frame_equal(load_statements(path)[expected.columns.drop("id")], expected.drop(columns="id"))


@pytest.mark.skipif(not SHARED.is_dir(), reason="the evaluations of Perez et al. are not here")
def test_published_confidences():
    frame = load_statements(SHARED, min_confidence=0.9, per_side=50)
    assert frame.groupby(["persona", "direction"]).size().eq(50).all()
    assert frame["label_confidence"].min() >= 0.9
    assert list(frame.columns) == [*COLUMNS, "label_confidence"]
