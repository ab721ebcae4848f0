"""Whether a study's folder is whole: what is missing, damaged or of another configuration, and what a rerun does about it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from utils.activations.store import ActivationStore, open_existing, open_store, split_positions
from utils.records import FINISHED, NEXT, RECORD, find_remains, is_intact, is_moving, read_json
from utils.study.results import key_of_statements
from utils.viz.pages import changed_figures, is_page

STORE = "activations.zarr"
AGAIN = "makes it again"


@dataclass(frozen=True)
class Finding:
    """What is wrong with a file of a run, and what running the same command again does about it."""

    path: str
    fault: str
    repair: str = AGAIN

    def __str__(self) -> str:
        return f"{self.path}: {self.fault}; a rerun {self.repair}."


def check_study(folder: Path) -> list[Finding]:
    """What is not as a finished study left it: its store (all of it is read), tables, figures and report."""
    if is_moving(folder):
        return [Finding(NEXT, "a finished study was being put in its place", "puts the rest there")]
    record = read_json(folder / RECORD)
    if FINISHED not in record:
        there = (folder / RECORD).exists()
        fault = "missing" if not there else "damaged" if not record else "the study is not finished"
        return [Finding(RECORD, fault, "goes on from what is there" if record else "makes the tables again")]
    return [
        *_check_store(folder / STORE, record),
        *_check_tables(folder, record),
        *(Finding(f"figures/{name}", "missing or not as it was drawn") for name in changed_figures(folder / "figures")),
        *([] if (folder / "figures").is_dir() else [Finding("figures", "missing")]),
        *([] if is_page(folder / "report.html") else [Finding("report.html", "missing or cut short")]),
        *(
            Finding(file.relative_to(folder).as_posix(), "left by a killed run", "removes it")
            for file in find_remains(folder)
        ),
    ]


def _check_store(path: Path, record: dict) -> Iterator[Finding]:
    try:
        store = open_existing(path)
    except (ValueError, OSError) as error:
        yield Finding(STORE, str(error).rstrip(".").partition("; ")[0])
        return
    if store is None:
        yield Finding(STORE, "missing")
        return
    if not store.labels_intact:
        yield Finding(STORE, "its labels are not as they were written", "writes them again")
        return
    yield from _check_batches(store)
    if not store.finished:
        return
    attrs = {name: value for name, value in record.get("activations", {}).items() if name in store.config}
    if attrs != store.config:
        yield Finding(STORE, "its activations were made with other options than the tables")
    elif "statements" in record:
        opened = next(iter(split_positions(open_store(path)).values()))
        if key_of_statements(opened) != record["statements"]:
            yield Finding(STORE, "its activations are of other statements than the tables")


def _check_batches(store: ActivationStore) -> Iterator[Finding]:
    n, damaged = len(store.done), store.damaged()
    undone = [batch for batch in range(n) if not store.done[batch]]
    if damaged:
        yield Finding(STORE, f"{_list(damaged)} of {n} not as written", "computes them again")
    if undone:
        yield Finding(STORE, f"{_list(undone)} of {n} not written", "computes them")


def _list(batches: list[int]) -> str:
    shown = ", ".join(map(str, batches[:5])) + (" …" if len(batches) > 5 else "")
    return f"batch {shown}" if len(batches) == 1 else f"batches {shown}"


def _check_tables(folder: Path, record: dict) -> Iterator[Finding]:
    stages = record.get("stages", {})
    for name in record.get("tables", [name for name, entry in stages.items() if "digest" in entry]):
        path, entry = folder / f"{name}.parquet", stages.get(name, {})
        if not path.exists():
            yield Finding(path.relative_to(folder).as_posix(), "missing")
        elif not is_intact(path, entry):
            yield Finding(path.relative_to(folder).as_posix(), "not as it was written")
