import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from utils.folders import check_room, check_target, hold, hold_folder

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys, time
from pathlib import Path
from utils.folders import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_second_is_told_who_holds_it_and_a_killed_holder_lets_go(tmp_path):
    place = tmp_path / ".run"
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(place)], cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ}
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(OSError, match=rf"is in use by process {other.pid} on .*; wait until"), hold(place):
            pass
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    with hold(place):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_held_once(tmp_path):
    with hold_folder(tmp_path / "new" / "deep") as folder:
        (folder / "kept").touch()
        with pytest.raises(OSError, match=f"in use by process {os.getpid()} "), hold_folder(folder):
            pass
    assert [file.name for file in folder.iterdir()] == ["kept"]


def test_what_is_refused_leaves_no_folder(tmp_path):
    with pytest.raises(ValueError, match="no"), hold_folder(tmp_path / "new" / "deep"):
        raise ValueError("no")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_first(tmp_path):
    check_room(tmp_path, 1)
    with pytest.raises(OSError, match=r"1000000\.00 GB are to be written .* GB left; free some space"):
        check_room(tmp_path, 1e15)


def test_a_target_that_cannot_be_written(tmp_path):
    check_target(tmp_path / "new" / "file")
    (tmp_path / "file").touch()
    check_target(tmp_path / "file")
    with pytest.raises(OSError, match="is a folder; give the name of a file"):
        check_target(tmp_path)
    with pytest.raises(OSError, match="cannot write to"):
        check_target(tmp_path / "file" / "below")
