"""The options of a study."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

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
