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


@contextlib.contextmanager
def hold(place: Path) -> Iterator[None]:
    """Hold ``<place>.lock``, so that no other process, nor another call of this one, writes to the same place.

    The lock is the operating system's: it ends with the process, however that ends. Who holds it stands beside it, in
    ``<place>.holder``.

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
            f"{place.parent} is in use by {_read_holder(holder)}; wait until that has ended, or give another folder."
        ) from None
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
def hold_folder(folder: Path, *, n_bytes: float = 0) -> Iterator[Path]:
    """Make a folder, see that it can be written to and has room, and hold it; what is refused leaves no empty folder.

    Raises
    ------
    OSError
        It cannot be made or written to, the disk has less than ``n_bytes`` left, or another process holds it.
    """
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        check_folder(folder)
        check_room(folder, n_bytes)
        with hold(folder / ".run"):
            yield folder
    finally:
        with contextlib.suppress(OSError):  # where there is something in it, it stays
            for each in made:
                each.rmdir()


def check_folder(folder: Path) -> None:
    """Make a folder and see that files can be written there.

    Raises
    ------
    OSError
        They cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:
        raise OSError(f"cannot write to {folder}: {error.strerror}; choose another folder with --out.") from None


def check_target(file: Path) -> None:
    """See that a file can be written, before the work that it is to hold; makes its folder.

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
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise OSError(
            f"{n_bytes / 1e9:.2f} GB are to be written to {folder}, and its disk has {free / 1e9:.2f} GB left; free some "
            "space or choose another folder."
        )
