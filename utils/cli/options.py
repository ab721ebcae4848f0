"""What the commands share: options that mean the same everywhere, and how lists and numbers are read."""

from collections.abc import Callable
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


def read_names(text: str | None) -> list[str] | None:
    """Names of ``a, b``."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def read_numbers(option: str, text: str, kind: Callable[[str], Any] = int) -> list:
    """Numbers of ``5,20,80``.

    Raises
    ------
    ValueError
        Something else is there.
    """
    try:
        return [kind(piece) for piece in text.split(",") if piece.strip()]
    except ValueError:
        raise ValueError(f"{option} {text!r} is not a list of numbers such as 5,20,80.") from None


def read_layers(option: str, text: str | None) -> list[int] | None:
    """Layers of ``0,6,12`` or ``1-30``.

    Raises
    ------
    ValueError
        Something else is there.
    """
    if text is None:
        return None
    numbers: list[int] = []
    try:
        for piece in text.split(","):
            first, _, last = piece.strip().partition("-")
            numbers += range(int(first), int(last or first) + 1)
    except ValueError:
        raise ValueError(f"{option} {text!r} is not a list of whole numbers such as 0,6,12 or 1-30.") from None
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
