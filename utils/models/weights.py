"""Whether a loaded model is the one in its files: no weight missing, made up, of another shape, or not a number."""

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from utils.models.language_model import LanguageModel

logger = logging.getLogger(__name__)


def check_numbers(lm: LanguageModel, loading: Mapping[str, Any]) -> None:
    """Refuse weights of another shape than the configuration's, weights that are not finite, and tokens without a weight.

    Parameters
    ----------
    loading
        What ``from_pretrained(..., output_loading_info=True)`` tells.

    Raises
    ------
    ValueError
        Which weights, and what to do.
    """
    if mismatched := sorted(loading.get("mismatched_keys") or []):
        key, there, wanted = mismatched[0]
        raise ValueError(
            f"{lm.name}: {_count(len(mismatched), 'weight')} of the file do not have the shape that config.json asks for: "
            f"{key} ({tuple(there)}, not {tuple(wanted)}); the two are not of one model: get both anew from one place."
        )
    for key, weight in lm.model.named_parameters():
        if not weight.is_meta and weight.is_floating_point() and not torch.isfinite(weight).all():
            raise ValueError(
                f"{lm.name}: the weights hold numbers that are not finite, in {key}; the file is damaged (get it anew), or they "
                f"are too large for {str(weight.dtype).removeprefix('torch.')} (give another dtype)."
            )
    # Tokens that were added later need not have a weight.
    if lm.tokenizer.vocab_size > (n_tokens := lm.embedding.num_embeddings):
        raise ValueError(
            f"{lm.name}: the tokenizer has {lm.tokenizer.vocab_size} tokens and the embedding {n_tokens}; it is that of "
            "another model: take the one that belongs to the weights."
        )


def check_complete(lm: LanguageModel, loading: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that lacks weights (they would be random), or has blocks that the configuration lacks.

    Tied weights are not missing. Weights of other parts, such as a vision tower, are named and left.

    Raises
    ------
    ValueError
        Which weights, and what to do.
    """
    if missing := sorted(loading.get("missing_keys") or []):
        raise ValueError(
            f"{lm.name}: the checkpoint lacks {_count(len(missing), 'weight')} that config.json asks for ({_list(missing)}), "
            "which would be random; get a complete checkpoint, or the config.json that belongs to it."
        )
    unexpected = sorted(loading.get("unexpected_keys") or [])
    path = next(name for name, module in lm.model.named_modules() if module is lm.blocks)
    starts = (f"{path}.", f"{path.partition('.')[2]}.")  # a checkpoint may leave out the name of the whole
    further = [key for key in unexpected if _block(key, starts) >= lm.n_layers]
    if further:
        n_blocks = max(_block(key, starts) for key in further) + 1
        raise ValueError(
            f"{lm.name}: the checkpoint has weights of {n_blocks} blocks and config.json asks for {lm.n_layers} "
            f"({_list(further)} would not be used); take the config.json that belongs to the weights."
        )
    if unexpected:
        parts = Counter(key.partition(".")[0] for key in unexpected)
        named = ", ".join(f"{part} ({_count(n, 'weight')})" for part, n in parts.most_common())
        logger.warning("%s: not used, as the language model has no place for them: %s", lm.name, named)


def _block(key: str, starts: tuple[str, ...]) -> int:
    """The number of the block that a weight belongs to; -1 for none."""
    for start in starts:
        number = key.removeprefix(start).partition(".")[0]
        if start != "." and key.startswith(start) and number.isdigit():
            return int(number)
    return -1


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _list(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
