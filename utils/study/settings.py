"""The options of a study."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from utils.nodes.scans import MIN_BACKGROUND
from utils.options import Center, ContrastName, Position, ProtocolName, Role, ScanName, ScoreName, Tail
from utils.statements.contrasts import Contrast


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
        As of :func:`utils.activations.extract`. All positions are localized; scans, nodes and figures are of the first.
    contrast
        As of :func:`utils.statements.find_contrasts`.
    scan, score, tail, center, runs, permutations, n_clean, n_anomalous, alpha_max, alphas, restarts
        As of :func:`deepscan.detect`; ``center="none"`` scans raw activations. ``n_clean`` and ``n_anomalous`` are by default
        15, or fewer where there are fewer statements.
    flips
        Relabellings of all tests but the scan's.
    protocol
        ``paper`` also runs the scan as Cintas et al. 2025 did, see :mod:`utils.nodes.paper`.
    power_draws
        Draws at each number of pairs for the power of the tests, see :mod:`utils.study.power`; 0 leaves it out.
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
    position: Position | Sequence[Position] = ("last", "mean")
    role: Role = "system"
    batch_size: int | Literal["auto"] = "auto"
    contrast: ContrastName = "direction"
    scan: ScanName = "group"
    scan_layers: Sequence[int] = ()
    score: ScoreName = "bj"
    tail: Tail = "auto"
    # 299 permutations let even one of fourteen personas pass 0.05 after correction: 14 / 300 < 0.05.
    runs: int = 40
    permutations: int = 299
    n_clean: int | None = None
    n_anomalous: int | None = None
    center: Center = "auto"
    flips: int = 999
    protocol: ProtocolName = "pairs"
    power_draws: int = 5
    alpha_max: float = 0.5
    alphas: int = 50
    restarts: int = 2
    probe_flips: int = 0
    stability: int = 0
    threshold: float = 0.5
    seed: int = 0
    jobs: int = 0

    @property
    def n_jobs(self) -> int:
        """Threads."""
        return self.jobs or os.cpu_count() or 1


# Records of a kind that a run scans where there are enough statements.
_SCANNED = 15


def fit_samples(config: StudyConfig, contrasts: Sequence[Contrast]) -> StudyConfig:
    """The options with the numbers of clean and anomalous records filled in: 15, or a quarter of the smallest side."""
    fitting = min(min(len(contrast.h0), len(contrast.h1)) for contrast in contrasts) // 4
    fitted = min(_SCANNED, max(2, fitting))
    return replace(
        config,
        n_clean=fitted if config.n_clean is None else config.n_clean,
        n_anomalous=fitted if config.n_anomalous is None else config.n_anomalous,
    )


def check_config(config: StudyConfig) -> None:
    """Refuse, before anything is read or written, options that cannot be.

    Raises
    ------
    ValueError
        What was given, and what was expected.
    """
    positions = positions_of(config)
    if not positions or len(set(positions)) < len(positions) or set(positions) - set(get_args(Position)):
        raise ValueError(
            f"unknown position {config.position!r}; expected one or more of {', '.join(get_args(Position))}."
        )
    for name, words in (
        ("role", Role),
        ("contrast", ContrastName),
        ("scan", ScanName),
        ("score", ScoreName),
        ("tail", Tail),
        ("center", Center),
        ("protocol", ProtocolName),
    ):
        if (given := getattr(config, name)) not in get_args(words):
            raise ValueError(f"unknown {name} {given!r}; expected {', '.join(get_args(words))}.")
    for name, least in (
        ("runs", 1), ("permutations", 1), ("n_clean", 1), ("n_anomalous", 1), ("alphas", 1), ("restarts", 1),
        ("probe_flips", 0), ("stability", 0), ("power_draws", 0), ("flips", 19), ("seed", 0), ("jobs", 0),
    ):  # fmt: skip
        given = getattr(config, name)
        if given is not None and given < least:
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
    n_clean, n_anomalous = config.n_clean or _SCANNED, config.n_anomalous or _SCANNED
    # Samples that were fitted to few statements leave a coarse background, which the report says; others must not.
    background = min(MIN_BACKGROUND, 2 * n_clean)
    return n_clean + (n_anomalous if paired else 0) + background


def positions_of(config: StudyConfig) -> list[Position]:
    """The token positions, that of the scans first."""
    return [config.position] if isinstance(config.position, str) else list(config.position)


def scan_options(config: StudyConfig) -> dict[str, Any]:
    """The keyword arguments of :func:`deepscan.detect` on which its results depend."""
    return {
        "n_clean": config.n_clean,
        "n_anomalous": config.n_anomalous,
        "n_runs": config.runs,
        "n_permutations": config.permutations,
        "tail": config.tail,
        "center": None if config.center == "none" else config.center,
        "score": config.score,
        "alpha_max": config.alpha_max,
        "alphas": config.alphas,
        "restarts": config.restarts,
        "scan": config.scan,
        "rng": config.seed,
    }
