"""Statements, questions and identities: files in, one labelled frame out.

Three layouts of statements are read, recognised by their content: this project's CSV, the prompt-steering CSV
(``statement, direction, persona_dim``) and persona JSONL (``statement, answer_matching_behavior``, Perez et al. 2022).
"""

import csv
import difflib
import io
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

logger = logging.getLogger(__name__)

DATA = Path(__file__).resolve().parent.parent / "data"
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
_DIRECTIONS = {
    **dict.fromkeys(["positive", "pos", "+", "+1", "1", "yes", "true"], "positive"),
    **dict.fromkeys(["negative", "neg", "-", "-1", "0", "no", "false"], "negative"),
}


def load_statements(
    path: str | Path | None = None, personas: Sequence[str] | None = None, *, topics: Sequence[str] | None = None
) -> pd.DataFrame:
    """Read statements from one file or a folder of files.

    Parameters
    ----------
    path
        A ``.csv`` or ``.jsonl`` file, or a folder that is searched for such files. The shipped statements by default.
    personas, topics
        Keep these personas and topics only, in the order of the file.

    Returns
    -------
    DataFrame
        One row a statement: ``id`` (unique), ``persona``, ``topic`` (``other`` where unknown), ``direction``
        (``positive`` | ``negative``), ``statement``, ``pair`` (unique over personas, missing where the source has no pairs).

    Raises
    ------
    ValueError
        What is wrong with which line of which file, or which names are unknown.
    FileNotFoundError
        There is no such file or folder.
    """
    frame = _read(Path(path) if path is not None else DATA / "statements.csv")
    frame = _select(frame, "topic", topics)
    return _select(frame, "persona", personas).reset_index(drop=True)


def load_questions(path: str | Path | None = None) -> pd.DataFrame:
    """Read four-option questions: ``id, subject, question, A, B, C, D, answer`` (the right letter)."""
    path = Path(path) if path is not None else DATA / "questions.csv"
    frame = _read_csv(path, _decode(path))
    names = ["id", "subject", "question", "A", "B", "C", "D", "answer"]
    _require(path, frame, names)
    _check_filled(path, frame, names)
    wrong = ~frame["answer"].isin(list("ABCD"))
    if wrong.any():
        raise ValueError(
            f"{path}: {_line(frame, wrong)}: answer must be A, B, C or D, not {_first(frame, wrong, 'answer')!r}."
        )
    return _check_ids(path, frame)


def load_identities(path: str | Path | None = None) -> pd.DataFrame:
    """Read identities for "You are {identity}" prompts: ``identity, group``."""
    path = Path(path) if path is not None else DATA / "identities.csv"
    frame = _read_csv(path, _decode(path))
    _require(path, frame, ["identity", "group"])
    _check_filled(path, frame, ["identity", "group"])
    repeated = frame["identity"].duplicated()
    if repeated.any():
        raise ValueError(f"{path}: {_line(frame, repeated)}: {_first(frame, repeated, 'identity')!r} is there twice.")
    return frame.drop(columns="_line")


def topic_of(persona: str) -> str:
    """The topic of a persona; ``other`` where it is not one of the study's fourteen."""
    return next((topic for topic, personas in TOPICS.items() if persona in personas), "other")


def check_names(kind: str, wanted: Iterable[str], known: Iterable[str]) -> None:
    """Raise a ValueError that lists near matches where a wanted name is not among the known ones."""
    known = list(dict.fromkeys(known))
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known are: {', '.join(known)}."
            raise ValueError(f"unknown {kind} {name!r}; {hint}")


def _select(frame: pd.DataFrame, column: str, wanted: Sequence[str] | None) -> pd.DataFrame:
    if wanted is None:
        return frame
    check_names(column, wanted, frame[column])
    return frame[frame[column].isin(list(wanted))]


def _read(path: Path) -> pd.DataFrame:
    if not path.exists():
        raise FileNotFoundError(f"no statements at {path}: give a .csv or .jsonl file, or a folder of them.")
    if path.is_file():
        return _finish(path, _read_file(path))
    frames = []
    for file in sorted(p for p in path.rglob("*") if p.suffix.lower() in {".csv", ".jsonl"}):
        name = file.relative_to(path)
        # Hidden folders hold copies, such as those in .ipynb_checkpoints.
        if any(part.startswith(".") for part in name.parts):
            continue
        if file.suffix.lower() == ".csv" and "statement" not in _header(file):
            logger.warning("%s has no column 'statement' and is left out", file)
            continue
        frame = _read_file(file)
        frames.append(frame.assign(_line=frame["_line"].astype(str) + f" of {name}"))
    if not frames:
        raise ValueError(f"{path}: the folder holds no .csv or .jsonl file of statements.")
    return _finish(path, pd.concat(frames, ignore_index=True))


def _header(file: Path) -> list[str]:
    return [name.strip() for name in next(filter(None, csv.reader(io.StringIO(_decode(file)))), [])]


def _decode(path: Path) -> str:
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}.")
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}: line {line} is not UTF-8; save the file with UTF-8 encoding.") from None
    if not text.strip():
        raise ValueError(f"{path}: the file is empty.")
    return text


