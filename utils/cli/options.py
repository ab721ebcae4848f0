"""What the commands share: options that mean the same everywhere, and how lists and numbers are read."""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from utils.options import Role

Model = Annotated[str | None, typer.Option(help="Folder, .gguf file or hub id; the embedded model by default.")]
Statements = Annotated[
    str | None, typer.Option(help="CSV, TSV, JSON(L) or Parquet file, a folder of them, or a dataset.")
]
StatementRole = Annotated[Role, typer.Option(help="Turn of the chat template that holds the statement.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")]
StudyFolder = Annotated[Path, typer.Argument(help="A study folder, as personascope study writes it.")]
StudyModel = Annotated[str | None, typer.Option(help="The study's model, where it lies elsewhere now.")]
StudyDevice = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps; the study's by default.")]
StudyDtype = Annotated[str | None, typer.Option(help="auto, float32, float16 or bfloat16; the study's by default.")]
Seed = Annotated[int, typer.Option(help="Seed of everything that is drawn.")]

# More than any model has; a range is written out only below it.
_MOST_LAYERS = 10_000


def read_names(text: str | None) -> list[str] | None:
    """Names of ``a, b``."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def read_numbers(option: str, text: str, kind: Callable[[str], Any] = int) -> list:
    """Numbers of ``5,20,80``; an empty text is an empty list.

    Raises
    ------
    ValueError
        Something else is there, a number that is not finite, or one that is there twice.
    """
    try:
        numbers = [kind(piece) for piece in text.split(",") if piece.strip()]
    except ValueError:
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{option} {text!r} is not a list of numbers such as 5,20,80.")
    _check_once(option, text, numbers)
    return numbers


def read_layers(option: str, text: str | None) -> list[int] | None:
    """Layers of ``0,6,12`` or ``1-30`` or both mixed.

    Raises
    ------
    ValueError
        Something else is there, a layer that is there twice, or more layers than any model has.
    """
    if text is None:
        return None
    numbers: list[int] = []
    for piece in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", piece, flags=re.ASCII)
        if match is None:
            raise ValueError(f"{option} {text!r} is not a list of whole numbers such as 0,6,12 or 1-30.")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"{option} {text!r} has a range that runs backwards; write {last}-{first}.")
        if len(numbers) + last - first >= _MOST_LAYERS:
            raise ValueError(f"{option} {text!r} is more than {_MOST_LAYERS:,} numbers; give those that the model has.")
        numbers += range(first, last + 1)
    _check_once(option, text, numbers)
    return numbers


def read_batch_size(text: str) -> int | Literal["auto"]:
    """A whole number above 0, or ``auto``.

    Raises
    ------
    ValueError
        Something else is there.
    """
    if text == "auto":
        return "auto"
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"--batch-size {text!r} is not a whole number above 0 or auto.")
    return int(text)


def _check_once(option: str, text: str, numbers: Sequence[float]) -> None:
    repeated = [number for number, count in Counter(numbers).items() if count > 1]
    if repeated:
        raise ValueError(f"{option} {text!r} names {repeated[0]:g} twice; name each once.")
