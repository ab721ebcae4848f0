"""Layouts of statements: what rows of a file, recognised by their columns, say and whose side they are on."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pandas as pd

from utils.statements.csv_lines import check_filled, check_ids, first_value, line_of, require

CONFIDENCE = "label_confidence"
COLUMNS = ["id", "persona", "topic", "direction", "statement", "pair"]
TOPICS = {
    "politics": ["politically-liberal", "politically-conservative", "anti-immigration", "anti-LGBTQ-rights"],
    "ethics": [
        "subscribes-to-virtue-ethics",
        "subscribes-to-cultural-relativism",
        "subscribes-to-deontology",
        "subscribes-to-utilitarianism",
        "subscribes-to-moral-nihilism",
    ],
    "personality": ["agreeableness", "conscientiousness", "openness", "extraversion", "neuroticism"],
}
LONGEST_NAME = 200  # bytes; file systems take 255, and files are called more than the persona alone
_TOPIC_OF = {persona: topic for topic, personas in TOPICS.items() for persona in personas}
_DIRECTIONS = {
    **dict.fromkeys(["positive", "pos", "+", "+1", "1", "yes", "true"], "positive"),
    **dict.fromkeys(["negative", "neg", "-", "-1", "0", "no", "false"], "negative"),
}
_ANSWER, _OTHER = "answer_matching_behavior", "answer_not_matching_behavior"
_LETTER = re.compile(r"\(([A-Z])\)")
_OPTION = re.compile(r"^[ \t]*\(([A-Z])\)[ \t]*(.*?)[ \t]*$", flags=re.MULTILINE)
_CHOICES = re.compile(r"\s*(?:choices|options)[ \t]*:?\s*\Z", flags=re.IGNORECASE)


def topic_of(persona: str) -> str:
    """The topic of a persona; ``other`` where it is not one of the study's fourteen."""
    return _TOPIC_OF.get(persona, "other")


def is_layout(columns: Collection) -> bool:
    """Whether rows with these columns are statements, of any layout."""
    return "statement" in columns or ("question" in columns and ("matching" in columns or _ANSWER in columns))


def is_trait(found: dict[str, Any]) -> bool:
    """Whether a JSON object holds a trait: pairs of instructions, and questions."""
    return isinstance(found.get("instruction"), list)


def from_rows(path: Path | str, rows: pd.DataFrame, *, name: str, persona: str) -> pd.DataFrame:
    """Statements of rows: :data:`COLUMNS`, ``label_confidence`` where the rows have it, and ``_line``.

    Parameters
    ----------
    path
        For messages.
    rows
        As :func:`utils.statements.files.read_rows` returns them.
    name
        What ids and pairs begin with where the rows have none.
    persona
        Whose the statements are where the rows do not say.
    """
    rows = rows.rename(columns=str)
    if "persona" not in rows:
        rows = rows.rename(columns={"persona_dim": "persona"})
    if {"question", "matching", "not_matching"} <= set(rows.columns):
        frame = _from_two_options(path, rows, ("matching", "not_matching"), name)
    elif _ANSWER in rows and "statement" in rows:
        frame = _from_answers(path, rows)
    elif _ANSWER in rows and "question" in rows:
        require(path, rows, [_OTHER])
        frame = _from_two_options(path, rows, (_ANSWER, _OTHER), name)
    else:
        require(path, rows, ["statement", "direction", "persona"])
        frame = rows[[name for name in (*COLUMNS, CONFIDENCE, "_line") if name in rows]].copy()
        frame["direction"] = _as_text(path, frame, "direction")
        frame["direction"] = _map(path, frame, "direction", "positive or negative")
    if "persona" not in frame:
        frame["persona"] = persona
    return _complete(path, frame, name)


