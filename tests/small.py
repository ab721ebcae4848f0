"""A study that takes a second: two personas as arrays, pictures and report stand-ins; and how its files are compared."""

import contextlib
import hashlib
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import utils.study.run
from utils.records import replace_text
from utils.study.results import Study
from utils.study.run import run_study
from utils.study.settings import StudyConfig
from utils.viz.pages import write_figures

OPTIONS = {
    "runs": 2,
    "permutations": 19,
    "flips": 19,
    "power_draws": 0,
    "n_clean": 2,
    "n_anomalous": 2,
    "alphas": 10,
    "jobs": 1,
}


def write_arrays(folder: Path, *, n: int = 24, n_layers: int = 3, n_nodes: int = 6) -> Path:
    """Two personas of noise, enough statements for several batches of a store."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for persona in ("alpha", "beta"):
        for direction in ("positive", "negative"):
            np.save(folder / f"{persona}_{direction}.npy", rng.normal(size=(n_layers, n, n_nodes)).astype(np.float32))
    return folder


def stand_in(patch) -> None:
    """Pictures and report of a study take most of its time: one small figure and one line instead."""

    def draw(study: Study) -> None:
        figure, ax = plt.subplots(figsize=(1, 1))
        ax.plot([study.best_layer])
        write_figures([("one", figure)], study.folder / "figures")

    patch.setattr(utils.study.run, "draw_figures", draw)
    patch.setattr(
        utils.study.run, "write_report", lambda study: replace_text(study.folder / "report.html", "<html></html>")
    )


def run_small(folder: Path, arrays: Path, **options) -> Study:
    """The study of such arrays."""
    return run_study(folder, StudyConfig(activations=str(arrays), **{**OPTIONS, **options}), progress=False)


def digest_folder(folder: Path, *, leave_out: tuple[str, ...] = ("study.json",)) -> dict[str, str]:
    """The content of every file below a folder; a record holds timings and is left out."""
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(_content(file)).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name not in leave_out
    }


def _content(file: Path) -> bytes:
    """What a file holds; of a table that also holds how long things took, the rest."""
    content = file.read_bytes()
    if file.name in ("measured.parquet", "summary.parquet"):
        with contextlib.suppress(ValueError, OSError, KeyError):
            table = pd.read_parquet(file)
            return table[table["measure"] != "seconds"].to_csv().encode()
    return content
