import json

import pandas as pd
import pytest

from utils.statements.questions import load_identities, load_questions

QUESTIONS = "id,subject,question,A,B,C,D,answer\nx-1,sums,1 + 1?,1,2,3,4,B\n"


def test_questions(tmp_path):
    frame = load_questions(write(tmp_path, QUESTIONS))
    assert list(frame.columns) == ["id", "subject", "question", "A", "B", "C", "D", "answer"]
    assert frame.iloc[0].tolist() == ["x-1", "sums", "1 + 1?", "1", "2", "3", "4", "B"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (QUESTIONS + "x-2,sums,2 + 2?,1,2,3,4,E\n", r"line 3: answer must be A, B, C or D, not 'E'"),
        (QUESTIONS + "x-2,sums,2 + 2?,1,2,3,4,b\n", r"line 3: answer must be A, B, C or D, not 'b'"),
        (QUESTIONS + "x-1,sums,2 + 2?,1,2,3,4,D\n", r"line 3: id 'x-1' is there twice"),
        (QUESTIONS + "x-2,sums,,1,2,3,4,D\n", r"line 3: the question is empty"),
        (QUESTIONS + "x-2,sums,2 + 2?,1,2,,4,D\n", r"line 3: the C is empty"),
        (QUESTIONS + "x-2,sums,2 + 2?,1,2,4,D\n", r"line 3 has 7 fields where the header has 8"),
        (QUESTIONS.replace("answer", "key"), r"no column answer; found: id, subject"),
        ("", r"the file is empty"),
        ("1 + 1?,1,2,3,4,B\n2 + 2?,1,2,3,4,E\n", r"line 2: answer must be A, B, C or D, not 'E'"),
    ],
)
def test_broken_questions(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        load_questions(write(tmp_path, text))


def test_identities(tmp_path):
    frame = load_identities(write(tmp_path, "identity,group\nnurse,profession\nhuman being,control\n"))
    assert frame.to_dict("list") == {"identity": ["nurse", "human being"], "group": ["profession", "control"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("identity,group\nnurse,a\ndoctor,a\nnurse,b\n", r"line 4: 'nurse' is there twice"),
        ("identity,group\nnurse,a\n ,a\n", r"line 3: the identity is empty"),
        ("identity,group\nnurse,\n", r"line 2: the group is empty"),
        ("identity\nnurse\n", r"no column group; found: identity"),
        ("identity,group\n", r"a header but no rows"),
    ],
)
def test_broken_identities(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        load_identities(write(tmp_path, text))


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.csv"):
        load_questions(tmp_path / "gone.csv")


def write(folder, text):
    path = folder / "table.csv"
    path.write_text(text, encoding="utf-8")
    return path


BARE = '"Which of these is even, 3, 5, 8?",3,5,8,none,C\n1 + 1?,1,2,3,4,B\n'
LINES = '{"question": "1 + 1?", "subject": "sums", "choices": ["1", "2", "3", "4"], "answer": 1}\n'


def test_csv_without_a_header(tmp_path):
    path = tmp_path / "high_school_sums_test.csv"
    path.write_text(BARE, encoding="utf-8")
    frame = load_questions(path)
    assert frame["id"].tolist() == ["high_school_sums-0001", "high_school_sums-0002"]
    assert frame.iloc[0, 1:].tolist() == [
        "high_school_sums", "Which of these is even, 3, 5, 8?", "3", "5", "8", "none", "C",
    ]  # fmt: skip


def test_jsonl_with_the_place_or_the_letter_of_the_answer(tmp_path):
    lettered = LINES.replace('"answer": 1', '"answer": "D", "id": "x"')
    frame = load_questions(write(tmp_path, LINES + "\n" + lettered.replace('"id": "x"', '"id": "y"')))
    assert frame["answer"].tolist() == ["B", "D"]
    assert frame.iloc[0].tolist()[1:] == ["sums", "1 + 1?", "1", "2", "3", "4", "B"]


def test_the_three_forms_of_a_question_are_read_alike(tmp_path):
    bare = load_questions(write(tmp_path, BARE.splitlines(keepends=True)[1])).assign(subject="sums", id="x-1")
    with_header = load_questions(write(tmp_path, QUESTIONS))
    (tmp_path / "lines").mkdir()
    lines = load_questions(write(tmp_path / "lines", LINES)).assign(id="x-1")
    assert bare.equals(with_header)
    assert lines.equals(with_header)


def test_parquet_as_the_hub_has_it(tmp_path, monkeypatch):
    path = tmp_path / "test-00000-of-00001.parquet"
    pd.DataFrame([json.loads(LINES)]).to_parquet(path)
    asked = []
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *args, **_: asked.append(args) or str(path))
    assert load_questions("cais/mmlu/anatomy")["answer"].tolist() == ["B"]
    assert load_questions("cais/mmlu").equals(load_questions(path))
    assert [args[1].split("/")[0] for args in asked] == ["anatomy", "all"]


def test_hub_questions_without_a_network():
    with pytest.raises(FileNotFoundError, match="nor can they be fetched"):
        load_questions("cais/mmlu/no-such-subject-here")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LINES + "{\n", r"line 2 is not JSON"),
        (LINES + "\n[1]\n", r"line 3 is not an object"),
        (LINES.replace('"choices"', '"options"'), r"line 1 has no 'choices'; found: question, subject, options"),
        (LINES.replace(', "4"', ""), r"line 1: choices must be four options"),
        (LINES.replace('"answer": 1', '"answer": 4'), r"line 1: answer must be A, B, C or D, not '4'"),
        (LINES.replace('"3"', '" "'), r"line 1: the C is empty"),
    ],
)
def test_broken_jsonl(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        load_questions(write(tmp_path, text))
