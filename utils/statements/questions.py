"""Multiple-choice questions, and identities for "You are {identity}" prompts."""

import csv
import json
from pathlib import Path

import pandas as pd

from utils.statements.csv_lines import check_filled, check_ids, decode, first_value, line_of, read_csv, require
from utils.statements.load import DATA

COLUMNS = ["id", "subject", "question", "A", "B", "C", "D", "answer"]
HUB_QUESTIONS = "cais/mmlu"


def load_questions(path: str | Path | None = None) -> pd.DataFrame:
    """Read four-option questions: ``id, subject, question, A, B, C, D, answer`` (the right letter).

    Parameters
    ----------
    path
        A file of one of these kinds, told apart by its content; this project's own questions by default. Ids that are
        not there are made from the subject and the row.

        - CSV with a header: ``question, A, B, C, D, answer``, maybe ``id`` and ``subject``.
        - CSV without one, as MMLU comes: question, four options, letter; the subject is the file's name.
        - JSONL with ``question``, ``choices`` (four) and ``answer`` (0 to 3, or the letter), maybe ``subject`` and ``id``.
        - Parquet with the same columns.

        ``cais/mmlu`` reads the test questions of MMLU from the hub, ``cais/mmlu/anatomy`` one subject of them.

    Raises
    ------
    FileNotFoundError
        No such file, or the hub cannot be reached.
    ValueError
        A row that is not a question with four options and a right one, with its line.
    """
    if path is not None and str(path).startswith(HUB_QUESTIONS) and not Path(path).exists():
        path = _fetch(str(path).removeprefix(HUB_QUESTIONS).strip("/") or "all")
    path = Path(path) if path is not None else DATA / "questions.csv"
    if path.suffix == ".parquet":
        frame = _from_records(path, pd.read_parquet(path).to_dict("records"))
    else:
        text = decode(path)
        is_json = text.lstrip().startswith("{")
        frame = _from_records(path, _read_lines(path, text)) if is_json else _read_table(path, text)
    if "subject" not in frame:
        frame["subject"] = path.stem.removesuffix("_test").removesuffix("_dev").removesuffix("_val")
    if "id" not in frame:
        require(path, frame, COLUMNS[2:])
        frame["id"] = frame["subject"] + "-" + (frame.groupby("subject").cumcount() + 1).astype(str).str.zfill(4)
    require(path, frame, COLUMNS)
    check_filled(path, frame, COLUMNS)
    wrong = ~frame["answer"].isin(list("ABCD"))
    if wrong.any():
        raise ValueError(
            f"{path}: {line_of(frame, wrong)}: answer must be A, B, C or D, not {first_value(frame, wrong, 'answer')!r}."
        )
    return check_ids(path, frame)[COLUMNS]


def draw_questions(questions: pd.DataFrame, n: int, *, rng: int = 0) -> pd.DataFrame:
    """About n questions, as many of each right letter, or a leaning to one of them would count as knowledge."""
    per_letter = min(max(1, n // 4), int(questions["answer"].value_counts().min()))
    return questions.groupby("answer").sample(per_letter, random_state=rng).reset_index(drop=True)


def load_identities(path: str | Path | None = None) -> pd.DataFrame:
    """Read identities for "You are {identity}" prompts: ``identity, group``."""
    path = Path(path) if path is not None else DATA / "identities.csv"
    frame = read_csv(path, decode(path))
    require(path, frame, ["identity", "group"])
    check_filled(path, frame, ["identity", "group"])
    repeated = frame["identity"].duplicated()
    if repeated.any():
        raise ValueError(
            f"{path}: {line_of(frame, repeated)}: {first_value(frame, repeated, 'identity')!r} is there twice."
        )
    return frame.drop(columns="_line")


def _read_table(path: Path, text: str) -> pd.DataFrame:
    """MMLU's own files begin with the first question: six fields, of which the last is a letter."""
    first = next(csv.reader(text.splitlines(keepends=True)), [])
    if len(first) != 6 or first[-1].strip() not in tuple("ABCD") or "question" in first:
        return read_csv(path, text)
    frame = read_csv(path, "question,A,B,C,D,answer\n" + text)
    return frame.assign(_line=frame["_line"] - 1)


def _read_lines(path: Path, text: str) -> list[dict]:
    records = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}: line {number} is not JSON ({error}).") from None
        if not isinstance(record, dict):
            raise ValueError(f"{path}: line {number} is not an object with question, choices and answer.")
        records.append({**record, "_line": number})
    return records


def _from_records(path: Path, records: list[dict]) -> pd.DataFrame:
    rows = []
    for place, record in enumerate(records, start=1):
        line = record.get("_line", place)
        missing = [name for name in ("question", "choices", "answer") if name not in record]
        if missing:
            raise ValueError(f"{path}: line {line} has no {missing[0]!r}; found: {', '.join(map(str, record))}.")
        choices = record["choices"]
        if isinstance(choices, str) or len(choices) != 4:
            raise ValueError(f"{path}: line {line}: choices must be four options, not {choices!r}.")
        answer = str(record["answer"])
        row = {"question": str(record["question"]), **dict(zip("ABCD", map(str, choices), strict=True))}
        row |= {"answer": "ABCD"[int(answer)] if answer in tuple("0123") else answer, "_line": line}
        rows.append(row | {name: str(record[name]) for name in ("id", "subject") if name in record})
    return pd.DataFrame(rows)


def _fetch(subject: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    name = f"{subject}/test-00000-of-00001.parquet"
    try:
        return Path(hf_hub_download(HUB_QUESTIONS, name, repo_type="dataset"))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, EntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise FileNotFoundError(
            f"the questions {HUB_QUESTIONS} ({subject}) are neither in the local cache nor can they be fetched "
            "(no network, or no such subject); give a file."
        ) from error
