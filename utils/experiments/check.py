"""Whether the folder of a run is whole, whatever the run: a study with all that was made of it, or an experiment's own."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from utils.experiments.stages import RECORD as STAGES
from utils.folders import RUNS
from utils.records import RECORD, REMAINS, is_intact, is_moving, read_json
from utils.study.check import STORE, Finding, check_study
from utils.study.results import key_of_study, open_study
from utils.viz.pages import changed_figures, read_section


@dataclass(frozen=True)
class Checkup:
    """What a folder holds, run by run, and what is not as the runs left it."""

    folder: Path
    runs: tuple[str, ...]
    findings: tuple[Finding, ...]


def check_run(folder: str | Path) -> Checkup:
    """Check a run's folder: everything in it is read and compared with what was written; nothing is changed.

    Parameters
    ----------
    folder
        Of a study, with the causal checks and vectors in it, or of a causal check, patching, masks or vectors alone.

    Raises
    ------
    FileNotFoundError
        There is no such folder, or no run in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}.")
    if (folder / RECORD).exists() or (folder / STORE).exists() or is_moving(folder):
        findings, runs = check_study(folder), ["study"]
        for each in sorted(file.parent for file in folder.glob(f"*/*/{STAGES}")):
            place = each.relative_to(folder).as_posix()
            runs.append(f"{_kind_of(each)} in {place}")
            own = [*check_experiment(each), *([] if findings else _check_origin(each, folder))]
            findings += [replace(finding, path=f"{place}/{finding.path}") for finding in own]
        return Checkup(folder, tuple(runs), tuple(findings))
    if (folder / STAGES).exists() or _record_of(folder) is not None:
        return Checkup(folder, (_kind_of(folder),), tuple(check_experiment(folder)))
    raise FileNotFoundError(f"{folder} holds no run; give the folder that a personascope command wrote to.")


def check_experiment(folder: Path) -> list[Finding]:
    """What is not as a finished experiment left it."""
    name = _record_of(folder)
    if name is None:
        return [Finding(STAGES, "the run is not finished", "goes on from what is there")]
    record = read_json(folder / name)
    if not record:
        return [Finding(name, "damaged")]
    drawn = [folder / "figures", folder]
    return [
        *_check_files(folder, record),
        *(
            Finding((place / each).relative_to(folder).as_posix(), "missing or not as it was drawn")
            for place in drawn
            for each in changed_figures(place)
        ),
        *_check_section(folder),
        *(
            Finding(file.relative_to(folder).as_posix(), "left by a killed run", "removes it")
            for file in sorted(folder.rglob(REMAINS))
        ),
    ]


def _check_files(folder: Path, record: dict) -> Iterator[Finding]:
    # Records of earlier versions know no files; their tables can at least be told to be whole.
    files = record.get("files", {file.name: None for file in sorted(folder.glob("*.parquet"))})
    for name, digest in files.items():
        if not (folder / name).exists():
            yield Finding(name, "missing")
        elif not is_intact(folder / name, {} if digest is None else {"digest": digest}):
            yield Finding(name, "not as it was written")


def _check_section(folder: Path) -> Iterator[Finding]:
    path = folder / "section.json"
    if not path.exists():
        return
    try:
        read_section(path)
    except (ValueError, KeyError, TypeError):
        yield Finding(path.name, "damaged")


def _check_origin(folder: Path, study: Path) -> Iterator[Finding]:
    """Whether a run that lies in a study's folder is of the study as it is now."""
    name = _record_of(folder)
    record = read_json(folder / name) if name else {}
    if "study" in record and record["study"] != key_of_study(open_study(study)):
        yield Finding(str(name), "of an earlier state of the study")


def _record_of(folder: Path) -> str | None:
    return next((name for name in RUNS if name != RECORD and (folder / name).is_file()), None)


def _kind_of(folder: Path) -> str:
    return RUNS.get(_record_of(folder) or "", "unfinished run")
