"""Places to write to: held by one process at a time, writable, and with room for what is to come."""

import contextlib
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import filelock

# The record of a finished run by its name, and what it is of.
RUNS = {
    "study.json": "study",
    "causal.json": "causal check",
    "patching.json": "patching run",
    "subnetworks.json": "run of masks",
    "vectors.json": "run of vectors",
    "audit.json": "audit",
}


@contextlib.contextmanager
def hold(place: Path, *, name: Path | None = None) -> Iterator[None]:
    """Hold ``<place>.lock``, so that no other process, nor another call of this one, writes to the same place.

    The lock is the operating system's: it ends with the process, however that ends. Who holds it stands beside it, in
    ``<place>.holder``. ``name``: what is held, for the error; the folder of ``place`` by default.

    Raises
    ------
    OSError
        Another holds it; who, since when, and what to do.
    """
    lock, holder = place.with_name(f"{place.name}.lock"), place.with_name(f"{place.name}.holder")
    try:
        held = filelock.FileLock(lock, timeout=0, is_singleton=False)
        held.acquire()
    except filelock.Timeout:
        raise OSError(
            f"{name or place.parent} is in use by {_read_holder(holder)}; wait until that has ended, or give another folder."
        ) from None
    except OSError as error:
        raise OSError(f"cannot write to {place.parent}: {error.strerror}; choose another folder.") from None
    try:
        holder.write_text(
            f"process {os.getpid()} on {platform.node()} since {time.strftime('%Y-%m-%d %H:%M:%S')}", encoding="utf-8"
        )
        yield
    finally:
        # Removed while it is still held: who waits for the removed file sees that, and begins anew.
        holder.unlink(missing_ok=True)
        lock.unlink(missing_ok=True)
        held.release()


def _read_holder(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8") or "another process"
    except OSError:
        return "another process"


@contextlib.contextmanager
def hold_folder(folder: Path, *, record: str) -> Iterator[Path]:
    """Make the folder of a run, see that it can be written to, and hold it; what is refused leaves no empty folder.

    ``record``: of ``RUNS``, which of them the run writes.

    Raises
    ------
    ValueError
        The folder holds a run of another kind, whose files have the same names.
    OSError
        It cannot be made or written to, or another process holds it.
    """
    if other := next((name for name in RUNS if name != record and (folder / name).is_file()), None):
        raise ValueError(
            f"{folder} holds a {RUNS[other]}, and this is a {RUNS[record]}; choose another folder with --out."
        )
    check_folder(folder)
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        _make(folder)
        with hold(folder / ".run"):
            yield folder
    finally:
        with contextlib.suppress(OSError):  # where there is something in it, it stays
            for each in made:
                each.rmdir()


@contextlib.contextmanager
def hold_store(path: Path) -> Iterator[None]:
    """Hold a store of activations, whose folder is made where it is missing.

    Raises
    ------
    OSError
        Its folder cannot be written to, or another process holds it.
    """
    check_folder(path.parent)
    _make(path.parent)
    with hold(path.with_name(f".{path.name}"), name=path):
        yield


def check_folder(folder: Path) -> None:
    """See that files can be written to a folder, or that it can be made; leaves nothing there.

    Raises
    ------
    OSError
        They cannot.
    """
    with _refusing(folder), tempfile.TemporaryFile(dir=_nearest(folder)):
        return


def _make(folder: Path) -> None:
    with _refusing(folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def _refusing(folder: Path) -> Iterator[None]:
    """What the system says against writing to a folder, in one sentence."""
    try:
        yield
    except OSError as error:
        raise OSError(f"cannot write to {folder}: {error.strerror}; choose another folder with --out.") from None


def _nearest(folder: Path) -> Path:
    """The folder, or the first above it that is there."""
    return next(each for each in (folder, *folder.absolute().parents) if os.path.lexists(each))


def check_target(file: Path) -> None:
    """See that a file can be written, before the work that it is to hold.

    Raises
    ------
    OSError
        It cannot, or is a folder.
    """
    if file.is_dir():
        raise OSError(f"{file} is a folder; give the name of a file to write.")
    check_folder(file.parent)
    if file.exists() and not os.access(file, os.W_OK):
        raise OSError(f"cannot write to {file}: it is write-protected; choose another file.")


def check_room(folder: Path, n_bytes: float) -> None:
    """See that the disk of a folder has room for so many bytes.

    Raises
    ------
    OSError
        It has less.
    """
    free = shutil.disk_usage(_nearest(folder)).free
    if free < n_bytes:
        raise OSError(
            f"{n_bytes / 1e9:.2f} GB are to be written to {folder}, and its disk has {free / 1e9:.2f} GB left; free some "
            "space or choose another folder."
        )
