import io
import sys
from itertools import count

import pytest
from tqdm import tqdm

from utils.cli.progress import EVERY, LogStream


@pytest.fixture
def log():
    """A stream whose clock goes on ten seconds at each look."""
    ticks = count(step=EVERY / 3)
    return LogStream(io.StringIO(), clock=lambda: float(next(ticks)))


def lines_of(log):
    return log._stream.getvalue().splitlines()


def test_a_bar_becomes_a_line_now_and_then_and_one_at_its_end(log):
    for _ in tqdm(range(12), file=log, desc="scanning", mininterval=0):
        pass
    lines = lines_of(log)
    assert 3 <= len(lines) <= 6
    assert "12/12" in lines[-1]
    assert all(line.startswith("scanning: ") for line in lines)
    assert not [line for line in lines if "\r" in line or "\x1b" in line]


def test_a_bar_below_another_does_not_repeat_it(log):
    for _ in tqdm(range(3), file=log, desc="outer", mininterval=0):
        for _ in tqdm(range(30), file=log, desc="inner", mininterval=0, position=1, leave=False):
            pass
    lines = lines_of(log)
    assert all(line.startswith(("inner: ", "outer: ")) for line in lines)
    assert sum(line.startswith("outer: ") for line in lines) <= 4
    assert lines[-1].startswith("outer: 100%")


def test_what_is_no_bar_passes_as_it_is(log):
    print("one", "line", file=log)
    print("a path", end="", file=log)
    print(file=log)
    print(file=log)
    with tqdm(total=3, file=log, mininterval=0):
        print("said meanwhile", file=log)
    assert lines_of(log) == ["one line", "a path", "", "said meanwhile"]


def test_a_terminal_keeps_its_bars(monkeypatch):
    from utils.cli import main

    seen = []
    monkeypatch.setattr(main, "_run", lambda: seen.append(sys.stderr))
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", terminal)
    main.main()
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    main.main()
    assert seen[0] is terminal
    assert isinstance(seen[1], LogStream)
