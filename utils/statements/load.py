"""Statements: files in, one labelled frame out.

Three layouts of statements are read, recognised by their content: this project's CSV, the prompt-steering CSV
(``statement, direction, persona_dim``) and persona JSONL (``statement, answer_matching_behavior``, Perez et al. 2022).
"""

import csv
import difflib
import importlib.resources
import io
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from utils.statements.csv_lines import check_filled, check_ids, decode, first_value, line_of, read_csv, require

logger = logging.getLogger(__name__)

_PACKAGE = Path(str(importlib.resources.files("utils")))
# A wheel holds the folder inside the package, the project's tree beside it.
DATA = next(filter(Path.is_dir, (_PACKAGE / "data", _PACKAGE.parent / "data")), _PACKAGE / "data")
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
    return [name.strip() for name in next(filter(None, csv.reader(io.StringIO(decode(file)))), [])]


def _read_file(path: Path) -> pd.DataFrame:
    text = decode(path)
    if text.lstrip().startswith("{"):
        return _from_jsonl(path, text)
    frame = read_csv(path, text)
    if "persona_dim" in frame and "persona" not in frame:
        frame = frame.rename(columns={"persona_dim": "persona"})
    require(path, frame, ["statement", "direction", "persona"])
    key = frame["direction"].str.strip().str.lower()
    unknown = ~key.isin(list(_DIRECTIONS))
    if unknown.any():
        raise ValueError(
            f"{path}: {line_of(frame, unknown)}: unknown direction {first_value(frame, unknown, 'direction')!r}; "
            "expected positive or negative."
        )
    frame["direction"] = key.map(_DIRECTIONS)
    return _complete(path, frame)


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
    check_filled(path, frame, ["statement", "persona", "id"])
    frame["statement"] = frame["statement"].str.strip()
    frame["persona"] = frame["persona"].str.strip()
    known = frame["persona"].map(topic_of)
    frame["topic"] = frame["topic"].where(frame["topic"].str.strip() != "", known) if "topic" in frame else known
    frame["pair"] = frame["pair"].where(frame["pair"].str.strip() != "") if "pair" in frame else None
    for name in ("persona", "topic"):
        if (unusable := frame[name].str.contains(r"[/\\]|^\.")).any():
            value = first_value(frame, unusable, name)
            raise ValueError(
                f"{path}: {line_of(frame, unusable)}: {name} {value!r} cannot name a file; leave out / and \\ and a leading dot."
            )
    check_ids(path, frame)
    return frame[[*COLUMNS, "_line"]]


def _finish(path: Path, frame: pd.DataFrame) -> pd.DataFrame:
    frame = check_ids(path, frame.assign(pair=frame["pair"].astype("string")))
    sides = frame.dropna(subset="pair").groupby("pair", sort=False)
    counts = sides.agg(n=("id", "size"), personas=("persona", "nunique"), sides=("direction", "nunique"))
    broken = counts[(counts["n"] != 2) | (counts["personas"] != 1) | (counts["sides"] != 2)]
    if len(broken):
        raise ValueError(
            f"{path}: pair {broken.index[0]!r} is not one positive and one negative statement of one persona."
        )
    return frame[COLUMNS]
