"""What the tests that use all records share: every labelling as a column of signs, standardised nodes, p-values over both."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Shaped

from deepscan.checks import check_activations, check_integer
from deepscan.splits import Labels, label_records, permute_labels, seed_sequence

# Labellings that tie exactly come out of a matrix product with the last bits different; they must count as ties.
TOLERANCE = 1e-9
_BLOCK_CELLS = 1 << 22

Sides = list[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Relabellings:
    """The observed labelling and the permuted ones.

    Attributes
    ----------
    labels : Labels
        The observed sides; units are its pairs, or without pairs the records of ``[h0; h1]``.
    signs : (n_units, 1 + n_permutations)
        Column 0 is what was observed. With pairs +1 for a pair as it is and -1 for a flipped one; without, +1 for a
        record under h1 and -1 for one under h0.
    """

    labels: Labels
    signs: Float[np.ndarray, "units labellings"]

    @property
    def paired(self) -> bool:
        """Whether sides are flipped within pairs."""
        return self.labels.paired

    @property
    def centred(self) -> Float[np.ndarray, "units labellings"]:
        """Signs minus their mean over the records; with pairs the signs as they are."""
        return self.signs if self.paired else self.signs - self.signs[:, :1].mean()

    def align(self, values: Float[np.ndarray, "units"]) -> Float[np.ndarray, "units"]:
        """One value a unit in the order of the rows of ``h0`` (with pairs), or of ``[h0; h1]``."""
        if not self.paired:
            return values
        aligned = np.empty_like(values)
        aligned[self.labels.h0] = values
        return aligned


def read_layers(h0: object, h1: object, *, smallest: int) -> tuple[Sides, bool]:
    """Both sides of every layer, and whether there is an axis of layers.

    Raises
    ------
    ValueError
        NaN or inf, other numbers of layers, records or nodes on the two sides or from layer to layer, or fewer than
        ``smallest`` records on a side.
    """
    several = [_has_layers(side) for side in (h0, h1)]
    if several[0] != several[1]:
        raise ValueError("one of h0 and h1 has an axis of layers and the other has none; give both of the same kind")
    lists = [list(side) if several[0] else [side] for side in (h0, h1)]  # type: ignore[call-overload]
    if len(lists[0]) != len(lists[1]) or not lists[0]:
        raise ValueError(f"h0 has {len(lists[0])} layers and h1 {len(lists[1])}; expected the same layers in both")
    sides = []
    for k, both in enumerate(zip(*lists, strict=True)):
        place = f"[{k}]" if several[0] else ""
        x0, x1 = (check_activations(x, f"{name}{place}") for name, x in zip(("h0", "h1"), both, strict=True))
        if x0.shape[1] != x1.shape[1]:
            raise ValueError(
                f"h1{place} has {x1.shape[1]} nodes and h0{place} {x0.shape[1]}; expected the same nodes in both"
            )
        sides.append((x0, x1))
        for name, x, first in (("h0", x0, sides[0][0]), ("h1", x1, sides[0][1])):
            if len(x) < smallest:
                raise ValueError(f"{name} has {len(x)} records; at least {smallest} are needed on each side")
            if len(x) != len(first):
                raise ValueError(
                    f"{name}{place} has {len(x)} records and {name}[0] {len(first)}; expected the same ones"
                )
    return sides, several[0]


def _has_layers(side: object) -> bool:
    if isinstance(side, np.ndarray):
        return side.ndim == 3
    return isinstance(side, Sequence) and (len(side) == 0 or np.ndim(side[0]) == 2)


def relabel(
    sides: Sides,
    pairs: Shaped[np.ndarray, " records"] | Sequence | None,
    n_permutations: int,
    rng: int | np.random.Generator,
) -> Relabellings:
    """Observed labels and the permuted ones of :func:`deepscan.detect` with this seed and these pairs.

    Raises
    ------
    ValueError
        Incomplete pairs, fewer than two of them, or a bad ``n_permutations`` or ``rng``.
    """
    n_permutations = check_integer(n_permutations, "n_permutations", minimum=0)
    seed = seed_sequence(rng)
    h0, h1 = sides[0]
    labels = label_records(len(h0), len(h1), pairs)
    if labels.paired and len(h0) < 2:
        raise ValueError("h0 and h1 hold one pair; at least 2 pairs are needed")
    return Relabellings(labels, _draw_signs(labels.paired, len(h0), len(h1), n_permutations, seed))


# Tests of one persona, and of personas with equally many pairs, share their flips.
@lru_cache(maxsize=4)
def _draw_signs(paired: bool, n0: int, n1: int, n_permutations: int, seed: int) -> np.ndarray:
    labels = label_records(n0, n1, np.arange(n0) if paired else None)
    signs = np.ones((n0 if paired else n0 + n1, 1 + n_permutations))
    if not paired:
        signs[labels.h0, 0] = -1
    for k in range(n_permutations):
        permuted = permute_labels(labels, seed, k)
        if paired:
            signs[permuted.h0 != labels.h0, 1 + k] = -1
        else:
            signs[permuted.h0, 1 + k] = -1
    signs.setflags(write=False)
    return signs


def differences(h0: np.ndarray, h1: np.ndarray, labels: Labels) -> Float[np.ndarray, "pairs nodes"]:
    """What the h1 record of each pair has more than its h0 record."""
    return h1[labels.h1 - len(h0)].astype(np.float64) - h0[labels.h0]


def standardise(h0: np.ndarray, h1: np.ndarray, labels: Labels) -> Float[np.ndarray, "units nodes"]:
    """Columns of unit length, the same for all labellings: differences of pairs, or records about their common mean.

    A node that never varies (with pairs: of which no pair differs) is 0.
    """
    if labels.paired:
        z = differences(h0, h1, labels)
    else:
        z = np.concatenate([h0, h1]).astype(np.float64)
        # The mean of equal values may miss them by a bit, which would then be blown up to unit length.
        constant = z.min(axis=0) == z.max(axis=0)
        z -= z.mean(axis=0)
        z[:, constant] = 0.0
    largest = np.abs(z).max(axis=0)
    z /= np.where(largest > 0.0, largest, 1.0)
    length = np.sqrt(np.einsum("ij,ij->j", z, z))
    z /= np.where(length > 0.0, length, 1.0)
    return z


def sums_by_labelling(
    z: Float[np.ndarray, "units nodes"], signs: Float[np.ndarray, "units labellings"]
) -> Iterator[tuple[slice, Float[np.ndarray, "block nodes"]]]:
    """Signed sums of every node, a block of labellings at a time."""
    step = max(1, _BLOCK_CELLS // z.shape[1])
    for start in range(0, signs.shape[1], step):
        block = slice(start, min(start + step, signs.shape[1]))
        yield block, signs[:, block].T @ z


def share_reaching(
    values: Float[np.ndarray, "*axis labellings"], observed: np.ndarray | float
) -> np.ndarray | np.floating:
    """Share of the labellings, the observed one among them, with a value of at least ``observed``; ties count."""
    slack = TOLERANCE * np.abs(values).max(axis=-1)
    return np.mean(values >= (np.asarray(observed) - slack)[..., None], axis=-1)


def centre_and_scale(values: Float[np.ndarray, "*axis labellings"]) -> Float[np.ndarray, "*axis labellings"]:
    """Values minus their mean and over their standard deviation over all labellings; 0 where they do not vary.

    The observed labelling is one of them, so that each is treated alike and tests on the result stay exact.
    """
    spread = values.std(axis=-1, keepdims=True)
    varies = spread > TOLERANCE * np.abs(values).max(axis=-1, keepdims=True)
    return np.where(varies, (values - values.mean(axis=-1, keepdims=True)) / np.where(varies, spread, 1.0), 0.0)
