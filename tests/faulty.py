"""Runs that something befalls: they are killed, the disk is full or read-only, files are damaged; and what a rerun makes of it.

Faults strike at the n-th change of the disk below a folder, which an audit hook counts: a run is hit where it matters, and the
same seed hits it at the same place. Every run is a process of its own, forked from one in which everything is imported.
"""

import contextlib
import errno
import itertools
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import tqdm
from patched import LONGER, make_questions, make_wide
from small import digest_folder, stand_in
from tiny import make_lm
from wired import save_wired_model, write_wired_statements

from utils.activations.extraction import extract
from utils.causal.settings import CausalConfig, Check
from utils.experiments.causal import run_causal
from utils.experiments.check import check_run
from utils.experiments.patching import run_patching
from utils.experiments.subnetworks import SubnetworksConfig, run_subnetworks
from utils.experiments.vectors import run_vectors
from utils.models.load import load_model
from utils.statements.load import load_statements
from utils.study.results import open_study
from utils.study.run import run_study
from utils.study.settings import StudyConfig
from utils.vectors.settings import VectorsConfig

# Records with the time that something took.
TIMED = ("study.json", "stages.json", "causal.json", "patching.json", "subnetworks.json", "vectors.json")
QUIET = {"progress": False}
_PATIENCE = 300


@dataclass(frozen=True)
class Fault:
    """At the ``at``-th change of the disk a ``kill`` (``delay`` seconds later), or it is ``full`` or ``readonly``."""

    kind: str = "none"
    at: int = 0
    delay: float = 0.0


@dataclass(frozen=True)
class Ended:
    """How a run ended: 0 well, 2 with an error of one sentence (``said``), 1 with any other, -9 killed; and its changes."""

    status: int
    said: str
    n_changes: int


@dataclass(frozen=True)
class Outcome:
    """Whether a rerun finished after a fault, whether its files are then those of an undisturbed run, and what was seen."""

    fault: str
    job: str
    survived: bool
    identical: bool
    note: str = ""


def prepare(site: Path) -> None:
    """The model, the statements and the study that the jobs take."""
    save_wired_model(site / "model")
    write_wired_statements(site / "statements.csv")
    JOBS["study"](site, site / "study")


def _study(site: Path, out: Path) -> None:
    options = {
        "runs": 3,
        "permutations": 19,
        "n_clean": 10,
        "n_anomalous": 10,
        "flips": 19,
        "power_draws": 0,
        "jobs": 1,
    }
    config = StudyConfig(
        model=str(site / "model"), device="cpu", statements=str(site / "statements.csv"), batch_size=40, **options
    )
    with pytest.MonkeyPatch.context() as patch:
        stand_in(patch)
        run_study(out, config, **QUIET)


def _extract(site: Path, out: Path) -> None:
    frame = load_statements(str(site / "statements.csv"))
    extract(load_model(str(site / "model"), device="cpu"), frame, batch_size=20, store=out / "a.zarr", **QUIET)


def _causal(site: Path, out: Path) -> None:
    config = CausalConfig(
        checks=(Check("steer", "likelihood", "neutral"),),
        n_pairs=6,
        n_random=30,
        n_matched=0,
        size=5,
        strengths=(),
        sizes=(),
        n_cost=2,
        permutations=19,
    )
    run_causal(load_model(str(site / "model"), device="cpu"), open_study(site / "study"), config, out=out, **QUIET)


def _patch(_site: Path, out: Path) -> None:
    run_patching(make_wide(), *LONGER, make_questions(3), out, n_questions=2, layers=[1], **QUIET)


def _mask(_site: Path, out: Path) -> None:
    config = SubnetworksConfig("openness", sparsities=(0.3,), n_pairs=80, n_shuffles=1, n_questions=4)
    frame = load_statements(personas=["openness"])
    run_subnetworks(make_lm(max_position_embeddings=1024), frame, config, out, **QUIET)


