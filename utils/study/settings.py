"""The options of a study."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from utils.nodes.scans import MIN_BACKGROUND
from utils.options import ContrastName, Position, Role, ScanName, ScoreName, Tail


@dataclass(frozen=True)
class StudyConfig:
    """Everything that a study depends on; written to ``study.json``.

    Attributes
    ----------
    model, device, dtype
        As of :func:`utils.models.load_model`; not used when the study starts from arrays.
    statements, personas, topics, min_confidence, per_side
        As of :func:`utils.statements.load_statements`.
    activations
        A folder of arrays to start from instead of a model, see :mod:`utils.activations.arrays`.
    layers, position, role, batch_size
        As of :func:`utils.activations.extract`.
    contrast
        As of :func:`utils.statements.find_contrasts`.
    scan, score, tail, runs, permutations, n_clean, n_anomalous, alpha_max, alphas, restarts
        As of :func:`deepscan.detect`.
    scan_layers
        Layers to scan besides the best one.
    probe_flips
        As of :func:`utils.layers.divergence`; 0 by default, as they take several times as long as all the rest of the layers.
    stability
        Flips for the stability of the node sets over halves of the pairs, see :func:`utils.nodes.node_stability`; 0
        by default, which leaves it out: 99 take some ten seconds a persona.
    threshold
        Share of the runs that must have selected a node for it to be in the node set.
    seed
        Of everything that is drawn.
    jobs
        Threads of the scan, 0 for all cores; results do not depend on it.
    """

    model: str | None = None
    device: str | None = None
    dtype: str | None = None
    statements: str | None = None
    personas: Sequence[str] | None = None
    topics: Sequence[str] | None = None
    min_confidence: float | None = None
    per_side: int | None = None
    activations: str | None = None
    layers: Sequence[int] | None = None
    position: Position = "last"
    role: Role = "system"
    batch_size: int | Literal["auto"] = "auto"
    contrast: ContrastName = "direction"
    scan: ScanName = "group"
    scan_layers: Sequence[int] = ()
    score: ScoreName = "bj"
    tail: Tail = "two-sided"
    # 299 permutations let even one of fourteen personas pass 0.05 after correction: 14 / 300 < 0.05.
    runs: int = 40
    permutations: int = 299
    n_clean: int = 15
    n_anomalous: int = 15
    alpha_max: float = 0.5
    alphas: int = 50
    restarts: int = 2
    probe_flips: int = 0
    stability: int = 0
    threshold: float = 0.5
    seed: int = 0
    jobs: int = 0


def check_config(config: StudyConfig) -> None:
    """Refuse, before anything is read or written, options that cannot be.

    Raises
    ------
    ValueError
        What was given, and what was expected.
    """
    for name, words in (
        ("position", Position),
        ("role", Role),
        ("contrast", ContrastName),
        ("scan", ScanName),
        ("score", ScoreName),
        ("tail", Tail),
    ):
        if (given := getattr(config, name)) not in get_args(words):
            raise ValueError(f"unknown {name} {given!r}; expected {', '.join(get_args(words))}.")
    for name, least in (
        ("runs", 1), ("permutations", 1), ("n_clean", 1), ("n_anomalous", 1), ("alphas", 1), ("restarts", 1),
        ("probe_flips", 0), ("stability", 0), ("seed", 0), ("jobs", 0),
    ):  # fmt: skip
        if getattr(config, name) < least:
            raise ValueError(f"{name} must be at least {least}, not {getattr(config, name)}.")
    if 0 < config.probe_flips < 20:
        raise ValueError(
            f"probe_flips must be 0, or at least 20 for a 5th and 95th percentile, not {config.probe_flips}."
        )
    if not 0 < config.threshold <= 1:
        raise ValueError(f"threshold must be in (0, 1], not {config.threshold}: it is a share of the runs.")
    if not 0 < config.alpha_max < 1:
        raise ValueError(f"alpha_max must be in (0, 1), not {config.alpha_max}.")
    if config.batch_size != "auto" and config.batch_size < 1:
        raise ValueError(f"batch_size must be at least 1 or 'auto', not {config.batch_size}.")


def needed_h0(config: StudyConfig, *, paired: bool) -> int:
    """How many H0 statements, or pairs, a run of the scan needs: for what it scans and for a background."""
    return config.n_clean + (config.n_anomalous if paired else 0) + MIN_BACKGROUND


def scan_options(config: StudyConfig) -> dict[str, Any]:
    """The keyword arguments of :func:`deepscan.detect` on which its results depend."""
    return {
        "n_clean": config.n_clean,
        "n_anomalous": config.n_anomalous,
        "n_runs": config.runs,
        "n_permutations": config.permutations,
        "tail": config.tail,
        "score": config.score,
        "alpha_max": config.alpha_max,
        "alphas": config.alphas,
        "restarts": config.restarts,
        "scan": config.scan,
        "rng": config.seed,
    }
