"""The options of a causal check."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from utils.options import CausalMeasure, Mode, PromptName, Scope


@dataclass(frozen=True)
class Check:
    """One question to put to a node set: what is done to it, what is measured, under which system prompt.

    Attributes
    ----------
    mode
        ``steer``: push the nodes to the persona's side. ``ablate``: set them to their mean over the background.
        ``resample``: give them the values of a random statement of the other side. ``patch``: those of the matched
        statement of the other side. The last two write a statement's mean over its tokens to every token, in which there
        is also what it goes on to say: with ``likelihood`` that tells the answer, so use them with ``self_report``.
    measure
        Preference for the persona's side, positive minus negative statement: ``likelihood``, log-likelihood a token, or
        ``self_report``, log-odds of agreeing.
    prompt
        ``neutral``: the chat template's own; ``persona``: a system prompt that asks for the persona.
    """

    mode: Mode
    measure: CausalMeasure
    prompt: PromptName

    def __str__(self) -> str:
        """As ``steer/likelihood/neutral``."""
        return f"{self.mode}/{self.measure}/{self.prompt}"


# Does pushing the nodes bring the persona about; does the model tell the sides apart by them.
CHECKS = (Check("steer", "likelihood", "neutral"), Check("ablate", "self_report", "neutral"))


@dataclass(frozen=True)
class CausalConfig:
    """Everything that a causal check depends on besides the study.

    Attributes
    ----------
    persona
        Whose nodes; by default that with the highest pair accuracy on the study's ``select`` pairs, on which nothing is
        measured.
    layer
        Where; by default the layer that the study scanned.
    checks
        What is asked; the first of each mode is also asked of every strength, size and layer.
    n_pairs
        Pairs of the study's ``test`` part to measure on. Nodes are chosen on all other pairs.
    n_random, n_matched
        Random node sets that the sets are ranked among: drawn from all nodes for every check, and matched in spread for
        the first check of each mode.
    n_curve
        Random sets at every further strength, size and layer: a picture of chance there, not a test.
    size
        How many nodes, those selected most often; by default the scan's node set as the study's threshold gives it.
    scope
        Which tokens are changed, see :func:`utils.causal.interventions.scope_mask`.
    strength, strengths
        Of steering, in units of the mean length of the residual stream over the background; the first is for the main
        comparison, the others are further points of the dose–response curve.
    sizes
        Further set sizes: the nodes selected most often.
    layers
        Further layers, with sets of the size of the main comparison.
    n_cost
        Questions, and neutral texts, for what an intervention costs; 0 leaves that out.
    permutations
        Of the scans that choose the nodes.
    seed
        Of everything that is drawn.
    """

    persona: str | None = None
    layer: int | None = None
    checks: Sequence[Check] = CHECKS
    n_pairs: int = 30
    n_random: int = 100
    n_matched: int = 50
    n_curve: int = 6
    size: int | None = None
    scope: Scope = "all"
    strength: float = 0.2
    strengths: Sequence[float] = (-0.2, 0.1, 0.4)
    sizes: Sequence[int] = (5, 20, 80)
    layers: Sequence[int] = ()
    n_cost: int = 30
    permutations: int = 99
    seed: int = 0

    def __post_init__(self) -> None:
        if self.strength == 0:
            raise ValueError("a strength of 0 pushes nowhere; expected another number, such as 0.2.")
        for strength in (self.strength, *self.strengths):
            if not math.isfinite(strength):
                raise ValueError(f"strengths hold {strength}; expected finite numbers, such as 0.2.")


def parse_check(text: str) -> Check:
    """Read ``steer/likelihood/neutral``; measure and prompt may be left out (likelihood, neutral).

    Raises
    ------
    ValueError
        A word that is not an option.
    """
    given = [word.strip() for word in text.split("/")]
    words = given + ["", "likelihood", "neutral"][len(given) :]
    for word, allowed in zip(words, (Mode, CausalMeasure, PromptName), strict=False):
        if word not in get_args(allowed):
            raise ValueError(f"{word!r} in check {text!r} is not one of {', '.join(get_args(allowed))}.")
    if len(words) > 3:
        raise ValueError(f"check {text!r} has {len(words)} parts; expected mode/measure/prompt.")
    return Check(*words)  # pyright: ignore[reportArgumentType]
