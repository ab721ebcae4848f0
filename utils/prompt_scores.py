"""Numbers read from a model's logits at the tokens of interest of many prompts."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from tqdm.auto import tqdm

from utils.batches import Prefix, pad_right, share_prefix
from utils.hooks import hook_inputs
from utils.models import LanguageModel
from utils.prompt_batches import batch_rows
from utils.prompts import Prompt

# Logits that are held at a time on a GPU: 1 GB in float32.
_LOGITS = 1 << 28


def span_scorer(prompts: Sequence[Prompt]) -> Callable[[torch.Tensor, int], float]:
    """The log-likelihood of the tokens of each prompt's span."""

    def score(logits: torch.Tensor, place: int) -> float:
        prompt = prompts[place]
        chosen = torch.tensor(prompt.ids[prompt.start : prompt.stop], device=logits.device)
        return float((logits.gather(1, chosen[:, None])[:, 0].double() - logits.logsumexp(1).double()).sum())

    return score


def score_prompts(
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    score: Callable[[torch.Tensor, int], float],
    batch_size: int | Literal["auto"],
    progress: bool,
    name: str,
) -> np.ndarray:
    """``score(logits, place)`` of every prompt, the logits (token, vocabulary) being those of the tokens of its span.

    A beginning that all prompts share is run once, and the head runs at the tokens that are needed only.
    """
    # The logits of a token are those of the place before it.
    before = [Prompt(prompt.ids, prompt.start - 1, prompt.stop - 1) for prompt in prompts]
    _check_lengths(lm, prompts)
    prefix = share_prefix(lm, before)
    skipped = len(prefix.ids)
    lengths = [len(prompt.ids) - skipped for prompt in prompts]
    budget = None if lm.device.type == "cpu" else max(256, _LOGITS // lm.embedding.num_embeddings)
    found = np.empty(len(prompts))
    with torch.inference_mode(), tqdm(total=len(prompts), desc=name, disable=not progress) as bar:
        for places in batch_rows(lengths, batch_size, lm.device, max_tokens=budget):
            ids, mask = pad_right([prompts[place].ids[skipped:] for place in places], lm.device)
            spans = [range(before[place].start - skipped, before[place].stop - skipped) for place in places]
            rows = torch.tensor([row for row, span in enumerate(spans) for _ in span])
            at = torch.tensor([token for span in spans for token in span])

            def pick(_key: int, hidden: torch.Tensor, rows: torch.Tensor = rows, at: torch.Tensor = at) -> torch.Tensor:
                return hidden[rows.to(hidden.device), at.to(hidden.device)][None]

            with hook_inputs({0: lm.head}, pick):
                logits = lm.model(input_ids=ids, **_repeat_prefix(prefix, mask)).logits[0]
            for place, part in zip(places, logits.split([len(span) for span in spans]), strict=True):
                found[place] = score(part.float(), place)
            bar.update(len(places))
    if not np.isfinite(found).all():
        raise ValueError("the model's logits are not finite; try dtype float32 or bfloat16.")
    return found


def _repeat_prefix(prefix: Prefix, mask: torch.Tensor) -> dict[str, Any]:
    """Attention mask, and keys and values, for a batch of which ``mask`` (batch, token) tells the real tokens."""
    if not prefix.ids:
        return {"attention_mask": mask, "use_cache": False}
    # A copy, as the pass appends to what it is given.
    cache = copy.deepcopy(prefix.cache)
    cache.batch_repeat_interleave(len(mask))
    full = torch.cat([mask.new_ones(len(mask), len(prefix.ids)), mask], dim=1)
    return {"attention_mask": full, "past_key_values": cache, "use_cache": True}


def _check_lengths(lm: LanguageModel, prompts: Sequence[Prompt]) -> None:
    longest = max((len(prompt.ids) for prompt in prompts), default=0)
    if lm.max_tokens is not None and longest > lm.max_tokens:
        raise ValueError(
            f"a prompt takes {longest} tokens, the model's context window has {lm.max_tokens}; shorten it."
        )
