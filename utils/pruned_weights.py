"""Cut weights of a model for a while, holding only the values that were cut."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch

from utils.linears import Linear
from utils.models import LanguageModel

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
        """Multiply by ``gamma`` what is not kept by the bits, see :mod:`utils.masks`; what was cut before comes back."""
        for linear in [linear for linear in self._cut if linear not in packed]:
            self._put_back(linear)
        # Matrix by matrix, so that each is in the cache while it is changed.
        for linear, bits in packed.items():
            self._put_back(linear)
            weight = linear.weight(self._lm)
            pruned = unpack(bits, linear).logical_not_().to(weight.device)
            values = weight[pruned]
            # Noted before the weights change, so that an interruption in between loses nothing.
            self._cut[linear] = bits, values
            _scale(weight, pruned, values, gamma)

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
            weight = linear.weight(self._lm)
            weight.masked_scatter_(unpack(bits, linear).logical_not_().to(weight.device), values)
            del self._cut[linear]

    @property
    def n_values(self) -> int:
        """How many values are held."""
        return sum(len(values) for _, values in self._cut.values())


def pack(kept: Iterator[torch.Tensor]) -> np.ndarray:
    """Blocks of (row, column) bool as bits, eight a byte, row after row."""
    return np.packbits(np.concatenate([block.cpu().numpy().reshape(-1) for block in kept]))


def unpack(bits: np.ndarray, linear: Linear) -> torch.Tensor:
    """(out, in) bool: true where a weight is kept."""
    rows, columns = linear.shape
    return torch.from_numpy(np.unpackbits(bits, count=rows * columns).view(bool).reshape(rows, columns))


def _scale(weight: torch.Tensor, pruned: torch.Tensor, values: torch.Tensor, gamma: float) -> None:
    if gamma:
        weight.masked_scatter_(pruned, values * gamma)
    else:
        # As integers, since 0 times infinity is not 0, and several times faster than to fill by a mask.
        weight.view(_INTEGERS[weight.element_size()]).mul_(pruned.logical_not())
