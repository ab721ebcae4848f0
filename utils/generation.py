"""What a model answers in its own words."""

from typing import Any, cast

import torch
from transformers import GenerationConfig

from utils.models.load import LanguageModel
from utils.models.prompts import encode_texts, render_chat


def generate_answer(lm: LanguageModel, question: str, *, system: str | None = None, max_tokens: int = 60) -> str:
    """The model's greedy answer to a question, without its end-of-turn mark.

    Parameters
    ----------
    max_tokens
        Of the answer, at most.

    Raises
    ------
    ValueError
        ``max_tokens`` below 1, or more than the context window holds.
    """
    text = render_chat(lm.tokenizer, question, system=system)
    ids = encode_texts(lm.tokenizer, [text], [(0, len(text))])[0].ids
    room = None if lm.max_tokens is None else lm.max_tokens - len(ids)
    if max_tokens < 1 or (room is not None and max_tokens > room):
        raise ValueError(f"max_tokens is {max_tokens}; expected from 1 to the {room} that the context window has left.")
    given = torch.tensor([ids], device=lm.device)
    # The model's own ends of a turn, and nothing else of its sampling settings.
    ends = getattr(lm.model.generation_config, "eos_token_id", None) or lm.tokenizer.eos_token_id
    pad = lm.tokenizer.pad_token_id if lm.tokenizer.pad_token_id is not None else lm.tokenizer.eos_token_id
    settings = GenerationConfig(do_sample=False, max_new_tokens=max_tokens, eos_token_id=ends, pad_token_id=pad)
    with torch.inference_mode():
        whole = cast(Any, lm.model).generate(given, attention_mask=torch.ones_like(given), generation_config=settings)
    return str(lm.tokenizer.decode(whole[0, len(ids) :], skip_special_tokens=True)).strip()