def _read_file(path: Path) -> pd.DataFrame:
    text = _decode(path)
    if text.lstrip().startswith("{"):
        return _from_jsonl(path, text)
    frame = _read_csv(path, text)
    if "persona_dim" in frame and "persona" not in frame:
        frame = frame.rename(columns={"persona_dim": "persona"})
    _require(path, frame, ["statement", "direction", "persona"])
    key = frame["direction"].str.strip().str.lower()
    unknown = ~key.isin(list(_DIRECTIONS))
    if unknown.any():
        raise ValueError(
            f"{path}: {_line(frame, unknown)}: unknown direction {_first(frame, unknown, 'direction')!r}; "
            "expected positive or negative."
        )
    frame["direction"] = key.map(_DIRECTIONS)
    return _complete(path, frame)


def _read_csv(path: Path, text: str) -> pd.DataFrame:
    line = 1
    try:
        # csv and not pandas: only csv tells the line a record started on once quoted fields hold line breaks.
        reader = csv.reader(io.StringIO(text), strict=True)
        names = [name.strip() for name in next(filter(None, reader))]
        if len(set(names)) < len(names):
            raise ValueError(f"{path}: the header names a column twice: {', '.join(names)}.")
        rows = []
        line = reader.line_num + 1
        for row in reader:
            if row and len(row) != len(names):
                raise ValueError(f"{path}: line {line} has {len(row)} fields where the header has {len(names)}.")
            if row:
                rows.append([*row, line])
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}: line {line} is not readable as CSV ({error}).") from None
    if not rows:
        raise ValueError(f"{path}: the file has a header but no rows.")
    return pd.DataFrame(rows, columns=[*names, "_line"])


def _from_jsonl(path: Path, text: str) -> pd.DataFrame:
    rows = []
    # Not splitlines, which also breaks at characters that may stand inside a JSON string, such as U+2028.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: line {number} is not valid JSON ({error.msg}).") from None
        if not isinstance(entry, dict):
            raise ValueError(f"{path}: line {number} is not a JSON object.")
        for name in ("statement", "answer_matching_behavior"):
            if not isinstance(entry.get(name), str):
                raise ValueError(f"{path}: line {number} has no text field {name!r}.")
        answer = entry["answer_matching_behavior"].strip()
        if answer.lower() not in {"yes", "no"}:
            raise ValueError(f"{path}: line {number}: answer_matching_behavior must be Yes or No, not {answer!r}.")
        rows.append(
            {
                "persona": path.stem,
                "direction": _DIRECTIONS[answer.lower()],
                "statement": entry["statement"],
                "_line": number,
            }
        )
    return _complete(path, pd.DataFrame(rows))


def _complete(path: Path, frame: pd.DataFrame) -> pd.DataFrame:
    """Fill the columns that a layout lacks and check those it has."""
    if "id" not in frame:
        # By file and not by persona, which may be spread over the files of a folder.
        frame["id"] = [f"{path.stem}-{line:05d}" for line in frame["_line"]]
    _check_filled(path, frame, ["statement", "persona", "id"])
    frame["statement"] = frame["statement"].str.strip()
    frame["persona"] = frame["persona"].str.strip()
    known = frame["persona"].map(topic_of)
    frame["topic"] = frame["topic"].where(frame["topic"].str.strip() != "", known) if "topic" in frame else known
    frame["pair"] = frame["pair"].where(frame["pair"].str.strip() != "") if "pair" in frame else None
    _check_ids(path, frame)
    return frame[[*COLUMNS, "_line"]]


def _finish(path: Path, frame: pd.DataFrame) -> pd.DataFrame:
    frame = _check_ids(path, frame.assign(pair=frame["pair"].astype("string")))
    sides = frame.dropna(subset="pair").groupby("pair", sort=False)
    counts = sides.agg(n=("id", "size"), personas=("persona", "nunique"), sides=("direction", "nunique"))
    broken = counts[(counts["n"] != 2) | (counts["personas"] != 1) | (counts["sides"] != 2)]
    if len(broken):
        raise ValueError(
            f"{path}: pair {broken.index[0]!r} is not one positive and one negative statement of one persona."
        )
    return frame[COLUMNS]


def _check_ids(path: Path, frame: pd.DataFrame) -> pd.DataFrame:
    repeated = frame["id"].duplicated()
    if repeated.any():
        raise ValueError(f"{path}: {_line(frame, repeated)}: id {_first(frame, repeated, 'id')!r} is there twice.")
    return frame.drop(columns="_line")


def _check_filled(path: Path, frame: pd.DataFrame, names: Sequence[str]) -> None:
    for name in names:
        if (empty := frame[name].str.strip() == "").any():
            raise ValueError(f"{path}: {_line(frame, empty)}: the {name} is empty.")


def _require(path: Path, frame: pd.DataFrame, needed: Sequence[str]) -> None:
    missing = [name for name in needed if name not in frame]
    if missing:
        found = ", ".join(str(name) for name in frame.columns if name != "_line")
        raise ValueError(f"{path}: no column {' or '.join(missing)}; found: {found}.")


def _line(frame: pd.DataFrame, mask: pd.Series) -> str:
    return f"line {_first(frame, mask, '_line')}"


def _first(frame: pd.DataFrame, mask: pd.Series, column: str):
    return frame.loc[mask, column].iloc[0]
