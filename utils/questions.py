"""Multiple-choice questions, and identities for "You are {identity}" prompts."""

from pathlib import Path

import pandas as pd

from utils.csv_lines import check_filled, check_ids, decode, first_value, line_of, read_csv, require
from utils.statements import DATA


def load_questions(path: str | Path | None = None) -> pd.DataFrame:
    """Read four-option questions: ``id, subject, question, A, B, C, D, answer`` (the right letter)."""
    path = Path(path) if path is not None else DATA / "questions.csv"
    frame = read_csv(path, decode(path))
    names = ["id", "subject", "question", "A", "B", "C", "D", "answer"]
    require(path, frame, names)
    check_filled(path, frame, names)
    wrong = ~frame["answer"].isin(list("ABCD"))
    if wrong.any():
        raise ValueError(
            f"{path}: {line_of(frame, wrong)}: answer must be A, B, C or D, not {first_value(frame, wrong, 'answer')!r}."
        )
    return check_ids(path, frame)


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
