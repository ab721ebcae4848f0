"""Statements: files in, one labelled frame out.

Layouts are recognised by their columns, formats by their content.

====================================================  =================================================================
columns                                               statements
====================================================  =================================================================
``statement, direction, persona``, maybe ``id,        as they are: this project's own layout; ``persona_dim`` is taken
topic, pair``                                         for ``persona`` (prompt-steering sets)
``statement, answer_matching_behavior``               the persona says Yes or No to each (Perez et al. 2022); the persona
                                                      is called like the file
``question, matching, not_matching``                  a pair a question: the question and, on a line below, the answer
                                                      that matches the persona, or the one that does not
``question, answer_matching_behavior,                 the same; an answer such as ``(A)`` is looked up among the options
answer_not_matching_behavior``                        in the question, which are left out of it
one JSON object with ``instruction: [{pos, neg}]``    a pair an instruction. The questions are no statements: asked under
                                                      the same instruction they would be copies of it, and not pairs of
                                                      their own (:func:`load_trait` reads them)
====================================================  =================================================================
"""

import importlib.resources
import logging
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from utils.statements.csv_lines import check_ids
from utils.statements.files import ENDINGS, is_dataset, is_table, read_columns, read_dataset, read_rows, stem
from utils.statements.layouts import COLUMNS, CONFIDENCE, TOPICS, from_rows, from_trait, is_layout, is_trait, topic_of
from utils.statements.names import find_names

__all__ = ["COLUMNS", "DATA", "TOPICS", "Trait", "load_statements", "load_trait", "topic_of"]

logger = logging.getLogger(__name__)

_PACKAGE = Path(str(importlib.resources.files("utils")))
# A wheel holds the folder inside the package, the project's tree beside it.
DATA = next(filter(Path.is_dir, (_PACKAGE / "data", _PACKAGE.parent / "data")), _PACKAGE / "data")
_KINDS = f"{', '.join(ENDINGS[:-1])} or {ENDINGS[-1]} file, maybe .gz"
_MOST_NAMED = 8


@dataclass(frozen=True)
class Trait:
    """What persona-vector work keeps of a trait.

    Attributes
    ----------
    instructions
        (positive, negative) system prompts that ask for the trait and for its opposite.
    questions
        To ask under every instruction.
    eval_prompt
        What a judge is asked about an answer; empty where the file has none.
    """

    instructions: tuple[tuple[str, str], ...]
    questions: tuple[str, ...]
    eval_prompt: str


def load_statements(
    path: str | Path | None = None,
    personas: Sequence[str] | None = None,
    *,
    topics: Sequence[str] | None = None,
    min_confidence: float | None = None,
    per_side: int | None = None,
    rng: int = 0,
) -> pd.DataFrame:
    """Read statements from one file, a folder of files, or a Hugging Face dataset; the layouts are those of this module.

    Parameters
    ----------
    path
        A ``.csv``, ``.tsv``, ``.jsonl``, ``.json`` or ``.parquet`` file, maybe ``.gz``; a folder that is searched for such
        files, where whatever is left out is named in a warning; a folder that ``datasets`` saved; or the id of a dataset on
        the hub (with the extra ``datasets``). The shipped statements by default.
    personas, topics
        Keep these personas and topics only, in the order of the file.
    min_confidence
        Keep statements whose ``label_confidence`` is at least this, pairs where both have it.
    per_side
        Draw so many statements of each side of each persona: whole pairs where there are enough, or else single
        statements. What a persona is given does not depend on which others are there.
    rng
        Seed of the draw.

    Returns
    -------
    DataFrame
        One row a statement: ``id`` (unique), ``persona``, ``topic`` (``other`` where unknown), ``direction``
        (``positive`` | ``negative``), ``statement``, ``pair`` (unique over personas, missing where the source has no pairs),
        and ``label_confidence`` where the source has it.

    Raises
    ------
    ValueError
        What is wrong with which line of which file, which names are unknown, or too few statements to draw from.
    FileNotFoundError
        There is no such file, folder or dataset.
    """
    frame = _read(path if path is not None else DATA / "statements.csv")
    frame = _select(frame, "topic", topics)
    frame = _select(frame, "persona", personas)
    if min_confidence is not None:
        frame = _confident(frame, min_confidence)
    if per_side is not None:
        frame = _draw(frame, per_side, rng)
    return frame.reset_index(drop=True)


def load_trait(path: str | Path) -> Trait:
    """Read a trait as persona-vector work keeps it: a JSON object with ``instruction``, ``questions`` and ``eval_prompt``.

    Raises
    ------
    FileNotFoundError, ValueError
        No such file, or one that holds no trait.
    """
    path = Path(path)
    found = read_rows(path)
    if not isinstance(found, dict) or not is_trait(found):
        raise ValueError(
            f"{path} holds no trait; expected a JSON object with 'instruction', a list of 'pos' and 'neg'."
        )
    texts = from_trait(path, found, name=stem(path), persona=stem(path))["statement"].tolist()
    questions, judge = found.get("questions", []), found.get("eval_prompt", "")
    if not isinstance(questions, list) or not all(isinstance(each, str) and each.strip() for each in questions):
        raise ValueError(f"{path}: 'questions' must be a list of texts.")
    pairs = tuple(zip(texts[::2], texts[1::2], strict=True))
    return Trait(pairs, tuple(each.strip() for each in questions), str(judge or ""))


def _select(frame: pd.DataFrame, column: str, wanted: Sequence[str] | None) -> pd.DataFrame:
    if wanted is None:
        return frame
    names = find_names(column, wanted, frame[column].unique())
    if not names:
        raise ValueError(f"no {column} was named; known are: {', '.join(frame[column].unique())}.")
    return frame[frame[column].isin(names)]