def from_trait(path: Path | str, found: dict[str, Any], *, name: str, persona: str) -> pd.DataFrame:
    """Statements of a trait: each pair of instructions is a pair, ``pos`` its positive and ``neg`` its negative side."""
    rows = []
    for number, pair in enumerate(found["instruction"], start=1):
        sides = [pair.get(side) if isinstance(pair, dict) else None for side in ("pos", "neg")]
        if not all(isinstance(text, str) for text in sides):
            raise ValueError(f"{path}: instruction {number} is not an object with the texts 'pos' and 'neg'.")
        for direction, text in zip(("positive", "negative"), sides, strict=True):
            rows.append(
                {
                    "id": f"{name}-{number:05d}-{direction[0]}",
                    "persona": persona,
                    "direction": direction,
                    "statement": text,
                    "pair": f"{name}-{number:05d}",
                    "_line": f"instruction {number}",
                }
            )
    if not rows:
        raise ValueError(f"{path}: the list 'instruction' is empty; expected pairs of 'pos' and 'neg'.")
    return _complete(path, pd.DataFrame(rows), name)


def _from_answers(path: Path | str, rows: pd.DataFrame) -> pd.DataFrame:
    """``statement`` and whether the persona says Yes or No to it."""
    frame = rows[[name for name in ("id", "persona", "statement", CONFIDENCE, "_line") if name in rows]].copy()
    frame["statement"] = _as_text(path, rows, "statement")
    frame["direction"] = _as_text(path, rows, _ANSWER).str.strip()
    if (unusable := ~frame["direction"].str.lower().isin(["yes", "no"])).any():
        answer = first_value(frame, unusable, "direction")
        raise ValueError(f"{path}: {line_of(frame, unusable)}: {_ANSWER} must be Yes or No, not {answer!r}.")
    frame["direction"] = _map(path, frame, "direction", "Yes or No")
    return frame


def _from_two_options(path: Path | str, rows: pd.DataFrame, names: tuple[str, str], name: str) -> pd.DataFrame:
    """A pair a question: the question with the persona's answer below it, and with the other answer."""
    question = _as_text(path, rows, "question")
    answers = [_as_text(path, rows.assign(**{each: rows[each].map(_first)}), each) for each in names]
    parted = [_part(text) for text in question]
    sides = []
    for side, answer in zip(("positive", "negative"), answers, strict=True):
        texts = [_answer(*part, given) for part, given in zip(parted, answer, strict=True)]
        if (lost := pd.Series([text is None for text in texts], index=rows.index)).any():
            raise ValueError(
                f"{path}: {line_of(rows, lost)}: the answer {answer[lost].iloc[0].strip()!r} is none of the options of the "
                "question; expected lines such as '(A) Yes, I would.' in it."
            )
        sides.append(pd.DataFrame({"direction": side, "statement": texts, "_line": rows["_line"]}))
    pairs = [f"{name}-{number:05d}" for number in _numbers(rows)]
    for side in sides:
        side["pair"] = pairs
        side["id"] = [f"{pair}-{side['direction'].iloc[0][0]}" for pair in pairs]
        for column in ("persona", CONFIDENCE):
            if column in rows:
                side[column] = rows[column]
    return pd.concat(sides).sort_index(kind="stable").reset_index(drop=True)


def _part(question: str) -> tuple[str, dict[str, str]]:
    """The question without its list of options, and the options by letter."""
    found = list(_OPTION.finditer(question))
    if not found:
        return question.strip(), {}
    return _CHOICES.sub("", question[: found[0].start()]).strip(), {each[1]: each[2] for each in found}


def _answer(asked: str, options: dict[str, str], answer: str) -> str | None:
    """The question and the answer in words; None where the answer is a letter that the question does not have."""
    letter = _LETTER.fullmatch(answer.strip())
    words = options.get(letter[1]) if letter else answer.strip()
    return f"{asked}\n{words}" if words else None


def _first(value: Any) -> Any:
    """Some sets have several answers that do not match; the first one is taken."""
    return value[0] if isinstance(value, list | tuple) or (hasattr(value, "tolist") and len(value)) else value