def _vectors(site: Path, out: Path) -> None:
    sizes = {"n_select": 4, "n_pairs": 6, "n_random": 5, "n_flipped": 5, "n_texts": 8, "n_flips": 9}
    config = VectorsConfig(layers=[1, 2], strengths=[0.2], doses=[0.2], bound=100.0, **sizes)
    run_vectors(load_model(str(site / "model"), device="cpu"), open_study(site / "study"), config, out=out, **QUIET)


JOBS: dict[str, Callable[[Path, Path], None]] = {
    "study": _study,
    "extract": _extract,
    "causal": _causal,
    "patch": _patch,
    "mask": _mask,
    "vectors": _vectors,
}


def attempt(job: str, site: Path, out: Path, fault: Fault | None = None) -> Ended:
    """One run in a process of its own."""
    return wait(start(job, site, out, fault or Fault()))


def start(job: str, site: Path, out: Path, fault: Fault):
    """Start a run; what :func:`wait` takes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["faulty"])
    os.environ["PYTHONPATH"] = os.pathsep.join([*map(str, _places()), os.environ.get("PYTHONPATH", "")])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(job, site, out, fault, theirs))
    process.start()
    theirs.close()
    return process, ours


def wait(started) -> Ended:
    """How a started run ended."""
    process, pipe = started
    said, n_changes = "", 0
    with contextlib.suppress(EOFError):
        said, n_changes = pipe.recv()
    process.join(_PATIENCE)
    return Ended(process.exitcode, said, n_changes)


def _places() -> list[Path]:
    tests = Path(__file__).resolve().parent
    return [tests, tests.parent]


def _run(job: str, site: Path, out: Path, fault: Fault, pipe) -> None:
    torch.set_num_threads(1)
    tqdm.tqdm.set_lock(threading.RLock())  # its own lock outlives a process that is killed
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    changes = _watch(out, fault)
    status, said = 0, ""
    try:
        JOBS[job](site, out)
    except (ValueError, OSError) as error:
        status, said = 2, str(error)
    except BaseException as error:
        status, said = 1, f"{type(error).__name__}: {error}"
    pipe.send((said, next(changes) - 1))
    pipe.close()
    os._exit(status)


def _watch(folder: Path, fault: Fault) -> Iterator[int]:
    """Count the changes of the disk below a folder, and let the fault happen; the count goes on at each ``next``."""
    count, place = itertools.count(1), str(folder)
    struck = threading.Event()

    def hook(event: str, args: tuple) -> None:
        if not _changes(event, args, place):
            return
        n = next(count)
        if fault.kind == "none" or n < fault.at:
            return
        if fault.kind == "kill":
            if not struck.is_set():
                struck.set()
                threading.Thread(target=_kill, args=(fault.delay,), daemon=True).start() if fault.delay else _kill(0)
        elif fault.kind == "readonly":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(args[0]))
        elif event in ("open", "os.mkdir"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(args[0]))

    sys.addaudithook(hook)
    return count


def _changes(event: str, args: tuple, place: str) -> bool:
    if event == "open":
        path, mode, flags = args
        writes = any(letter in (mode or "") for letter in "wax+") or bool((flags or 0) & (os.O_WRONLY | os.O_RDWR))
        return writes and str(path).startswith(place)
    return event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link") and str(args[0]).startswith(place)


def _kill(delay: float) -> None:
    time.sleep(delay)
    os.kill(os.getpid(), signal.SIGKILL)


class Undisturbed:
    """The files of every job as an undisturbed run leaves them, and how many changes of the disk it took."""

    def __init__(self, site: Path):
        self.site = site
        self._known: dict[str, tuple[dict[str, str], int]] = {}

    def of(self, job: str) -> tuple[dict[str, str], int]:
        if job not in self._known:
            out = self.site / "undisturbed" / job
            ended = attempt(job, self.site, out)
            assert ended.status == 0, ended
            self._known[job] = digest_folder(out, leave_out=TIMED), ended.n_changes
        return self._known[job]

    def copy(self, job: str, out: Path) -> Path:
        self.of(job)
        return Path(shutil.copytree(self.site / "undisturbed" / job, out))

    def judge(self, fault: str, job: str, out: Path, note: str = "", *, survived: bool = True) -> Outcome:
        """Run again without a fault, and compare."""
        ended = attempt(job, self.site, out)
        whole = ended.status == 0 and (job == "extract" or not check_run(out).findings)
        same = digest_folder(out, leave_out=TIMED) == self.of(job)[0]
        shutil.rmtree(out, ignore_errors=True)
        return Outcome(fault, job, survived and whole, same, note or ended.said)


def kill(plain: Undisturbed, job: str, out: Path, rng: np.random.Generator) -> Outcome:
    """Killed once or twice, at the changes that are drawn or a moment after."""
    _, n = plain.of(job)
    said = []
    for _ in range(rng.integers(1, 3)):
        fault = Fault("kill", int(rng.integers(1, n + 1)), float(rng.choice([0.0, rng.uniform(0, 0.05)])))
        said.append(f"{fault.at}/{n}+{fault.delay:.3f}s: {attempt(job, plain.site, out, fault).status}")
    return plain.judge("kill", job, out, ", ".join(said))


def fill(plain: Undisturbed, job: str, out: Path, rng: np.random.Generator) -> Outcome:
    """The disk is full from some change on, and then has room again."""
    _, n = plain.of(job)
    ended = attempt(job, plain.site, out, Fault("full", int(rng.integers(1, n + 1))))
    return plain.judge("full disk", job, out, ended.said, survived=ended.status in (0, 2))


def lock_up(plain: Undisturbed, job: str, out: Path, _rng: np.random.Generator) -> Outcome:
    """A folder that cannot be written to: refused in one sentence, and nothing is left there."""
    out.mkdir(parents=True)
    ended = attempt(job, plain.site, out, Fault("readonly", 1))
    clean = ended.status == 2 and "cannot write to" in ended.said and not list(out.iterdir())
    return plain.judge("read-only folder", job, out, ended.said, survived=clean)


def twice(plain: Undisturbed, job: str, out: Path, rng: np.random.Generator) -> Outcome:
    """Two processes on one folder: one finishes, the other too (after it) or with a sentence."""
    first = start(job, plain.site, out, Fault())
    time.sleep(float(rng.uniform(0, 0.5)))
    ended = sorted((wait(start(job, plain.site, out, Fault())), wait(first)), key=lambda each: each.status)
    fine = ended[0].status == 0 and (ended[1].status == 0 or "is in use by process" in ended[1].said)
    return plain.judge("two processes", job, out, ended[1].said, survived=fine)


def damage(plain: Undisturbed, job: str, out: Path, rng: np.random.Generator) -> Outcome:
    """A file of a finished run is cut, emptied, removed or altered: noticed, and made again."""
    plain.copy(job, out)
    # The list of figures and the record of stages only say what was made; the rest is results.
    file = Path(rng.choice(sorted(file for file in out.rglob("*") if file.is_file() and file.name not in _LISTS)))
    kind = str(rng.choice(list(_DAMAGES)))
    _DAMAGES[kind](file)
    seen = job == "extract" or bool(check_run(out).findings)
    return plain.judge("damaged file", job, out, f"{kind}: {file.relative_to(out)}", survived=seen)


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    if content:
        content[len(content) // 2] ^= 0xFF
    file.write_bytes(bytes(content))


_LISTS = ("figures.json", *TIMED)
_DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "emptied": lambda file: file.write_bytes(b""),
    "removed": Path.unlink,
    "altered": _flip,
}
FAULTS = {"kill": kill, "full disk": fill, "read-only folder": lock_up, "two processes": twice, "damaged file": damage}


def strike(plain: Undisturbed, fault: str, job: str, n: int, *, seed: int = 0) -> Iterator[Outcome]:
    """The outcomes of ``n`` trials of a fault."""
    for trial in range(n):
        rng = np.random.default_rng([seed, trial, list(FAULTS).index(fault), list(JOBS).index(job)])
        yield FAULTS[fault](plain, job, plain.site / "out" / job, rng)
