"""Prompts of many lengths through the model in batches of few, and its logits at one token of each."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from transformers.cache_utils import DynamicIndexedLayer, DynamicLayer, DynamicSlidingWindowLayer

from utils.models.hooks import hook_inputs, hook_outputs
from utils.models.language_model import LanguageModel
from utils.models.prompts import Prompt

# A power of two, small enough for any cap on the logits to be linear there and exact in every dtype.
_SMALL = 2.0**-10

# Copying the keys and values for each batch costs something too: below this share it is not worth it.
_SHORTEST_PREFIX, _SMALLEST_SHARE = 16, 0.3

# Layers of a cache that hold keys and values of a token each, and no other state.
_REPEATABLE = (DynamicLayer, DynamicSlidingWindowLayer, DynamicIndexedLayer)

# Padded tokens a batch: on a CPU larger batches gain nothing, a GPU wants more.
_CPU_TOKENS, _GPU_TOKENS = 1024, 16384


def logits_at(
    lm: LanguageModel, ids: Int[torch.Tensor, "rows token"], place: Int[torch.Tensor, " rows"], **options: Any
) -> Float[torch.Tensor, "rows vocabulary"]:
    """Logits behind one token of each row, with the scaling and capping that the model applies.

    The head runs at these tokens only, which for a large vocabulary is most of its work.

    Parameters
    ----------
    ids, place
        Token ids, and the place of the wanted token in each row of ``ids``.
    options
        What else the forward pass is given: an attention mask, keys and values of earlier tokens.
    """
    rows = torch.arange(len(ids))

    def pick(_key: int, hidden: torch.Tensor) -> torch.Tensor:
        check_head(lm, hidden, ids)
        return hidden[rows.to(hidden.device), place.to(hidden.device)][:, None]

    with hook_inputs({0: lm.head}, pick):
        return lm.model(input_ids=ids, **{"use_cache": False, **options}).logits[:, 0]


def check_head(lm: LanguageModel, hidden: torch.Tensor, ids: torch.Tensor) -> None:
    """Refuse a model whose head is not given one vector a token."""
    if hidden.shape[:-1] != ids.shape:
        raise ValueError(
            f"the head of {lm.name} is given {tuple(hidden.shape)} for tokens {tuple(ids.shape)}, not one vector a token; "
            "its logits cannot be read at chosen tokens."
        )


def logit_scale(lm: LanguageModel) -> float:
    """What the model multiplies the head's output with (Granite, Cohere); a cap on the logits (Gemma 2) is left out.

    Measured: the head's output is replaced by small numbers, where a cap does nothing, and what comes out is compared.
    """
    ids = torch.zeros((1, 1), dtype=torch.long, device=lm.device)
    with torch.inference_mode(), hook_outputs({0: lm.head}, lambda _key, out: torch.full_like(out, _SMALL)):
        logits = lm.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        return float(logits.float().mean()) / _SMALL


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
    return run_prefix(lm, prompts[0].ids[:length], [len(prompt.ids) for prompt in prompts])


def run_prefix(lm: LanguageModel, ids: tuple[int, ...], lengths: Sequence[int]) -> Prefix:
    """Run the tokens with which prompts begin.

    No prefix where there are none, where their cache cannot be handed on, or where keys are turned otherwise in prompts of
    these ``lengths`` than in the prefix alone (LongRoPE).
    """
    if not ids or lm.shares_keys or len(lm.split_sides([len(ids), *lengths])) > 1:
        return Prefix()
    given = torch.tensor([ids], device=lm.device)
    try:
        with torch.inference_mode():
            output = lm.decoder(input_ids=given, attention_mask=torch.ones_like(given), use_cache=True)
    except (AssertionError, ValueError):
        # Some models keep keys and values of single tokens only (ProphetNet).
        return Prefix()
    cache = getattr(output, "past_key_values", None)
    return Prefix(ids, cache) if _can_repeat(cache) else Prefix()


def _can_repeat(cache: Any) -> bool:
    """Whether a cache can be handed to each row of a batch: keys and values in every layer and nothing else.

    Recurrent and convolutional states, alone or beside keys and values, and compressed keys cannot; each layer is asked,
    as one cache holds several kinds (Qwen3.5, Bamba, LFM2).
    """
    layers = getattr(cache, "layers", None) or []
    return bool(layers) and all(type(layer) in _REPEATABLE for layer in layers)


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


def _common_length(rows: Sequence[tuple[int, ...]]) -> int:
    # What the first and the last in order have in common, all between them have too.
    first, last = min(rows), max(rows)
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


def token_budget(device: torch.device) -> int:
    """Padded tokens a forward pass that suit a device."""
    return _CPU_TOKENS if device.type == "cpu" else _GPU_TOKENS


def batch_rows(
    lm: LanguageModel,
    lengths: Sequence[int],
    batch_size: int | Literal["auto"],
    *,
    skipped: int = 0,
    max_tokens: int | None = None,
) -> list[list[int]]:
    """Places of prompts by batch, shortest first, so that there is little padding.

    Parameters
    ----------
    lengths
        Tokens of each prompt, without those that are skipped.
    batch_size
        Prompts a batch; ``auto`` fills each up to a number of padded tokens that suits the device.
    skipped
        Tokens before them, of a prefix that has been run.
    max_tokens
        Padded tokens a batch, where memory asks for another number.

    Raises
    ------
    ValueError
        A batch size below 1.
    """
    if batch_size != "auto" and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1 or 'auto', not {batch_size}.")
    budget = max_tokens or token_budget(lm.device)
    batches: list[list[int]] = []
    for side in lm.split_sides([skipped + length for length in lengths]):
        first = len(batches)
        for row in sorted(side, key=lambda row: (lengths[row], row)):
            held = len(batches[-1]) if len(batches) > first else 0
            # The prompt at hand is the longest so far, so that its length is the width of the batch.
            full = held * lengths[row] + lengths[row] > budget if batch_size == "auto" else held >= batch_size
            if not held or full:
                batches.append([])
            batches[-1].append(row)
    return batches
