"""Sums over the inputs of linear layers, kept while prompts run through a model: five numbers an input, in float64."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from tqdm.auto import tqdm

from utils.models.forward import batch_rows, pad_right
from utils.models.hooks import hook_inputs
from utils.models.language_model import LanguageModel
from utils.models.prompts import Prompt
from utils.subnetworks.linears import Linear

# Rows of the sums. Over tokens: x and x². Over prompts, ‖x‖ being the norm over one prompt's tokens: ‖x‖, ‖x‖/√tokens
# and ‖x‖²/tokens.
SUM, SQUARES, NORM, RATE, RATE_SQUARES = range(5)

_CHUNK = 1 << 20  # numbers that are held in float64 at a time


def sum_inputs(
    lm: LanguageModel,
    linears: Sequence[Linear],
    prompts: Sequence[Prompt],
    counts: Float[np.ndarray, "set prompt"],
    *,
    batch_size: int | Literal["auto"] = "auto",
    progress: bool = True,
) -> dict[str, np.ndarray]:
    """Run prompts through the model and sum up the inputs of linear layers over all real tokens, for several sets at once.

    Parameters
    ----------
    counts
        How often each set holds each prompt.

    Returns
    -------
    dict
        By name of the layer, (set, 5, in) float64; the second axis is ``SUM, SQUARES, NORM, RATE, RATE_SQUARES``.

    Raises
    ------
    ValueError
        A layer that is not run or not given one row a token, or an input that is not finite.
    """
    modules = {linear.name: lm.model.get_submodule(linear.module) for linear in linears}
    run = lm.model if any(linear.part == "head" for linear in linears) else lm.decoder
    totals: dict[str, torch.Tensor] = {}
    # Not inference_mode: only without it does a tensor know whether it was written to.
    with torch.no_grad(), tqdm(total=len(prompts), desc="calibration", disable=not progress) as bar:
        for places in batch_rows(lm, [len(prompt.ids) for prompt in prompts], batch_size):
            rows = [prompts[place].ids for place in places]
            ids, mask = pad_right(rows, lm.device)
            with hook_inputs(modules, _Adder(totals, [len(row) for row in rows], counts[:, places])):
                run(input_ids=ids, attention_mask=mask, use_cache=False)
            bar.update(len(rows))
    return _check_sums({name: value.cpu().numpy() for name, value in totals.items()}, linears)


def _check_sums(sums: Mapping[str, np.ndarray], linears: Sequence[Linear]) -> dict[str, np.ndarray]:
    for linear in linears:
        if linear.name not in sums:
            raise ValueError(f"{linear.name} was not run by the model; it cannot be calibrated.")
        if not np.isfinite(sums[linear.name]).all():
            raise ValueError(f"an input of {linear.name} is not finite; try dtype float32 or bfloat16.")
    return dict(sums)


class _Adder:
    """A hook that adds a batch's sums; layers that are given the very same tensor (q, k, v) share the work."""

    def __init__(self, totals: dict[str, torch.Tensor], lengths: list[int], counts: np.ndarray):
        self.totals, self.lengths, self.counts = totals, lengths, torch.from_numpy(counts)
        self.last: tuple[torch.Tensor, int, torch.Tensor] | None = None

    def __call__(self, name: str, value: torch.Tensor) -> None:
        n, width = len(self.lengths), max(self.lengths)
        if value.numel() != n * width * value.shape[-1]:
            raise ValueError(
                f"{name} is not given one row a token but {tuple(value.shape)}: its tokens cannot be told from padding, "
                "and the model cannot be calibrated."
            )
        if self.last is None or self.last[0] is not value or self.last[1] != value._version:
            self.last = value, value._version, self._sum(value.reshape(n, width, -1))
        self.totals[name] = self.totals[name] + self.last[2] if name in self.totals else self.last[2]

    def _sum(self, value: torch.Tensor) -> torch.Tensor:
        # MPS has no float64.
        value = value.cpu() if value.device.type == "mps" else value
        lengths = torch.tensor(self.lengths, device=value.device)[:, None]
        padding = torch.arange(value.shape[1], device=value.device) >= lengths
        counts = self.counts.to(value.device)
        sums = torch.zeros(len(counts), 5, value.shape[-1], dtype=torch.float64, device=value.device)
        step = max(1, _CHUNK // value[0].numel())
        for first in range(0, len(value), step):
            rows = slice(first, first + step)
            x = value[rows].double().masked_fill_(padding[rows][..., None], 0)
            squares = x.square().sum(1)  # (statement, in)
            rates = squares / lengths[rows]
            per_statement = torch.stack([x.sum(1), squares, squares.sqrt(), rates.sqrt(), rates], dim=1)
            sums += torch.tensordot(counts[:, rows], per_statement, dims=1)
        return sums
