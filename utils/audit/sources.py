"""Where runs come from: text files of the original DeepScan, Parquet files of this one, and study folders."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from deepscan import ScanRuns, read_runs
from utils.audit.originals import join_clean, set_nodes, stated_anomalous, stem_of
from utils.records import FINISHED, RECORD, read_json
from utils.study.results import Study, open_study

_PARQUET = b"PAR1"


@dataclass(frozen=True, eq=False)
class Source:
    """The runs of one persona.

    Attributes
    ----------
    name
        As tables and figures show it.
    runs
        Mixed runs, null runs, or both.
    form
        What they were read from: ``text``, ``parquet`` or ``study``.
    null
        What the null runs are: ``clean`` (no anomalous record among those scanned), ``flipped`` (sides flipped or labels
        permuted), or None where there are none.
    n_clean, n_anomalous
        Records of either kind in the sample of a mixed run; None where not known.
    first_anomalous
        Index from which a record is anomalous; None where not known.
    space
        Model, layer and place in it whose nodes were scanned; None where not known. Nodes of different places have
        nothing to do with each other.
    """

    name: str
    runs: ScanRuns
    form: Literal["text", "parquet", "study"]
    null: Literal["clean", "flipped"] | None
    n_clean: int | None = None
    n_anomalous: int | None = None
    first_anomalous: int | None = None
    space: tuple[str, ...] | None = None

    @property
    def n_nodes(self) -> int:
        """Nodes that were scanned."""
        return self.runs.n_nodes

    def rows(self, kind: Literal["mixed", "null"]) -> np.ndarray:
        """Where the runs of a kind stand in ``runs``."""
        return np.flatnonzero((self.runs.table["kind"] == kind).to_numpy())

    def __repr__(self) -> str:
        return f"Source({self.name!r}: {self.runs!r})"


def read_sources(
    paths: Sequence[str | Path],
    *,
    n_nodes: int | None = None,
    clean: Mapping[str, str | Path] | None = None,
    sizes: tuple[int, int] | None = None,
) -> tuple[list[Source], list[str]]:
    """Read run files and study folders.

    Parameters
    ----------
    paths
        Text files of the original DeepScan, Parquet files of :meth:`deepscan.ScanRuns.save`, told apart by content,
        and folders of finished studies, each of whose personas is a source.
    n_nodes
        Nodes of the model, which text files do not say. By default the one number that the other files say, if it is
        large enough, else one more than the largest index in any of the text files.
    clean
        By a text file of mixed runs, as in ``paths``, the file of its clean runs. Without it a file of clean runs
        belongs to the file of mixed runs that is named alike but for the original's ``adv_output_`` and
        ``clean_output_``.
    sizes
        Clean and anomalous records in the sample of a mixed run of the text files, in this order. By default they
        follow from the precision and recall that the files state, taking both to be as many.

    Returns
    -------
    sources : list of Source
    notes : list of str
        What was assumed, one sentence each.

    Raises
    ------
    ValueError
        No file, one that is named twice or holds no runs, records outside ``sizes``, or another ``n_nodes`` than a
        file says.
    OSError
        A file or a study is not there, or cannot be read.
    """
    given = [Path(path) for path in paths]
    named = {Path(mixed): Path(null) for mixed, null in (clean or {}).items()}
    _check_paths(given, named)
    extra = [path for path in named.values() if path not in given]
    found: list[tuple[Path, Source]] = []
    texts: dict[Path, ScanRuns] = {}
    for path in [*given, *extra]:
        if path.is_dir():
            found += [(path, source) for source in _read_study(path)]
        elif _is_parquet(path):
            found.append((path, _read_parquet(path)))
        else:
            texts[path] = read_runs(path, n_nodes)
    if wrong := next((path for path in named if path not in texts), None):
        raise ValueError(f"{wrong} is no text file of mixed runs; --clean goes with those only.")
    _check_nodes([source for _, source in found], n_nodes)
    texts, notes = set_nodes(texts, [source.n_nodes for _, source in found], n_nodes)
    joined, more = join_clean(texts, named)
    notes += more
    for path, runs in joined.items():
        source, more = _describe_text(path, runs, sizes)
        found.append((path, source))
        notes += more
    # In the order in which they were given.
    found.sort(key=lambda entry: given.index(entry[0]) if entry[0] in given else len(given))
    if len(found) > 1 and any(source.space is None for _, source in found):
        notes.append(
            "Files of runs do not say which model and layer they are of: they were compared as if of the "
            "same. Nodes of different ones have nothing to do with each other."
        )
    return _name_apart(found), notes


def _check_paths(given: Sequence[Path], named: Mapping[Path, Path]) -> None:
    if not given:
        raise ValueError("no file to audit; give run files or study folders.")
    for path in [*given, *named.values()]:
        if not path.exists():
            raise FileNotFoundError(f"there is no file or folder {path}.")
    resolved = [path.resolve() for path in given]
    for i, path in enumerate(resolved):
        if path in resolved[:i]:
            raise ValueError(f"{given[i]} is named twice; name every file once.")
    if unknown := [path for path in named if path not in given]:
        raise ValueError(f"--clean names {unknown[0]}, which is not among the files; give it as a file, too.")
    if repeated := [path for path, count in Counter(named.values()).items() if count > 1]:
        raise ValueError(f"--clean gives {repeated[0]} to two files; clean runs belong to one.")


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(_PARQUET)) == _PARQUET


def _read_study(folder: Path) -> list[Source]:
    if FINISHED not in read_json(folder / RECORD):
        raise FileNotFoundError(f"{folder} holds no finished study; give run files by name, or the folder of a study.")
    study = open_study(folder)
    space = _find_space(study)
    sources = [_describe_parquet(persona, runs) for persona, runs in study.runs.items()]
    return [replace(source, form="study", space=space) for source in sources]


def _find_space(study: Study) -> tuple[str, ...]:
    made = study.record["activations"]
    # Of activations that somebody brought nothing else is known than where they lie.
    model = made.get("model") or str(study.folder.resolve())
    place = (made.get("component"), study.position, study.best_layer)
    return (str(model), *map(str, place))


def _read_parquet(path: Path) -> Source:
    return _describe_parquet(path.stem, ScanRuns.load(path))


def _describe_parquet(name: str, runs: ScanRuns) -> Source:
    config = runs.config
    permuted = bool((runs.table["permutation"] >= 0).any())
    null = "flipped" if permuted else "clean" if (runs.table["kind"] == "null").any() else None
    # Read from a text file and saved again: places within a sample, which nothing describes.
    sizes = config.get("sizes")
    return Source(
        name,
        runs,
        "parquet",
        null,
        n_clean=config.get("n_clean"),
        n_anomalous=config.get("n_anomalous"),
        first_anomalous=None if sizes is None else int(sizes[0]),
    )


def _check_nodes(sources: Sequence[Source], n_nodes: int | None) -> None:
    other = next((source for source in sources if n_nodes is not None and source.n_nodes != n_nodes), None)
    if other is not None:
        raise ValueError(
            f"--n-nodes is {n_nodes}, and {other.name} says that it scanned {other.n_nodes}; leave --n-nodes "
            "out, or that file."
        )


def _describe_text(path: Path, runs: ScanRuns, sizes: tuple[int, int] | None) -> tuple[Source, list[str]]:
    kinds = set(runs.table["kind"])
    source = Source(stem_of(path), runs, "text", "clean" if "null" in kinds else None)
    if "mixed" not in kinds:
        return source, []
    if sizes is not None:
        n_clean, n_anomalous = sizes
        last = max((int(held[-1]) for held in runs.records if held.size), default=-1)
        if last >= n_clean + n_anomalous:
            raise ValueError(
                f"{path.name} holds record {last}, and --sizes {n_clean},{n_anomalous} are "
                f"{n_clean + n_anomalous} records; give the clean and the anomalous records of a run."
            )
        return replace(source, n_clean=n_clean, n_anomalous=n_anomalous, first_anomalous=n_clean), []
    n = stated_anomalous(runs)
    if n is None:
        return source, [
            f"{source.name}: the stated precision and recall fit no single number of anomalous records, so that neither was "
            "computed again; --sizes CLEAN,ANOMALOUS gives the numbers."
        ]
    note = (
        f"{source.name}: its stated precision and recall imply {n} anomalous records a run; as many clean "
        "ones, which come first, were assumed."
    )
    return replace(source, n_clean=n, n_anomalous=n, first_anomalous=n), [note]


def _name_apart(found: Sequence[tuple[Path, Source]]) -> list[Source]:
    """Sources with names of their own: with the file's or folder's name, or its path, where one stands for several."""
    for tell in (lambda path: "", lambda path: path.name, str):
        ends = [f" ({end})" if (end := tell(path)) else "" for path, _ in found]
        names = [source.name + end for (_, source), end in zip(found, ends, strict=True)]
        if len(set(names)) == len(names):
            break
    return [replace(source, name=name) for (_, source), name in zip(found, names, strict=True)]
