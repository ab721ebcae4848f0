"""Progress bars in a log: where stderr is no terminal, a line now and then instead of one that is drawn over.

Own code, because the bars come from several libraries, and what they share is only the stream that they write to.
"""

import io
import re
import time
from collections.abc import Callable

EVERY = 30.0
# What bars use to move between lines of a terminal.
_MOVES = re.compile(r"\x1b\[A|\x1b\[\d*[A-K]")


class LogStream(io.TextIOBase):
    """A stream that passes lines on, and of a progress bar its state every half minute and at its end.

    Parameters
    ----------
    stream
        Where lines go.
    clock
        Seconds.
    """

    def __init__(self, stream: io.TextIOBase, *, clock: Callable[[], float] = time.monotonic):
        self._stream, self._clock = stream, clock
        self._bar, self._last = "", clock()
        # Whether a bar, or a line that has not ended, was written last.
        self._drawing = self._within = False

    def write(self, text: str, /) -> int:
        """Pass on a text that no bar wrote, and a bar's where it is time."""
        plain = _MOVES.sub("", text)
        if plain.startswith("\r"):
            self._bar, self._drawing = plain.strip(), True
            if self._bar and self._clock() - self._last >= EVERY:
                self._show()
        elif self._drawing and not self._within and not plain.strip("\n"):
            # A bar that ends goes to the next line; one below another moves there at each of its turns.
            if self._bar and _is_full(self._bar):
                self._show()
        elif plain:
            self._stream.write(plain)
            self._drawing, self._within = False, not plain.endswith("\n")
        return len(text)

    def flush(self) -> None:
        """Flush what it writes to."""
        self._stream.flush()

    @property
    def encoding(self) -> str:
        """That of the stream."""
        return self._stream.encoding or "utf-8"

    def fileno(self) -> int:
        """That of the stream, for processes that inherit it."""
        return self._stream.fileno()

    def _show(self) -> None:
        self._stream.write(f"{self._bar}\n")
        self._stream.flush()
        self._bar, self._last = "", self._clock()


def _is_full(bar: str) -> bool:
    return (match := re.search(r"(\d+)/(\d+) ", bar)) is not None and match[1] == match[2]
