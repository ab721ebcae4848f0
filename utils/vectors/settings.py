"""The options of a run on persona vectors."""

from collections.abc import Sequence
from dataclasses import dataclass

from utils.options import CausalMeasure, VectorMethod


@dataclass(frozen=True)
class VectorsConfig:
    """Everything that a run depends on besides the study.

    Attributes
    ----------
    personas
        All by default.
    method
        As of :func:`utils.vectors.persona_vectors`.
    measure
        The preference: ``likelihood`` (log-likelihood a token) or ``self_report`` (log-odds of agreeing).
    layers, strengths
        To choose from on ``select`` pairs; layers are five between a third and five sixths of the depth by default.
    doses
        Strengths of the dose–response.
    bound
        Largest perplexity of neutral texts, times that of the model as it is, that a chosen strength may cost.
    n_select, n_pairs
        Pairs of a persona to choose on and to measure on.
    n_random, n_flipped
        Random vectors, and vectors from flipped sides, of the same length.
    n_texts
        Neutral texts, half to choose on and half to measure on.
    n_flips
        Of the cross-fitted judgement.
    seed
        Of everything that is drawn.
    """

    personas: Sequence[str] | None = None
    method: VectorMethod = "mean-difference"
    measure: CausalMeasure = "likelihood"
    layers: Sequence[int] | None = None
    strengths: Sequence[float] = (0.05, 0.1, 0.2, 0.4)
    doses: Sequence[float] = (-0.4, -0.2, -0.1, 0.1, 0.2, 0.4)
    bound: float = 1.1
    n_select: int = 10
    n_pairs: int = 20
    n_random: int = 39
    n_flipped: int = 39
    n_texts: int = 40
    n_flips: int = 199
    seed: int = 0
