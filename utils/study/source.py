"""Where a study's activations come from: statements through a model, or arrays on disk."""

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from deepscan import detect
from utils.activations.arrays import store_arrays
from utils.models.checkpoints import file_key
from utils.records import key_of
from utils.statements.load import load_statements
from utils.study.settings import StudyConfig, scan_options

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Labelled statements, and a function that writes their activations to a store and opens it.

    Attributes
    ----------
    frame
        Statements as :func:`utils.statements.load_statements` returns them.
    compute
        ``compute(path, progress)`` writes the activations to a store at ``path``.
    key
        Changes with anything that the activations depend on; None where that cannot be told without computing.
    has_texts
        Whether the frame holds what the statements say.
    """

    frame: pd.DataFrame
    compute: Callable[[Path, bool], object]
    key: str | None
    has_texts: bool


def open_source(config: StudyConfig) -> Source:
    """Read the statements or arrays of a study; the model is loaded only when activations are asked for."""
    if config.activations is not None:
        frame, write = store_arrays(Path(config.activations), personas=config.personas, layers=config.layers)
        return Source(frame, write, key=None, has_texts=False)
    frame = load_statements(
        config.statements,
        config.personas,
        topics=config.topics,
        min_confidence=config.min_confidence,
        per_side=config.per_side,
        rng=config.seed,
    )
    files = file_key(config.model)
    names = ("model", "device", "dtype", "layers", "position", "role")
    key = key_of(files, frame, [getattr(config, name) for name in names]) if files else None
    return Source(frame, partial(_extract, config, frame), key=key, has_texts=True)


def _extract(config: StudyConfig, frame: pd.DataFrame, store: Path, progress: bool) -> None:
    # Imported here: torch and transformers take seconds that a study with nothing to extract need not spend.
    from utils.activations.extraction import extract, plan_work
    from utils.models.load import load_model

    lm = load_model(config.model, device=config.device, dtype=config.dtype)
    work = plan_work(lm, frame, layers=config.layers, role=config.role, store=store)
    if work.n_statements:
        seconds = work.seconds + _scan_seconds(lm.d_model, config) * frame["persona"].nunique() * (
            1 + len(config.scan_layers)
        )
        logger.info(
            "%s on %s: %d of %d statements to run, %d tokens; about %s for activations and scans, %.2f GB on disk",
            lm.name, lm.device, work.n_statements, len(frame), work.n_tokens, _duration(seconds), work.bytes / 1e9,
        )  # fmt: skip
    extract(
        lm,
        frame,
        layers=config.layers,
        position=config.position if isinstance(config.position, str) else tuple(config.position),
        role=config.role,
        batch_size=config.batch_size,
        store=store,
        progress=progress,
    )


def _scan_seconds(n_nodes: int, config: StudyConfig) -> float:
    """How long one persona's scan will take, from a small one on noise of the model's width."""
    noise = np.random.default_rng(0).standard_normal((2, 90, n_nodes), dtype=np.float32)
    options = {**scan_options(config), "n_runs": 10, "n_permutations": 3}
    # Clean and anomalous samples that the noise is large enough for; the time hardly depends on their sizes.
    options |= {"n_clean": min(config.n_clean or 15, 30), "n_anomalous": min(config.n_anomalous or 15, 30)}
    jobs = config.jobs or os.cpu_count() or 1
    detect(noise[0], noise[1], **options, n_jobs=jobs)
    started = time.perf_counter()
    detect(noise[0], noise[1], **options, n_jobs=jobs)
    return (time.perf_counter() - started) / 40 * config.runs * (1 + config.permutations)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
