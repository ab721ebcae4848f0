"""An audit as tables, from sources that were read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from utils.audit.measures import profile_table, score_table, set_table, source_table
from utils.audit.overlaps import comparable, overlap_table
from utils.audit.sources import Source
from utils.audit.words import describe_audit, describe_pair, describe_source, set_label

SHARES = (0.0, 0.1, 0.5, 0.95)
TABLES = ("summary", "runs", "sets", "profiles", "overlaps", "pairs")


@dataclass(frozen=True)
class Audit:
    """What run files and studies show.

    Attributes
    ----------
    summary
        One row a source, as of :func:`utils.audit.source_table`.
    runs
        One row a run, as of :func:`utils.audit.score_table`.
    sets
        Sizes of node sets by share of the runs, as of :func:`utils.audit.set_table`.
    profiles
        The same at every number of runs: ``source, kind, share, size, n_nodes``.
    overlaps
        One row a pair of sets and share, as of :func:`utils.audit.overlap_table`; empty for one set.
    pairs
        One row a pair of sets: ``a, kind_a, b, kind_b, sentence``, whether its overlap exceeds independence.
    shares
        Least shares of the runs that make a set; 0 is any run.
    notes
        What was assumed, and what cannot be said.
    """

    summary: pd.DataFrame
    runs: pd.DataFrame
    sets: pd.DataFrame
    profiles: pd.DataFrame
    overlaps: pd.DataFrame
    pairs: pd.DataFrame
    shares: tuple[float, ...]
    notes: tuple[str, ...] = ()

    @property
    def sentences(self) -> dict[str, list[str]]:
        """What each source shows, a sentence each, by source."""
        return {
            str(row.source): describe_source(row, self.sets[self.sets["source"] == row.source])
            for row in self.summary.itertuples()
        }

    @property
    def findings(self) -> list[str]:
        """What the sources show together."""
        return describe_audit(self.summary, self.overlaps)

    def __repr__(self) -> str:
        return f"Audit({len(self.summary)} sources, {len(self.pairs)} pairs of node sets)"


def audit_runs(
    sources: Sequence[Source], *, shares: Sequence[float] = SHARES, notes: Sequence[str] = (), rng: int = 0
) -> Audit:
    """Audit runs that were read.

    Parameters
    ----------
    sources
        As of :func:`utils.audit.read_sources`.
    shares
        Least shares of the runs that make a node set, from 0, any run, to 1, every run.
    notes
        Kept in the audit.
    rng
        Seed of the bootstrap.

    Raises
    ------
    ValueError
        No source, two of the same name, no share, one outside [0, 1] or one that is there twice; a seed below 0.
    """
    shares = tuple(float(share) for share in shares)
    names = [source.name for source in sources]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"an audit takes sources with names of their own, not {', '.join(names) or 'none'}.")
    if not shares or len(set(shares)) < len(shares) or not all(0 <= share <= 1 for share in shares):
        raise ValueError(f"shares of the runs are {list(shares)}; expected different numbers from 0 (any run) to 1.")
    if rng < 0:
        raise ValueError(f"the seed is {rng}; expected a whole number from 0.")
    overlaps = overlap_table(sources, shares)
    return Audit(
        summary=source_table(sources, rng=rng),
        runs=score_table(sources),
        sets=set_table(sources, shares),
        profiles=profile_table(sources),
        overlaps=overlaps,
        pairs=_describe_pairs(overlaps),
        shares=shares,
        notes=(*notes, *_note_missing(sources, overlaps)),
    )


def _describe_pairs(overlaps: pd.DataFrame) -> pd.DataFrame:
    keys = ["a", "kind_a", "b", "kind_b"]
    rows = [
        {**own.iloc[0][keys].to_dict(), "sentence": describe_pair(own)} for _, own in overlaps.groupby(keys, sort=False)
    ]
    return pd.DataFrame(rows, columns=[*keys, "sentence"])


def _note_missing(sources: Sequence[Source], overlaps: pd.DataFrame) -> list[str]:
    apart = sum(not comparable(a, b) for i, a in enumerate(sources) for b in sources[:i])
    notes = []
    if apart:
        notes.append(
            f"{apart} pair{' of sources was' if apart == 1 else 's of sources were'} not compared: their "
            "nodes are of different models, layers or places, or of different numbers."
        )
    empty = overlaps.loc[(overlaps["size_a"] == 0) | (overlaps["size_b"] == 0), ["a", "kind_a", "b", "kind_b", "share"]]
    if len(empty):
        notes.append(
            f"{len(empty)} of {len(overlaps)} comparisons have an empty node set, which shares nothing by necessity."
        )
    return notes


def pair_label(row: Mapping) -> str:
    """A pair of sets as figures show it."""
    if row["a"] == row["b"]:
        return f"{row['a']}: {row['kind_a']} – {row['kind_b']}"
    return f"{set_label(row['a'], row['kind_a'])} – {set_label(row['b'], row['kind_b'])}"
