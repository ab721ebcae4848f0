"""Cut weights of a model for a while, holding only the values that were cut.

On a CPU the bits of a mask are read as they are by compiled loops: PyTorch's boolean indexing takes several times as long, and
memory for the place of every value.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numba import njit

from utils.models.language_model import LanguageModel
from utils.subnetworks.linears import Linear

# Weights are moved as integers, so that every bit of them survives.
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class PrunedWeights:
    """What was cut from a model, and how to put it back bit for bit.

    At no time is there a copy of more than the values that are cut. Whatever interrupts it, :meth:`restore` puts back
    what was cut until then.
    """

    def __init__(self, lm: LanguageModel):
        self._lm = lm
        self._cut: dict[Linear, tuple[np.ndarray, torch.Tensor]] = {}

    def cut(self, packed: Mapping[Linear, np.ndarray], gamma: float = 0.0) -> None:
        """Multiply by ``gamma`` what is not kept by the bits, see :mod:`~utils.subnetworks.masks`; what was cut comes back."""
        for linear in [linear for linear in self._cut if linear not in packed]:
            self._put_back(linear)
        for linear, bits in packed.items():
            self._put_back(linear)
            weight = linear.weight(self._lm)
            values = _pick(weight, bits)
            # Noted before the weights change, so that an interruption in between loses nothing.
            self._cut[linear] = bits, values
            # 0 times infinity is not 0.
            _place(weight, bits, values * gamma if gamma else torch.zeros_like(values))

    def restore(self) -> None:
        """Put everything back; an interruption waits until it is done."""
        interrupted = None
        while self._cut:
            try:
                self._put_back(next(iter(self._cut)))
            except KeyboardInterrupt as error:
                interrupted = error
        if interrupted is not None:
            raise interrupted

    def _put_back(self, linear: Linear) -> None:
        if linear in self._cut:
            bits, values = self._cut[linear]
            _place(linear.weight(self._lm), bits, values)
            del self._cut[linear]

    @property
    def n_values(self) -> int:
        """How many values are held."""
        return sum(len(values) for _, values in self._cut.values())


def pack(kept: Iterator[torch.Tensor]) -> np.ndarray:
    """Blocks of (row, column) bool as bits, eight a byte, row after row."""
    return np.packbits(np.concatenate([block.cpu().numpy().reshape(-1) for block in kept]))


def unpack(bits: np.ndarray, shape: Sequence[int]) -> torch.Tensor:
    """(out, in) bool: true where a weight is kept."""
    rows, columns = shape
    return torch.from_numpy(np.unpackbits(bits, count=rows * columns).view(bool).reshape(rows, columns))


def count_kept(bits: np.ndarray) -> int:
    """How many weights the bits keep."""
    return int(np.bitwise_count(bits).sum())


def _pick(weight: torch.Tensor, bits: np.ndarray) -> torch.Tensor:
    """The values that are not kept, row after row."""
    if not _compiled(weight):
        return weight[_pruned(weight, bits)]
    # One more than there are: the loop writes each value and goes on only where it is not kept.
    values = torch.empty(weight.numel() - count_kept(bits) + 1, dtype=weight.dtype)
    _pick_values(_integers(weight).numpy(), bits, _integers(values).numpy())
    return values[:-1]


def _place(weight: torch.Tensor, bits: np.ndarray, values: torch.Tensor) -> None:
    if not _compiled(weight):
        weight.masked_scatter_(_pruned(weight, bits), values)
    elif len(values):
        _place_values(_integers(weight).numpy(), bits, _integers(values).numpy())


def _compiled(weight: torch.Tensor) -> bool:
    return weight.device.type == "cpu"


def _pruned(weight: torch.Tensor, bits: np.ndarray) -> torch.Tensor:
    return unpack(bits, weight.shape).to(weight.device).logical_not_()


def _integers(values: torch.Tensor) -> torch.Tensor:
    return values.view(_INTEGERS[values.element_size()])


# What follows has no branches: bits are as good as random, and wrong guesses would cost more than the work.


def _compiled_once(function: Callable) -> Any:
    # An import hook that checks types wraps every function, and numba cannot compile the wrapper.
    return njit(cache=True, nogil=True)(inspect.unwrap(function))


@_compiled_once
def _pick_values(weight, bits, values):
    place, found = 0, 0
    for row in range(weight.shape[0]):
        for column in range(weight.shape[1]):
            values[found] = weight[row, column]
            found += 1 - ((bits[place >> 3] >> (7 - (place & 7))) & 1)
            place += 1


@_compiled_once
def _place_values(weight, bits, values):
    place, found = 0, 0
    last = len(values) - 1
    for row in range(weight.shape[0]):
        for column in range(weight.shape[1]):
            kept = (bits[place >> 3] >> (7 - (place & 7))) & 1
            value = values[min(found, last)]
            weight[row, column] = weight[row, column] if kept else value
            found += 1 - kept
            place += 1
