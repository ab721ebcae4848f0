"""What is compared with what: for each persona, the statements under H1 and under H0, and the two parts of the pairs."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import xarray as xr

from utils.options import ContrastName
from utils.statements.names import find_names

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Contrast:
    """One persona's two sides, as positions along the ``statement`` axis.

    Attributes
    ----------
    persona, topic
        Whose statements are H1.
    h0, h1
        (n_h0,) and (n_h1,) positions. With pairs, ``h0[i]`` and ``h1[i]`` are the two sides of pair i.
    paired
        Whether the sides are matched so.
    """

    persona: str
    topic: str
    h0: np.ndarray
    h1: np.ndarray
    paired: bool

    @property
    def rows(self) -> np.ndarray:
        """All positions, H0 before H1."""
        return np.concatenate([self.h0, self.h1])

    @property
    def labels(self) -> np.ndarray:
        """True for H1, aligned with ``rows``."""
        return np.repeat([False, True], [len(self.h0), len(self.h1)])

    @property
    def units(self) -> np.ndarray:
        """What is never split up, aligned with ``rows``: the number of the pair, or of the statement without pairs."""
        if self.paired:
            return np.tile(np.arange(len(self.h0)), 2)
        return np.arange(len(self.h0) + len(self.h1))


def find_contrasts(
    statements: pd.DataFrame | xr.DataArray,
    *,
    contrast: ContrastName = "direction",
    personas: Sequence[str] | None = None,
) -> list[Contrast]:
    """Lay out the comparison for each persona.

    Under ``direction``, a persona of which only some statements have a pair is compared on one kind alone, so that no
    pair is ever split up: on its pairs, or on its single statements where these fill both sides better. How many
    statements that leaves out is logged as a warning.

    Parameters
    ----------
    statements
        A frame of statements, or activations with their labels.
    contrast
        ``direction``: H0 are the persona's own negative statements. ``one-vs-rest``: H0 are the positive statements of
        the other personas of its topic.
    personas
        Only these; all by default.

    Raises
    ------
    ValueError
        Unknown names, a persona with an empty side, or a pair that is more than one statement a side.
    """
    if contrast not in ("direction", "one-vs-rest"):
        raise ValueError(f"unknown contrast {contrast!r}; expected direction or one-vs-rest.")
    frame = label_frame(statements)
    known = list(frame["persona"].unique())
    chosen = known if personas is None else find_names("persona", personas, known)
    build = _by_direction if contrast == "direction" else _one_vs_rest
    rows = frame.groupby("persona", sort=False).indices
    return [build(frame, persona, np.asarray(rows[persona])) for persona in chosen]


def restrict(contrast: Contrast, keep: np.ndarray) -> Contrast:
    """The contrast over the statements where ``keep``, (n_statements,) bool, is true; a pair needs both its sides."""
    keep_h0, keep_h1 = keep[contrast.h0], keep[contrast.h1]
    if contrast.paired:
        keep_h0 = keep_h1 = keep_h0 & keep_h1
    return replace(contrast, h0=contrast.h0[keep_h0], h1=contrast.h1[keep_h1])


def subsample(contrast: Contrast, n: int, *, rng: int | np.random.Generator = 0) -> Contrast:
    """The contrast over ``n`` random pairs, or ``n`` random statements of each side without pairs, in their order."""
    generator = np.random.default_rng(rng)
    chosen = [np.sort(generator.permutation(len(side))[:n]) for side in (contrast.h0, contrast.h1)]
    if contrast.paired:
        chosen[1] = chosen[0]
    return replace(contrast, h0=contrast.h0[chosen[0]], h1=contrast.h1[chosen[1]])


def label_frame(statements: pd.DataFrame | xr.DataArray) -> pd.DataFrame:
    """The labels of statements or activations as a frame with a plain index and empty text for a missing pair."""
    if isinstance(statements, xr.DataArray):
        columns = {name: statements[name].to_numpy() for name in ("persona", "topic", "direction", "pair")}
        return pd.DataFrame({"id": statements["statement"].to_numpy(), **columns})
    return statements.assign(pair=statements["pair"].fillna("")).reset_index(drop=True)


def _by_direction(frame: pd.DataFrame, persona: str, rows: np.ndarray) -> Contrast:
    own = frame.iloc[rows]
    pair, positive = own["pair"].to_numpy(dtype=str), (own["direction"] == "positive").to_numpy()
    in_pair = _whole_pairs(persona, pair, positive)
    fewest = min((~in_pair & positive).sum(), (~in_pair & ~positive).sum())
    paired = bool(in_pair.any() and in_pair.sum() >= 2 * fewest)
    kept = in_pair == paired
    sides = {"negative": np.flatnonzero(kept & ~positive), "positive": np.flatnonzero(kept & positive)}
    for name, places in sides.items():
        if not len(places):
            raise ValueError(f"persona {persona!r} has no {name} statements; both directions are needed.")
    if left_out := int((~kept).sum()):
        reason = "have no pair" if paired else "are in pairs, fewer than have none,"
        logger.warning("persona %r: %d of %d statements %s and are left out", persona, left_out, len(own), reason)
    if paired:
        sides = {name: places[np.argsort(pair[places], kind="stable")] for name, places in sides.items()}
    h0, h1 = (rows[sides[name]] for name in ("negative", "positive"))
    return Contrast(persona, str(own["topic"].iloc[0]), h0, h1, paired)


def _whole_pairs(persona: str, pair: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Whether each statement of a persona is in a pair with both sides; a pair of which one side is missing is none."""
    names, codes = np.unique(pair, return_inverse=True)
    n_positive, n_negative = (np.bincount(codes, side, minlength=len(names)) for side in (positive, ~positive))
    named = names != ""
    if (repeated := named & (np.maximum(n_positive, n_negative) > 1)).any():
        first = repeated.argmax()
        raise ValueError(
            f"pair {str(names[first])!r} of persona {persona!r} has {n_positive[first]:.0f} positive and "
            f"{n_negative[first]:.0f} negative statements; a pair is one of each: name each pair differently."
        )
    return (named & (n_positive == 1) & (n_negative == 1))[codes]


def _one_vs_rest(frame: pd.DataFrame, persona: str, rows: np.ndarray) -> Contrast:
    positive = (frame["direction"] == "positive").to_numpy()
    own = rows[positive[rows]]
    if not len(own):
        raise ValueError(f"persona {persona!r} has no positive statements.")
    topic = str(frame["topic"].iloc[own[0]])
    others = positive & (frame["topic"] == topic).to_numpy()
    others[rows] = False
    rest = np.flatnonzero(others)
    if not len(rest):
        raise ValueError(f"topic {topic!r} has no other persona to compare {persona!r} with; use contrast direction.")
    return Contrast(persona, topic, rest, own, False)
