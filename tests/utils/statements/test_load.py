import csv
import gzip
import json
import logging
from pathlib import Path

import pytest

from utils.statements.load import COLUMNS, TOPICS, load_statements, topic_of

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
OWN = "id,persona,topic,direction,statement,pair\n"
YES_NO = {"Yes": "positive", "No": "negative"}


@pytest.fixture
def write(tmp_path):
    def write_file(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write_file


def jsonl(*entries):
    keys = ("statement", "answer_matching_behavior")
    return "".join(json.dumps(dict(zip(keys, entry, strict=True)), ensure_ascii=False) + "\n" for entry in entries)


def lettered(question, matching, other):
    names = ("question", "answer_matching_behavior", "answer_not_matching_behavior")
    return json.dumps(dict(zip(names, (question, matching, other), strict=True))) + "\n"


def own_pair(persona="openness", number=1):
    name = f"{persona}-{number:03d}"
    return (
        f"{name}-p,{persona},personality,positive,Jazz again tonight,{name}\n"
        f"{name}-n,{persona},personality,negative,Quiet again tonight,{name}\n"
    )


# One and the same content in the three layouts.
LAYOUTS = {
    "own.csv": OWN
    + 'o-1,openness,personality,positive,"Jazz, again",p1\no-2,openness,personality,negative,Tea and toast,p1\n',
    "steering.csv": "prompt,statement,direction,persona_dim,split\n"
    '1,"Jazz, again",positive,openness,steer\n2,Tea and toast,negative,openness,steer\n',
    "openness.jsonl": jsonl(("Jazz, again", " Yes"), ("Tea and toast", " No")),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_give_one_frame(write, name):
    frame = load_statements(write(name, LAYOUTS[name]))
    assert list(frame.columns) == COLUMNS
    assert list(frame.index) == [0, 1]
    assert list(frame["persona"]) == ["openness", "openness"]
    assert list(frame["topic"]) == ["personality", "personality"]
    assert list(frame["direction"]) == ["positive", "negative"]
    assert list(frame["statement"]) == ["Jazz, again", "Tea and toast"]
    assert frame["id"].is_unique


def test_ids_and_pairs_of_own_layout_are_kept(write):
    frame = load_statements(write("own.csv", LAYOUTS["own.csv"]))
    assert list(frame["id"]) == ["o-1", "o-2"]
    assert list(frame["pair"]) == ["p1", "p1"]


@pytest.mark.parametrize("name", ["steering.csv", "openness.jsonl"])
def test_layouts_without_pairs_have_missing_pairs(write, name):
    frame = load_statements(write(name, LAYOUTS[name]))
    assert frame["pair"].isna().all()


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_is_known_by_content_and_not_by_name(write, name):
    expected = load_statements(write(name, LAYOUTS[name]))
    swapped = f"openness{'.jsonl' if name.endswith('.csv') else '.csv'}"
    frame = load_statements(write(swapped, LAYOUTS[name]))
    columns = ["persona", "topic", "direction", "statement"]
    assert frame[columns].equals(expected[columns])


@pytest.mark.parametrize("written", ["positive", " Positive ", "pos", "1", "+1", "+", "yes"])
def test_spellings_of_positive(write, written):
    path = write("a.csv", f"statement,direction,persona_dim\nJazz,{written},openness\n")
    assert load_statements(path)["direction"].item() == "positive"


@pytest.mark.parametrize("written", ["negative", "NEG", "neg", "0", "-1", "-", "no"])
def test_spellings_of_negative(write, written):
    path = write("a.csv", f"statement,direction,persona_dim\nJazz,{written},openness\n")
    assert load_statements(path)["direction"].item() == "negative"


def test_spaces_around_text_go_and_inside_stay(write):
    frame = load_statements(write("a.csv", OWN + "1, openness ,personality,positive,  Two  words ,\n"))
    assert frame["statement"].item() == "Two  words"
    assert frame["persona"].item() == "openness"


def test_quoted_commas_quotes_and_line_breaks(write):
    text = 'He said ""no"", twice\nand left'
    frame = load_statements(write("a.csv", OWN + f'1,openness,personality,positive,"{text}",\n'))
    assert frame["statement"].item() == 'He said "no", twice\nand left'


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_windows_files(write, name, mark, end):
    expected = load_statements(write(name, LAYOUTS[name]))
    frame = load_statements(write(name, mark + LAYOUTS[name].replace("\n", end).encode()))
    assert frame.equals(expected)


def test_blank_lines_are_passed_over(write):
    with_header_below = load_statements(write("a.csv", "\n\n" + OWN + own_pair() + "\n\n"))
    assert len(with_header_below) == 2
    assert len(load_statements(write("b.jsonl", "\n" + jsonl(("Jazz", "Yes")) + "\n\n" + jsonl(("Tea", "No"))))) == 2


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\u0085", "\u001c"])
def test_unusual_line_separators_inside_json_text(write, character):
    entry = f'{{"statement": "one{character}two", "answer_matching_behavior": "Yes"}}\n'
    if ord(character) < 32:
        entry = json.dumps(json.loads(entry, strict=False))
    assert load_statements(write("openness.jsonl", entry))["statement"].item() == f"one{character}two"


def test_generated_ids_are_stable_when_lines_are_added_below(write):
    text = LAYOUTS["steering.csv"]
    before = load_statements(write("steering.csv", text))
    after = load_statements(write("steering.csv", text + "3,Sushi,positive,extraversion,steer\n"))
    assert list(after["id"])[:2] == list(before["id"])


def test_missing_topic_comes_from_the_persona(write):
    text = "statement,direction,persona,topic\nJazz,1,openness,\nHay,1,farming,\nLaw,1,farming,politics\n"
    assert list(load_statements(write("a.csv", text))["topic"]) == ["personality", "other", "politics"]


def test_topics_cover_fourteen_personas():
    assert {topic: len(personas) for topic, personas in TOPICS.items()} == {
        "politics": 4,
        "ethics": 5,
        "personality": 5,
    }
    assert topic_of("subscribes-to-deontology") == "ethics"
    assert topic_of("likes-cheese") == "other"


# What is wrong, the file's name, its content, and what the message must say.
BROKEN = [
    ("no statement", "a.csv", "id,direction,persona\n1,positive,p\n", ["no column statement", "found: id, direction"]),
    ("no direction", "a.csv", "id,statement,persona\n1,positive,p\n", ["no column direction"]),
    ("no persona", "a.csv", "id,statement,direction\n1,a,positive\n", ["no column persona"]),
    ("spaces", "a.csv", "statement direction persona\na positive p\n", ["no column statement", "statement direc"]),
    ("bad field below semicolons", "a.csv", "statement;direction;persona\na;positive;p;q\n", ["line 2", "';'"]),
    ("cut gzip", "a.csv.gz", gzip.compress((OWN + own_pair()).encode())[:-9], ["cut short"]),
    ("no Parquet", "a.parquet", b"PAR1 and no more", ["damaged, or cut short"]),
    ("array of numbers", "a.json", "[1, 2]", ["row 1", "not a JSON object"]),
    ("empty array", "a.json", "[]", ["array is empty"]),
    ("cut array", "a.json", '[{"statement": "a",', ["not valid JSON"]),
    ("deep array", "a.json", "[" * 100_000, ["nested too deeply"]),
    ("deep line", "a.jsonl", '{"a":' * 100_000, ["line 1", "nested too deeply"]),
    ("no such option", "a.jsonl", lettered("Which?\n (A) this\n (B) that", "(C)", "(A)"), ["line 1", "'(C)'"]),
    ("letters alone", "a.jsonl", lettered("Which?", "(A)", "(B)"), ["line 1", "none of the options"]),
    ("half an instruction", "a.json", '{"instruction": [{"pos": "a"}]}', ["instruction 1", "'neg'"]),
    ("no instruction", "a.json", '{"instruction": []}', ["'instruction' is empty"]),
    ("confidence", "a.csv", "statement,direction,persona,label_confidence\na,1,p,high\n", ["line 2", "'high'"]),
    ("long name", "a.csv", OWN + f"1,{'x' * 300},t,positive,a,\n", ["line 2", "too long", "300 bytes"]),
    ("wide name", "a.csv", OWN + f"1,{'楽' * 80},t,positive,a,\n", ["line 2", "too long", "240 bytes"]),
    ("direction", "a.csv", OWN + own_pair() + "3,p,t,maybe,text,\n", ["line 4", "'maybe'", "positive or negative"]),
    ("no direction text", "a.csv", OWN + "3,p,t,,text,\n", ["line 2", "unknown direction ''"]),
    ("empty statement", "a.csv", OWN + own_pair() + "3,p,t,positive,,\n", ["line 4", "the statement is empty"]),
    ("blank statement", "a.csv", OWN + own_pair() + '3,p,t,positive," \t ",\n', ["line 4", "the statement is empty"]),
    ("no persona text", "a.csv", OWN + own_pair() + "3, ,t,positive,text,\n", ["line 4", "the persona is empty"]),
    ("no id text", "a.csv", OWN + own_pair() + ",p,t,positive,text,\n", ["line 4", "the id is empty"]),
    (
        "duplicate id",
        "a.csv",
        OWN + own_pair() + "openness-001-n,openness,t,positive,text,\n",
        ["line 4", "id 'openness-001-n' is there twice"],
    ),
    ("half a pair", "a.csv", OWN + "1,p,t,positive,a,pair-7\n", ["'pair-7'", "one positive and one negative"]),
    (
        "pair of one side",
        "a.csv",
        OWN + "1,p,t,positive,a,pair-7\n2,p,t,positive,b,pair-7\n",
        ["'pair-7'", "one positive and one negative"],
    ),
    (
        "pair of two personas",
        "a.csv",
        OWN + "1,p,t,positive,a,pair-7\n2,q,t,negative,b,pair-7\n",
        ["'pair-7'", "of one persona"],
    ),
    (
        "pair of three",
        "a.csv",
        OWN + "1,p,t,positive,a,x\n2,p,t,negative,b,x\n3,p,t,negative,c,x\n",
        ["'x'", "one positive and one negative"],
    ),
    ("too many fields", "a.csv", OWN + own_pair() + "3,p,t,positive,a,,b\n", ["line 4", "7 fields", "header has 6"]),
    ("too few fields", "a.csv", OWN + own_pair() + "3,p,positive\n", ["line 4", "3 fields", "header has 6"]),
    ("open quote", "a.csv", OWN + own_pair() + '3,p,t,positive,"a,\n', ["line 4", "not readable as CSV"]),
    ("text after quote", "a.csv", OWN + own_pair() + '3,p,t,positive,"a"b,\n', ["line 4", "not readable as CSV"]),
    ("column twice", "a.csv", "statement,direction,persona,statement\na,1,p,b\n", ["names a column twice"]),
    ("header alone", "a.csv", OWN, ["a header but no rows"]),
    ("nothing", "a.csv", "", ["the file is empty"]),
    ("blanks", "a.jsonl", " \n\t\n", ["the file is empty"]),
    ("mark alone", "a.csv", b"\xef\xbb\xbf", ["the file is empty"]),
    ("latin-1", "a.csv", (OWN + own_pair() + "3,p,t,positive,caf\u00e9,\n").encode("latin-1"), ["line 4", "UTF-8"]),
    ("utf-16", "a.csv", (OWN + own_pair()).encode("utf-16"), ["line 1", "UTF-8"]),
    ("broken JSON", "a.jsonl", jsonl(("a", "Yes"), ("b", "No")) + '{"statement": "c\n', ["line 3", "not valid JSON"]),
    (
        "broken JSON below a blank line",
        "a.jsonl",
        jsonl(("a", "Yes")) + "\n\n{oops}\n",
        ["line 4", "not valid JSON"],
    ),
    ("JSON list", "a.jsonl", jsonl(("a", "Yes")) + "[1, 2]\n", ["line 2", "not a JSON object"]),
    ("JSON without text", "a.jsonl", jsonl(("a", "Yes")) + '{"x": 1}\n', ["line 2", "'statement'"]),
    ("JSON number", "a.jsonl", jsonl(("a", "Yes"), (7, "No")), ["line 2", "'statement'"]),
    ("JSON without answer", "a.jsonl", '{"statement": "a"}\n', ["no column direction or persona"]),
    ("JSON answer", "a.jsonl", jsonl(("a", "Yes"), ("b", "Maybe")), ["line 2", "Yes or No", "'Maybe'"]),
    ("JSON blank", "a.jsonl", jsonl(("a", "Yes"), ("b", "No"), ("  ", "No")), ["line 3", "the statement is empty"]),
]


@pytest.mark.parametrize(("name", "text", "expected"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_errors_name_the_file_the_line_and_the_fault(write, name, text, expected):
    path = write(name, text)
    with pytest.raises(ValueError, match=r".") as caught:
        load_statements(path)
    message = str(caught.value)
    assert str(path) in message
    for part in expected:
        assert part in message


def test_line_numbers_count_line_breaks_inside_quotes(write):
    text = OWN + '1,p,t,positive,"one\ntwo\nthree",\n2,p,t,sideways,a,\n'
    with pytest.raises(ValueError, match=r"line 5: unknown direction 'sideways'"):
        load_statements(write("a.csv", text))


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.csv.*\.csv, .*\.parquet"):
        load_statements(tmp_path / "gone.csv")


def test_folder_is_read_in_the_order_of_names(write, tmp_path):
    write("b/extraversion.jsonl", jsonl(("Party", "Yes"), ("Home", "No")))
    write("a.csv", LAYOUTS["own.csv"])
    write("c.CSV", "statement,direction,persona_dim\nTidy desk,pos,conscientiousness\n")
    write("notes.txt", "not of this kind")
    frame = load_statements(tmp_path)
    assert list(frame["statement"]) == ["Jazz, again", "Tea and toast", "Party", "Home", "Tidy desk"]
    assert list(frame["persona"].unique()) == ["openness", "extraversion", "conscientiousness"]
    assert list(frame.index) == list(range(5))
    assert frame["pair"].notna().tolist() == [True, True, False, False, False]


def test_folder_leaves_out_other_tables_and_says_so(write, tmp_path, caplog):
    write("a.csv", LAYOUTS["own.csv"])
    other = write("identities.csv", "identity,group\nnurse,profession\n")
    with caplog.at_level(logging.WARNING):
        assert len(load_statements(tmp_path)) == 2
    assert str(other) in caplog.text


def test_folder_passes_over_hidden_copies(write, tmp_path):
    write("a.csv", LAYOUTS["own.csv"])
    write(".ipynb_checkpoints/a-checkpoint.csv", LAYOUTS["own.csv"])
    assert len(load_statements(tmp_path)) == 2


def test_persona_spread_over_files_of_a_folder(write, tmp_path):
    for name in ("steer.csv", "test.csv"):
        write(name, LAYOUTS["steering.csv"])
    frame = load_statements(tmp_path)
    assert len(frame) == 4
    assert frame["id"].is_unique


def test_folder_error_names_the_file(write, tmp_path):
    write("a.csv", OWN + own_pair())
    write("sub/b.csv", OWN + own_pair(number=2) + own_pair())
    with pytest.raises(ValueError, match=r"line 4 of sub.b\.csv: id 'openness-001-p' is there twice"):
        load_statements(tmp_path)
    broken = write("c.csv", OWN + "3,p,t,maybe,text,\n")
    with pytest.raises(ValueError, match=r"line 2: unknown direction") as caught:
        load_statements(tmp_path)
    assert str(broken) in str(caught.value)


@pytest.mark.parametrize("files", [{}, {"notes.txt": "hello"}, {"table.csv": "a,b\n1,2\n"}])
def test_folder_without_statements(write, tmp_path, files):
    for name, text in files.items():
        write(name, text)
    with pytest.raises(ValueError, match=r"the folder holds no statements; expected"):
        load_statements(tmp_path)


@pytest.fixture
def three(write):
    text = OWN
    for persona, topic in [("openness", "personality"), ("extraversion", "personality"), ("farming", "other")]:
        text += own_pair(persona).replace("personality", topic)
    return write("three.csv", text)


def test_choice_of_personas_and_topics(three):
    assert list(load_statements(three, ["farming", "openness"])["persona"]) == ["openness"] * 2 + ["farming"] * 2
    assert set(load_statements(three, topics=["personality"])["persona"]) == {"openness", "extraversion"}
    chosen = load_statements(three, ["extraversion"], topics=["personality"])
    assert set(chosen["persona"]) == {"extraversion"}
    assert list(chosen.index) == [0, 1]


def test_unknown_names_get_near_matches(three):
    with pytest.raises(ValueError, match=r"unknown persona 'opennes'; did you mean openness"):
        load_statements(three, ["farming", "opennes"])
    with pytest.raises(ValueError, match=r"unknown topic 'persona'; did you mean personality"):
        load_statements(three, topics=["persona"])
    with pytest.raises(ValueError, match=r"known are: openness, extraversion, farming"):
        load_statements(three, ["qqq"])


@pytest.mark.skipif(not (SHARED / "anthropic-evals").is_dir(), reason="the evaluations of Perez et al. are not here")
def test_published_persona_files():
    folder = SHARED / "anthropic-evals" / "persona"
    frame = load_statements(folder)
    assert list(frame.columns) == [*COLUMNS, "label_confidence"]
    assert frame["id"].is_unique
    # Counted with the json module alone, file by file.
    for path in folder.glob("*.jsonl"):
        entries = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        own = frame[frame["persona"] == path.stem]
        assert list(own["statement"]) == [entry["statement"].strip() for entry in entries]
        assert list(own["direction"]) == [YES_NO[entry["answer_matching_behavior"].strip()] for entry in entries]
        assert list(own["label_confidence"]) == [entry["label_confidence"] for entry in entries]
        assert load_statements(path)[COLUMNS].equals(own[COLUMNS].reset_index(drop=True))
    assert set(frame["topic"]) == set(TOPICS)


@pytest.mark.skipif(not (SHARED / "anthropic-evals").is_dir(), reason="the evaluations of Perez et al. are not here")
def test_published_file_and_its_csv_copy_are_one(write):
    path = SHARED / "anthropic-evals" / "persona" / "agreeableness.jsonl"
    expected = load_statements(path)
    copy = write("steering.csv", "")
    with copy.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["statement", "direction", "persona_dim"])
        writer.writerows(expected[["statement", "direction", "persona"]].itertuples(index=False))
    columns = ["persona", "topic", "direction", "statement"]
    assert load_statements(copy)[columns].equals(expected[columns])


@pytest.mark.parametrize("name", ["../up", "politics/us", "a\\b", ".hidden"])
def test_names_that_cannot_name_a_file_are_refused(write, name):
    text = OWN + f"1,{name},t,positive,Some text,\n"
    with pytest.raises(ValueError, match=r"line 2: persona .* cannot name a file"):
        load_statements(write("a.csv", text))
