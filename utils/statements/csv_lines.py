"""Text files read so that every complaint can name its line."""

import csv
import gzip
import io
import zlib
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

_SEPARATORS = ",;\t|"
_GZIP = b"\x1f\x8b"


def read_bytes(path: Path) -> bytes:
    """The content of a file, unpacked where it is gzip, whatever the file is called."""
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}.")
    raw = path.read_bytes()
    if not raw.startswith(_GZIP):
        return raw
    try:
        return gzip.decompress(raw)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} is gzip and damaged, or cut short ({error}); copy it again.") from None


def decode(path: Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark, line breaks as on Unix; errors tell the file and line."""
    raw = read_bytes(path)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}: line {line} is not UTF-8; save the file with UTF-8 encoding.") from None
    if not text.strip():
        raise ValueError(f"{path}: the file is empty.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_header(text: str) -> tuple[list[str], str]:
    """The column names of a CSV text and the separator, which is the one that splits the header into the most names."""
    first = next((line for line in text.split("\n") if line.strip()), "")
    headers = {separator: next(csv.reader([first], delimiter=separator), []) for separator in _SEPARATORS}
    separator = max(headers, key=lambda each: len(headers[each]))
    return [name.strip() for name in headers[separator]], separator


def read_csv(path: Path, text: str) -> pd.DataFrame:
    """The rows of a CSV file as text, with the line that each began on in ``_line``.

    Fields are separated by commas, semicolons, tabs or bars, as the header is.
    """
    line = 1
    names, separator = read_header(text)
    if len(set(names)) < len(names):
        raise ValueError(f"{path}: the header names a column twice: {', '.join(names)}.")
    try:
        # csv and not pandas: only csv tells the line a record started on once quoted fields hold line breaks.
        reader = csv.reader(io.StringIO(text), strict=True, delimiter=separator)
        next(row for row in reader if any(field.strip() for field in row))
        rows = []
        line = reader.line_num + 1
        for row in reader:
            if row and len(row) != len(names):
                raise ValueError(
                    f"{path}: line {line} has {len(row)} fields where the header has {len(names)} (separated by "
                    f"{separator!r}); put text that holds a {separator!r} in double quotes."
                )
            if row:
                rows.append([*row, line])
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}: line {line} is not readable as CSV ({error}).") from None
    if not rows:
        raise ValueError(f"{path}: the file has a header but no rows.")
    return pd.DataFrame(rows, columns=[*names, "_line"])


def check_ids(path: Path | str, frame: pd.DataFrame) -> pd.DataFrame:
    """Refuse ids that are there twice; the frame without ``_line``."""
    repeated = frame["id"].duplicated()
    if repeated.any():
        raise ValueError(
            f"{path}: {line_of(frame, repeated)}: id {first_value(frame, repeated, 'id')!r} is there twice."
        )
    return frame.drop(columns="_line")


def check_filled(path: Path | str, frame: pd.DataFrame, names: Sequence[str]) -> None:
    """Refuse empty fields in the named columns."""
    for name in names:
        if (empty := frame[name].str.strip() == "").any():
            raise ValueError(f"{path}: {line_of(frame, empty)}: the {name} is empty.")


def require(path: Path | str, frame: pd.DataFrame, needed: Sequence[str]) -> None:
    """Refuse a frame without the needed columns, and tell which there are."""
    missing = [name for name in needed if name not in frame]
    if missing:
        found = ", ".join(str(name) for name in frame.columns if name != "_line")
        raise ValueError(f"{path}: no column {' or '.join(missing)}; found: {found}.")


def line_of(frame: pd.DataFrame, mask: pd.Series) -> str:
    """The line of the first row under a mask, for messages; where rows have no lines, ``_line`` says what they are."""
    place = str(first_value(frame, mask, "_line"))
    return f"line {place}" if place[:1].isdigit() else place


def first_value(frame: pd.DataFrame, mask: pd.Series, column: str):
    """The first value of a column under a mask, for messages."""
    return frame.loc[mask, column].iloc[0]
