"""Numbers as options take them."""

import math
import re

_MOST = 10_000


def read_integers(option: str, text: str | None) -> list[int] | None:
    """Read ``0,6,12`` or ``1-30`` or both mixed.

    Raises
    ------
    ValueError
        Something else, a number that is there twice, or more numbers than any model has layers.
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
        if len(numbers) + last - first >= _MOST:
            raise ValueError(f"{option} {text!r} is more than {_MOST:,} numbers; give those that the model has.")
        numbers += range(first, last + 1)
    if repeated := next((number for number in numbers if numbers.count(number) > 1), None):
        raise ValueError(f"{option} {text!r} names {repeated} twice; name each once.")
    return numbers


def read_floats(option: str, text: str) -> list[float]:
    """Read ``-0.2,0.1,0.4``; an empty text is an empty list."""
    try:
        numbers = [float(piece) for piece in text.split(",") if piece.strip()]
    except ValueError:
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{option} {text!r} is not a list of numbers such as 0.1,0.4.")
    return numbers
