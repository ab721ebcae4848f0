"""One batch of prompts through the model: padding, a shared beginning run once, and what is kept of each pass."""

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from utils.devices import free_cached_memory, ran_out_of_memory
from utils.models.components import hook_component
from utils.models.load import LanguageModel
from utils.models.prompts import Prompt
from utils.options import Component, Position

logger = logging.getLogger(__name__)

# Copying the keys and values for each batch costs something too: below this share it is not worth it.
_SHORTEST_PREFIX, _SMALLEST_SHARE = 16, 0.3


@dataclass(frozen=True)
class Prefix:
    """The tokens with which all prompts begin, and the keys and values that they leave behind; maybe none."""

    ids: tuple[int, ...] = ()
    cache: Any = None


def share_prefix(lm: LanguageModel, prompts: Sequence[Prompt]) -> Prefix:
    """Run the common beginning of the prompts once, where it is long enough to pay.

    It ends before the first token of any statement, so that every position that can be asked for lies behind it.
    """
    if not prompts:
        return Prefix()
    length = _common_length([prompt.ids[: prompt.start] for prompt in prompts])
    mean = sum(len(prompt.ids) for prompt in prompts) / len(prompts)
    if len(prompts) == 1 or length < _SHORTEST_PREFIX or length < _SMALLEST_SHARE * mean:
        return Prefix()
    return run_prefix(lm, prompts[0].ids[:length])


def run_prefix(lm: LanguageModel, ids: tuple[int, ...]) -> Prefix:
    """Run the tokens with which prompts begin; no prefix where there are none, or their cache cannot be handed on."""
    if not ids:
        return Prefix()
    given = torch.tensor([ids], device=lm.device)
    with torch.inference_mode():
        output = lm.decoder(input_ids=given, attention_mask=torch.ones_like(given), use_cache=True)
    cache = getattr(output, "past_key_values", None)
    # Recurrent states and other caches cannot be handed to each row of a batch.
    return Prefix(ids, cache) if hasattr(cache, "batch_repeat_interleave") else Prefix()


def repeat_prefix(prefix: Prefix, mask: torch.Tensor, times: int | None = None) -> dict[str, Any]:
    """Attention mask, and keys and values, for a batch of which ``mask`` (row, token) tells the real tokens.

    Each row of the prefix is repeated ``times`` over, by default as often as there are rows.
    """
    if not prefix.ids:
        return {"attention_mask": mask, "use_cache": False}
    # A copy, as the pass appends to what it is given.
    cache = copy.deepcopy(prefix.cache)
    cache.batch_repeat_interleave(len(mask) if times is None else times)
    full = torch.cat([mask.new_ones(len(mask), len(prefix.ids)), mask], dim=1)
    return {"attention_mask": full, "past_key_values": cache, "use_cache": True}


def thin_prefix(prefix: Prefix, layer: int) -> Prefix:
    """The prefix for passes that begin at a layer: below it one number a token is kept, which tells only the length."""
    if not prefix.ids:
        return prefix
    cache = copy.copy(prefix.cache)
    below = [copy.copy(each) for each in cache.layers[:layer]]
    for each in below:
        each.keys, each.values = each.keys[:, :1, :, :1].clone(), each.values[:, :1, :, :1].clone()
    cache.layers = below + cache.layers[layer:]
    return Prefix(prefix.ids, cache)


def run_batch(
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    layers: list[int],
    *,
    component: Component = "resid",
    position: Position = "last",
    prefix: Prefix | None = None,
) -> np.ndarray:
    """Activations of a batch, (layer, prompt, node); the batch is halved where memory does not suffice."""
    prefix = prefix or Prefix()
    try:
        return _run_once(lm, prompts, layers, component, position, prefix)
    except RuntimeError as error:
        if len(prompts) == 1 or not ran_out_of_memory(error):
            raise
    # Outside the handler, so that the failed pass's tensors are gone by now.
    free_cached_memory()
    half = len(prompts) // 2
    logger.warning("out of memory with %d statements a batch; going on with %d", len(prompts), half)
    options = {"component": component, "position": position, "prefix": prefix}
    return np.concatenate([run_batch(lm, part, layers, **options) for part in (prompts[:half], prompts[half:])], axis=1)


def pad_right(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, each (batch, token).

    Padding goes on the right: a causal model's real tokens never see it, and position ids need no shift.
    """
    ids = torch.zeros((len(rows), max(map(len, rows))), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
    return ids.to(device), mask.to(device)


def _run_once(
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    layers: list[int],
    component: Component,
    position: Position,
    prefix: Prefix,
) -> np.ndarray:
    skipped = len(prefix.ids)
    ids, mask = pad_right([prompt.ids[skipped:] for prompt in prompts], lm.device)
    weights = _token_weights(prompts, ids.shape[1], position, skipped)  # (B, T)
    rows, at = torch.arange(len(prompts)), weights.argmax(dim=1)
    caught: dict[int, torch.Tensor] = {}

    def catch(layer: int, value: torch.Tensor) -> None:  # (B, T, d) or (B, T, H, d)
        if position == "mean":
            picked = torch.einsum("bt,bt...->b...", weights.to(value.device), value.float())
        else:
            picked = value[rows.to(value.device), at.to(value.device)]
        caught[layer] = picked.flatten(1).to(torch.float16 if value.dtype == torch.float16 else torch.float32)

    with torch.inference_mode(), hook_component(lm, component, layers, catch):
        lm.decoder(input_ids=ids, **repeat_prefix(prefix, mask))
        return torch.stack([caught[layer].to("cpu") for layer in layers]).numpy()


def _token_weights(prompts: Sequence[Prompt], width: int, position: Position, skipped: int) -> torch.Tensor:
    """How much each token counts: one token, or an equal share of the statement's, rows summing to 1."""
    weights = torch.zeros(len(prompts), width)
    for row, prompt in enumerate(prompts):
        if position == "last":
            weights[row, len(prompt.ids) - 1 - skipped] = 1
        elif position == "statement":
            weights[row, prompt.stop - 1 - skipped] = 1
        else:
            weights[row, prompt.start - skipped : prompt.stop - skipped] = 1 / (prompt.stop - prompt.start)
    return weights


def _common_length(rows: Sequence[tuple[int, ...]]) -> int:
    # What the first and the last in order have in common, all between them have too.
    first, last = min(rows), max(rows)
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