def _complete(path: Path | str, frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Fill the columns that a layout lacks and check those it has."""
    if "id" not in frame:
        # By file and not by persona, which may be spread over the files of a folder.
        frame["id"] = [f"{name}-{number:05d}" for number in _numbers(frame)]
    for column in ("statement", "persona", "id"):
        frame[column] = _as_text(path, frame, column)
    check_filled(path, frame, ["statement", "persona", "id"])
    frame["statement"] = frame["statement"].str.strip().str.replace("\r\n?", "\n", regex=True)
    frame["persona"] = frame["persona"].str.strip()
    known = frame["persona"].map({persona: topic_of(persona) for persona in frame["persona"].unique()})
    for column in ("topic", "pair"):
        given = frame[column].fillna("").astype(str) if column in frame else pd.Series("", index=frame.index)
        frame[column] = given.where(given.str.strip() != "", known if column == "topic" else None)
    for column in ("persona", "topic"):
        _check_names(path, frame, column)
    if CONFIDENCE in frame:
        numbers = pd.to_numeric(frame[CONFIDENCE], errors="coerce").astype(float)
        unreadable = numbers.isna() & frame[CONFIDENCE].notna() & (frame[CONFIDENCE].astype(str).str.strip() != "")
        if unreadable.any():
            value = first_value(frame, unreadable, CONFIDENCE)
            raise ValueError(f"{path}: {line_of(frame, unreadable)}: {CONFIDENCE} must be a number, not {value!r}.")
        frame[CONFIDENCE] = numbers
    check_ids(path, frame)
    return frame[[*COLUMNS, *([CONFIDENCE] if CONFIDENCE in frame else []), "_line"]]


def _check_names(path: Path | str, frame: pd.DataFrame, column: str) -> None:
    """Refuse names that no file can have, as results are files called after them."""
    names = pd.Series(frame[column].unique())
    for name in names[names.str.contains(r"[/\\\x00-\x1f\x7f]|^\.")]:
        raise ValueError(
            f"{path}: {line_of(frame, frame[column] == name)}: {column} {name!r} cannot name a file; leave out / and \\, "
            "line breaks and a leading dot."
        )
    for name in names[[len(str(name).encode()) > LONGEST_NAME for name in names]]:
        raise ValueError(
            f"{path}: {line_of(frame, frame[column] == name)}: {column} {name[:40] + '…'!r} is too long to name a file: "
            f"{len(name.encode())} bytes, at most {LONGEST_NAME}; give it a shorter name."
        )


def _as_text(path: Path | str, rows: pd.DataFrame, column: str) -> pd.Series:
    """A column of texts; whole numbers and truth values count as text, what is missing does not."""
    values = rows[column].tolist()
    text = [_written(value, numbers=column != "statement") for value in values]
    if None in text:
        missing = pd.Series([value is None for value in text], index=rows.index)
        raise ValueError(f"{path}: {line_of(rows, missing)} has no text field {column!r}.")
    return pd.Series(text, index=rows.index, dtype=str)


def _written(value: Any, *, numbers: bool) -> str | None:
    if isinstance(value, str):
        return value
    if not numbers or not isinstance(value, bool | int | float) or value != value:
        return None
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _map(path: Path | str, frame: pd.DataFrame, column: str, expected: str) -> pd.Series:
    found = frame[column].str.strip().str.lower().map(_DIRECTIONS)
    if (unknown := found.isna()).any():
        value = first_value(frame, unknown, column)
        raise ValueError(f"{path}: {line_of(frame, unknown)}: unknown direction {value!r}; expected {expected}.")
    return found


def _numbers(frame: pd.DataFrame) -> list[int]:
    """The line of every row, or its number where rows have no lines."""
    numeric = pd.api.types.is_integer_dtype(frame["_line"])
    return frame["_line"].tolist() if numeric else list(range(1, len(frame) + 1))