def _confident(frame: pd.DataFrame, least: float) -> pd.DataFrame:
    if not np.isfinite(least):
        raise ValueError(f"the least confidence must be a number such as 0.9, not {least}.")
    if CONFIDENCE not in frame or frame[CONFIDENCE].isna().any():
        raise ValueError(f"statements without {CONFIDENCE} cannot be chosen by it; leave out the least confidence.")
    unsure = frame[CONFIDENCE] < least
    kept = frame[~unsure & ~frame["pair"].isin(frame.loc[unsure, "pair"].dropna())]
    if gone := set(frame["persona"]) - set(kept["persona"]):
        raise ValueError(
            f"no statement of persona {min(gone)!r} has a {CONFIDENCE} of {least} or more; the largest of all is "
            f"{frame[CONFIDENCE].max():.3g}."
        )
    return kept


def _draw(frame: pd.DataFrame, n: int, rng: int) -> pd.DataFrame:
    if n < 1:
        raise ValueError(f"{n} statements a side cannot be drawn; expected 1 or more.")
    chosen = []
    for persona, own in frame.groupby("persona", sort=False):
        # A generator for each persona: what it is given does not depend on which others are there.
        generator = np.random.default_rng([rng, zlib.crc32(str(persona).encode()), 2])
        pairs = own["pair"].dropna().unique()
        if len(pairs) >= n:
            chosen += own.index[own["pair"].isin(generator.permutation(pairs)[:n])].tolist()
            continue
        for direction, side in own[own["pair"].isna()].groupby("direction"):
            if len(side) < n:
                raise ValueError(
                    f"persona {persona!r} has {len(pairs)} pairs and {len(side)} single {direction} statements, fewer than "
                    f"the {n} a side that were asked for; ask for fewer."
                )
            chosen += generator.permutation(side.index)[:n].tolist()
        if own["pair"].notna().all():
            raise ValueError(
                f"persona {persona!r} has {len(pairs)} pairs, fewer than the {n} asked for; ask for fewer."
            )
    return frame.loc[sorted(chosen)]


def _read(path: str | Path) -> pd.DataFrame:
    if is_dataset(path):
        rows = read_dataset(str(path))
        if not is_layout(rows.columns):
            raise ValueError(f"{path}: the dataset holds no statements; its columns are {', '.join(rows.columns)}.")
        return _finish(path, from_rows(path, rows, name=Path(path).name, persona=Path(path).name))
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no statements at {path}: give a {_KINDS}, or a folder of them.")
    if path.is_file():
        found = read_rows(path)
        return _finish(path, _label(path, found, stem(path)))
    frames = _read_folder(path)
    if not frames:
        raise ValueError(f"{path}: the folder holds no statements; expected a {_KINDS}.")
    return _finish(path, pd.concat(frames, ignore_index=True))


def _read_folder(path: Path) -> list[pd.DataFrame]:
    # Hidden folders hold copies, such as those in .ipynb_checkpoints.
    files = sorted(each for each in path.rglob("*") if each.is_file())
    files = [each for each in files if not any(part.startswith(".") for part in each.relative_to(path).parts)]
    tables = [each for each in files if is_table(each)]
    names = {file: (file.parent / stem(file)).relative_to(path).as_posix() for file in tables}
    shared = pd.Series(names.values(), dtype=object).value_counts()
    frames, left_out = [], [file for file in files if not is_table(file)]
    for file in tables:
        columns = read_columns(file)
        found = read_rows(file) if columns is None or is_layout(columns) else {}
        if not (is_layout(found) or (isinstance(found, dict) and is_trait(found))):
            left_out.append(file)
            continue
        relative = file.relative_to(path)
        # Two files may differ in their endings alone.
        frame = _label(file, found, names[file] if shared[names[file]] == 1 else relative.as_posix())
        frames.append(frame.assign(_line=frame["_line"].astype(str) + f" of {relative}"))
    if left_out:
        more = f" and {len(left_out) - _MOST_NAMED} more" if len(left_out) > _MOST_NAMED else ""
        named = ", ".join(map(str, sorted(left_out)[:_MOST_NAMED]))
        logger.warning("left out, as there are no statements in them: %s%s", named, more)
    return frames


def _label(path: Path, found: pd.DataFrame | dict, name: str) -> pd.DataFrame:
    if isinstance(found, pd.DataFrame):
        return from_rows(path, found, name=name, persona=stem(path))
    if is_trait(found):
        if found.get("questions"):
            logger.warning("%s: its instructions are the statements; its questions are left out", path)
        return from_trait(path, found, name=name, persona=stem(path))
    return from_rows(path, pd.DataFrame([found]).assign(_line=1), name=name, persona=stem(path))


def _finish(path: str | Path, frame: pd.DataFrame) -> pd.DataFrame:
    """Check ids and pairs over all files."""
    frame = check_ids(path, frame.assign(pair=frame["pair"].astype("string")))
    paired = frame["pair"].notna().to_numpy()
    codes, pairs = pd.factorize(frame["pair"][paired])
    persona = pd.factorize(frame["persona"])[0][paired]
    positive = np.bincount(codes, (frame["direction"] == "positive").to_numpy()[paired], minlength=len(pairs))
    of_first = persona[np.unique(codes, return_index=True)[1]]
    foreign = np.bincount(codes, persona != of_first[codes], minlength=len(pairs))
    broken = (np.bincount(codes, minlength=len(pairs)) != 2) | (positive != 1) | (foreign > 0)
    if broken.any():
        raise ValueError(
            f"{path}: pair {pairs[broken.argmax()]!r} is not one positive and one negative statement of one persona."
        )
    return frame[[*COLUMNS, *([CONFIDENCE] if CONFIDENCE in frame else [])]]
