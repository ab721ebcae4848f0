"""The pairs that a causal check is measured on, kept apart from those that its nodes are chosen on."""

from dataclasses import dataclass

import numpy as np

from utils.statements.contrasts import Contrast, restrict


@dataclass(frozen=True)
class HeldOut:
    """A persona's statements in two: to measure on, and to choose nodes on.

    Attributes
    ----------
    h1, h0
        (n,) positions of the statements to measure on, of the persona and of the other side, pair by pair. Without pairs
        they are matched at random.
    rest
        All others, of both parts of the study.
    """

    persona: str
    h1: np.ndarray
    h0: np.ndarray
    rest: Contrast


def hold_out(contrast: Contrast, part: np.ndarray, n_pairs: int, *, rng: int = 0) -> HeldOut:
    """Draw pairs of the ``test`` part to measure on; everything else is there to choose nodes on.

    Parameters
    ----------
    contrast
        A persona's sides over all statements.
    part
        Of :func:`utils.statements.split_parts`.

    Raises
    ------
    ValueError
        Too few pairs in the test part, or none left to choose nodes on.
    """
    tested = restrict(contrast, part == "test")
    there = min(len(tested.h0), len(tested.h1))
    if not 2 <= n_pairs <= there:
        unit = "pairs" if contrast.paired else "statements on each side"
        raise ValueError(
            f"{n_pairs} pairs were asked for and persona {contrast.persona!r} has {there} {unit} in its test part; expected "
            "from 2 to that, with enough left to choose nodes on."
        )
    generator = np.random.default_rng([rng, 1])
    chosen = generator.permutation(len(tested.h1))[:n_pairs]
    h1 = tested.h1[chosen]
    h0 = tested.h0[chosen] if contrast.paired else tested.h0[generator.permutation(len(tested.h0))[:n_pairs]]
    keep = np.ones(len(part), dtype=bool)
    keep[np.concatenate([h0, h1])] = False
    return HeldOut(contrast.persona, h1, h0, restrict(contrast, keep))
