import pytest

from utils.questions import load_identities, load_questions

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
