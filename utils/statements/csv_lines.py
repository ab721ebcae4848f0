"""CSV files read so that every complaint can name its line."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import pandas as pd


def decode(path: Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark; errors tell the file and line."""
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


def read_csv(path: Path, text: str) -> pd.DataFrame:
    """The rows of a CSV file as text, with the line that each began on in ``_line``."""
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


def check_ids(path: Path, frame: pd.DataFrame) -> pd.DataFrame:
    """Refuse ids that are there twice; the frame without ``_line``."""
    repeated = frame["id"].duplicated()
    if repeated.any():
        raise ValueError(
            f"{path}: {line_of(frame, repeated)}: id {first_value(frame, repeated, 'id')!r} is there twice."
        )
    return frame.drop(columns="_line")


def check_filled(path: Path, frame: pd.DataFrame, names: Sequence[str]) -> None:
    """Refuse empty fields in the named columns."""
    for name in names:
        if (empty := frame[name].str.strip() == "").any():
            raise ValueError(f"{path}: {line_of(frame, empty)}: the {name} is empty.")


def require(path: Path, frame: pd.DataFrame, needed: Sequence[str]) -> None:
    """Refuse a frame without the needed columns, and tell which there are."""
    missing = [name for name in needed if name not in frame]
    if missing:
        found = ", ".join(str(name) for name in frame.columns if name != "_line")
        raise ValueError(f"{path}: no column {' or '.join(missing)}; found: {found}.")


def line_of(frame: pd.DataFrame, mask: pd.Series) -> str:
    """The line of the first row under a mask, for messages."""
    return f"line {first_value(frame, mask, '_line')}"


def first_value(frame: pd.DataFrame, mask: pd.Series, column: str):
    """The first value of a column under a mask, for messages."""
    return frame.loc[mask, column].iloc[0]
