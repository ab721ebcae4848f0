"""Who is under H0, who is not, and which of them a run scans."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Integer

from deepscan.checks import check_integer

_FLIPS, _SPLITS = 0, 1


@dataclass(frozen=True)
class Labels:
    """Records (indices into ``[h0; h1]``) on each side; with pairs, entry i of both sides is pair i."""

    h0: Integer[np.ndarray, " h0"]
    h1: Integer[np.ndarray, " h1"]
    paired: bool

    def background_size(self, n_clean: int, n_anomalous: int, n_background: int | None) -> int:
        """Background records of a run.

        Raises
        ------
        ValueError
            The samples do not fit into their pools, or leave no background.
        """
        if not self.paired and n_anomalous > self.h1.size:
            raise ValueError(f"n_anomalous is {n_anomalous}, more than the {self.h1.size} records of h1; lower it")
        scanned = n_clean + n_anomalous if self.paired else n_clean
        names = "n_clean + n_anomalous" if self.paired else "n_clean"
        pool = "pairs" if self.paired else "records of h0"
        left = self.h0.size - scanned
        if left < 1:
            raise ValueError(
                f"{names} is {scanned}, which leaves no background of the {self.h0.size} {pool}; lower the samples"
            )
        if n_background is None:
            return left
        if check_integer(n_background, "n_background", minimum=1) > left:
            raise ValueError(
                f"n_background is {n_background}, but {names} = {scanned} leaves {left} of the {self.h0.size} {pool}; "
                "lower it"
            )
        return int(n_background)


@dataclass(frozen=True)
class Split:
    """Places in the sides of :class:`Labels` that a run takes its records from, and the run's own seed."""

    clean: Integer[np.ndarray, " clean"]
    anomalous: Integer[np.ndarray, " anomalous"]
    background: Integer[np.ndarray, " background"]
    seed: np.random.SeedSequence


def seed_sequence(rng: int | np.random.Generator) -> int:
    """Seed that everything is spawned from; drawn from a Generator, else the one given."""
    if isinstance(rng, np.random.Generator):
        return int(rng.integers(2**63))
    return check_integer(rng, "rng", minimum=0)


def label_records(n0: int, n1: int, pairs: Sequence | np.ndarray | None) -> Labels:
    """Observed labels, pairs in the order of their sorted names.

    Raises
    ------
    ValueError
        ``pairs`` has another length, or a pair has not one record on each side.
    """
    if pairs is None:
        return Labels(np.arange(n0), n0 + np.arange(n1), False)
    names = np.asarray(pairs)
    if n0 == n1 and names.shape == (n0,):
        names = np.concatenate([names, names])
    if names.shape != (n0 + n1,):
        raise ValueError(
            f"pairs has shape {names.shape}; expected one label a row of aligned h0 and h1, ({n0},) if both have as "
            f"many, or one a record of [h0; h1], ({n0 + n1},)"
        )
    distinct, place = np.unique(names, return_inverse=True)
    for side, members in (("h0", place[:n0]), ("h1", place[n0:])):
        count = np.bincount(members, minlength=distinct.size)
        if not (count == 1).all():
            wrong = int(np.argmax(count != 1))
            raise ValueError(
                f"pairs: {distinct[wrong].item()!r} has {count[wrong]} records in {side}; expected one in h0 and one in h1"
            )
    return Labels(np.argsort(place[:n0]), n0 + np.argsort(place[n0:]), True)


def permute_labels(labels: Labels, seed: int, permutation: int) -> Labels:
    """Labels of one permutation; with pairs, sides are flipped within pairs."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_FLIPS, permutation)))
    if labels.paired:
        flip = rng.integers(2, size=labels.h0.size).astype(bool)
        return Labels(np.where(flip, labels.h1, labels.h0), np.where(flip, labels.h0, labels.h1), True)
    mixed = rng.permutation(np.concatenate([labels.h0, labels.h1]))
    return Labels(mixed[: labels.h0.size], mixed[labels.h0.size :], False)


def draw_splits(
    labels: Labels, n_clean: int, n_anomalous: int, n_background: int, n_runs: int, seed: int
) -> list[Split]:
    """Splits of every run, the same for all permutations."""
    splits = []
    for run in range(n_runs):
        sequence = np.random.SeedSequence(seed, spawn_key=(_SPLITS, run))
        rng = np.random.default_rng(sequence)
        order = rng.permutation(labels.h0.size)
        if labels.paired:
            anomalous, rest = order[n_clean : n_clean + n_anomalous], order[n_clean + n_anomalous :]
        else:
            anomalous, rest = rng.permutation(labels.h1.size)[:n_anomalous], order[n_clean:]
        splits.append(Split(order[:n_clean], anomalous, rest[:n_background], sequence.spawn(1)[0]))
    return splits
