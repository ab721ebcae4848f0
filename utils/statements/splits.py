"""The pairs that a causal check is measured on, kept apart from those that its nodes are chosen on."""

import hashlib
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from utils.statements.contrasts import Contrast, label_frame, restrict


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


def name_seen(statements: pd.DataFrame | Iterable[str]) -> set[str]:
    """Names by which statements are known again: their pairs, and digests of their texts."""
    pairs = statements["pair"].dropna() if isinstance(statements, pd.DataFrame) and "pair" in statements else []
    digests = (hashlib.sha256(text.strip().encode()).hexdigest()[:12] for text in list_texts(statements))
    return {*digests, *(f"pair {pair}" for pair in pairs if pair)}


def list_texts(statements: pd.DataFrame | Iterable[str]) -> list[str]:
    """The texts of statements, of a frame or as they are."""
    if isinstance(statements, pd.DataFrame):
        return statements["statement"].tolist()
    return [statements] if isinstance(statements, str) else list(statements)


def split_parts(statements: pd.DataFrame | xr.DataArray, *, share: float = 0.25, rng: int = 0) -> np.ndarray:
    """Draw, once, which statements are for choosing (``select``) and which for reporting (``test``).

    Whole pairs are drawn within each persona, statements without a pair within each direction of each persona.

    Returns
    -------
    ndarray
        (n_statements,) of ``"select"`` and ``"test"``.
    """
    frame = label_frame(statements)
    unit = frame["pair"].where(frame["pair"] != "", frame["id"])
    # Units of a persona with pairs are drawn together, single statements by direction so that both sides stay filled.
    stratum = frame["persona"] + np.where(frame["pair"] != "", "", "/" + frame["direction"])
    part = np.full(len(frame), "test", dtype="<U6")
    for name, units in unit.groupby(stratum, sort=False):
        names = units.unique()
        # A generator for each persona: what it is given does not depend on which others are there.
        generator = np.random.default_rng([rng, zlib.crc32(str(name).encode())])
        chosen = generator.permutation(names)[: round(share * len(names))]
        part[units.index[units.isin(chosen)]] = "select"
    return part


def draw_parts(statements: pd.DataFrame, *, n_pairs: int = 50, rng: int = 0) -> np.ndarray:
    """Draw the pairs to calibrate on from the ``test`` pairs of the study; ``select`` pairs stay what they are.

    Parameters
    ----------
    n_pairs
        Pairs of each persona to calibrate on.

    Returns
    -------
    ndarray
        (n_statements,) of ``"calibrate"``, ``"select"`` and ``"test"``, whole pairs each.

    Raises
    ------
    ValueError
        Statements without a pair, or a persona with too few pairs to leave any for the test.
    """
    frame = label_frame(statements)
    if (frame["pair"] == "").any():
        raise ValueError("some statements have no pair; masks are made and measured on whole pairs.")
    part = split_parts(statements, rng=rng).astype("<U9")
    for persona in frame["persona"].unique():
        free = frame.loc[(frame["persona"] == persona) & (part == "test"), "pair"].unique()
        if not 1 <= n_pairs < len(free):
            raise ValueError(
                f"persona {persona!r} has {len(free)} test pairs; calibrate on 1 to {len(free) - 1} of them, not {n_pairs}."
            )
        # As in split_parts: what a persona is given does not depend on which others are there.
        generator = np.random.default_rng([rng, zlib.crc32(str(persona).encode()), 1])
        drawn = generator.permutation(free)[:n_pairs]
        part[frame["pair"].isin(drawn).to_numpy()] = "calibrate"
    return part


def shuffle_sides(statements: pd.DataFrame, *, rng: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Positive and negative statements with the sides of half of the pairs, drawn at random, swapped: nothing is left to find."""
    positive, negative = pair_sides(statements)
    swapped = np.zeros(len(positive), bool)
    swapped[np.random.default_rng(rng).permutation(len(positive))[: len(positive) // 2]] = True
    first = pd.concat([positive[~swapped], negative[swapped]], ignore_index=True)
    return first, pd.concat([negative[~swapped], positive[swapped]], ignore_index=True)


def pair_sides(statements: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The positive and the negative statements of whole pairs, row for row, in order of appearance.

    Raises
    ------
    ValueError
        There are no pairs, or statements outside of them.
    """
    pair = statements["pair"].fillna("")
    positive, negative = (
        statements[statements["direction"] == side].set_index(pair[statements["direction"] == side], drop=False)
        for side in ("positive", "negative")
    )
    if "" in positive.index or "" in negative.index or not len(positive) or set(positive.index) != set(negative.index):
        raise ValueError(
            "positive and negative statements in whole pairs are needed; see utils.statements.find_contrasts."
        )
    return positive.reset_index(drop=True), negative.loc[positive.index].reset_index(drop=True)


def pair_differences(values: pd.DataFrame) -> pd.Series:
    """Positive minus negative ``value`` of each pair, by pair; what :func:`choose_statements` returns is passed on."""
    if "direction" not in values:
        return values.set_index("pair")["value"]
    positive, negative = pair_sides(values)
    return pd.Series(positive["value"].to_numpy() - negative["value"].to_numpy(), index=positive["pair"], name="value")
