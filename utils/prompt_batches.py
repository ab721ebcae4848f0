"""Prompts of many lengths in batches of few."""

from collections.abc import Sequence
from typing import Literal

import torch

# Padded tokens a batch: on a CPU larger batches gain nothing, a GPU wants more.
_CPU_TOKENS, _GPU_TOKENS = 1024, 16384


def token_budget(device: torch.device) -> int:
    """Padded tokens a forward pass that suit a device."""
    return _CPU_TOKENS if device.type == "cpu" else _GPU_TOKENS


def batch_rows(
    lengths: Sequence[int], batch_size: int | Literal["auto"], device: torch.device, *, max_tokens: int | None = None
) -> list[list[int]]:
    """Places of prompts by batch, shortest first, so that there is little padding.

    Parameters
    ----------
    lengths
        Tokens of each prompt.
    batch_size
        Prompts a batch; ``auto`` fills each up to a number of padded tokens that suits the device.
    max_tokens
        That number, where memory asks for another.

    Raises
    ------
    ValueError
        A batch size below 1.
    """
    if batch_size != "auto" and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1 or 'auto', not {batch_size}.")
    budget = max_tokens or token_budget(device)
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: (lengths[row], row)):
        held = len(batches[-1]) if batches else 0
        # The prompt at hand is the longest so far, so that its length is the width of the batch.
        full = held * lengths[row] + lengths[row] > budget if batch_size == "auto" else held >= batch_size
        if not batches or full:
            batches.append([])
        batches[-1].append(row)
    return batches
