"""Files of rows, whatever their format: CSV, JSON lines, JSON arrays and Parquet, packed or not, and datasets."""

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd

from utils.records import parse_json
from utils.statements.csv_lines import decode, read_bytes, read_csv, read_header

ENDINGS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(/[\w.-]+)?")
_PARQUET = b"PAR1"
_SAVED = ("dataset_info.json", "dataset_dict.json")


def is_table(path: Path) -> bool:
    """Whether the name is that of a file of rows, packed with gzip or not."""
    return path.name.lower().removesuffix(".gz").endswith(ENDINGS)


def stem(path: Path) -> str:
    """The name of a file without its endings."""
    name = path.name[:-3] if path.suffix.lower() == ".gz" else path.name
    return Path(name).stem


def read_rows(path: Path) -> pd.DataFrame | dict[str, Any]:
    """The rows of a file with their place in ``_line``, or the object where the file is a single JSON object.

    The format is told by the content. Rows of CSV and JSON lines are known by their line, others by their number.

    Raises
    ------
    FileNotFoundError, ValueError
        No such file, or one that cannot be read, with the line at fault.
    """
    if read_bytes(path)[:4] == _PARQUET:
        return _read_parquet(path)
    text = decode(path)
    start = text.lstrip()[:1]
    if start == "[":
        return _from_array(path, text)
    return _from_objects(path, text) if start == "{" else read_csv(path, text)


def read_columns(path: Path) -> list[str] | None:
    """The header of a CSV file; None where the file is something else."""
    if read_bytes(path)[:4] == _PARQUET or (text := decode(path)).lstrip()[:1] in ("{", "["):
        return None
    return read_header(text)[0]


def is_dataset(path: str | Path) -> bool:
    """Whether this is a folder that ``datasets`` saved, or looks like the id of a dataset on the hub."""
    folder = Path(path)
    if folder.exists():
        return any((folder / name).is_file() for name in _SAVED)
    return bool(_HUB_ID.fullmatch(str(path))) and not is_table(folder) and not str(path).startswith(".")


def read_dataset(name: str) -> pd.DataFrame:
    """All splits of a Hugging Face dataset, one after the other, with their place in ``_line``.

    Parameters
    ----------
    name
        A folder that ``datasets`` saved, or an id on the hub such as ``owner/name`` or ``owner/name/configuration``.

    Raises
    ------
    ValueError
        The package ``datasets`` is not installed, or what it found is not a table.
    FileNotFoundError
        There is no such dataset, or no network to fetch it.
    """
    try:
        import datasets
    except ImportError:
        raise ValueError(
            f"{name} is a Hugging Face dataset, and the package to read it is not there: pip install 'personascope[datasets]'."
        ) from None
    saved = Path(name).exists()
    hub_id, configuration = "/".join(name.split("/")[:2]), "/".join(name.split("/")[2:])
    try:
        found: Any = datasets.load_from_disk(name) if saved else datasets.load_dataset(hub_id, configuration or None)
    except Exception as error:
        # The package raises errors of many kinds, most of which are no more than "not found".
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        if saved:
            raise ValueError(f"{name} is not a whole saved dataset ({reason}); save it again.") from None
        raise FileNotFoundError(
            f"there is no file or folder {name}, and no dataset of that name in the local cache or within reach on the "
            f"hub ({reason.rstrip('.')}); give a file, or connect to the network."
        ) from None
    splits = dict(found) if isinstance(found, dict) else {"": found}
    frames = []
    for split, rows in splits.items():
        frame = rows.to_pandas()
        frames.append(frame.assign(_line=[f"row {i} of {split or name}" for i in range(1, len(frame) + 1)]))
    return pd.concat(frames, ignore_index=True)


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        frame = pd.read_parquet(path)
    except (ValueError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{path} is damaged, or cut short ({reason}); make it again.") from None
    if not len(frame):
        raise ValueError(f"{path}: the file has no rows.")
    return _number(frame.reset_index(drop=True))


def _from_array(path: Path, text: str) -> pd.DataFrame:
    try:
        rows = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}).") from None
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"{path}: row {number} is not a JSON object; expected an array of objects.")
    if not rows:
        raise ValueError(f"{path}: the JSON array is empty.")
    return _number(pd.DataFrame(rows))


def _from_objects(path: Path, text: str) -> pd.DataFrame | dict[str, Any]:
    """JSON lines, or one object over several lines, or one alone that is no row."""
    rows, lines = [], []
    # Not splitlines, which also breaks at characters that may stand inside a JSON string, such as U+2028.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            if not rows and (whole := _parse_whole(text)) is not None:
                return whole
            reason = error.msg if isinstance(error, json.JSONDecodeError) else error
            raise ValueError(f"{path}: line {number} is not valid JSON ({reason}).") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}: line {number} is not a JSON object.")
        rows.append(row)
        lines.append(number)
    if len(rows) == 1 and any(isinstance(value, list | dict) for value in rows[0].values()):
        return rows[0]
    return pd.DataFrame(rows).assign(_line=lines)


def _parse_whole(text: str) -> dict[str, Any] | None:
    try:
        whole = parse_json(text)
    except ValueError:
        return None
    return whole if isinstance(whole, dict) else None


def _number(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(_line=[f"row {i}" for i in range(1, len(frame) + 1)])
