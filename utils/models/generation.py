"""Continuing prompts: greedy or sampled, in batches, with nothing of the checkpoint's own sampling settings."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import TextStreamer


def continue_ids(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Sequence[int]],
    *,
    device: torch.device,
    max_tokens: int,
    temperature: float = 0.0,
    rng: int = 0,
    use_cache: bool = True,
    on_text: Callable[[str], object] | None = None,
) -> list[list[int]]:
    """The ids that the model adds to each row of ids, up to its end of a turn.

    Parameters
    ----------
    rows
        Prompts of a batch. Padding goes on the left, where no real token sees it.
    temperature
        0: the most likely token each time. Above 0: drawn from the whole distribution, with ``rng`` as the seed.
    on_text
        Called with each new piece of text as it comes; for one row.
    """
    width = max(map(len, rows))
    # The model's own ends of a turn; the rest of its generation config, such as penalties, is not taken.
    ends = _ends(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends[0] if ends else 0)
    ids = torch.full((len(rows), width), cast(int, pad), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, width - len(row) :] = torch.tensor(list(row))
        mask[place, width - len(row) :] = 1
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
    settings = GenerationConfig(
        **{"do_sample": False, **sampling},
        max_new_tokens=max_tokens,
        eos_token_id=ends or None,
        pad_token_id=pad,
        use_cache=use_cache,
    )
    streamer = None if on_text is None else _Streamer(tokenizer, on_text)
    with torch.inference_mode(), _without_own_settings(model), torch.random.fork_rng(enabled=bool(temperature)):
        if temperature:
            torch.manual_seed(rng)
        whole = cast(Any, model).generate(
            ids.to(device), attention_mask=mask.to(device), generation_config=settings, streamer=streamer
        )
    return [_until(row, set(ends)) for row in whole[:, width:].tolist()]


class _Streamer(TextStreamer):
    def __init__(self, tokenizer: PreTrainedTokenizerBase, on_text: Callable[[str], object]):
        super().__init__(cast(Any, tokenizer), skip_prompt=True, skip_special_tokens=True)
        self._on_text = on_text

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self._on_text(text)


@contextlib.contextmanager
def _without_own_settings(model: PreTrainedModel) -> Iterator[None]:
    # What a given config leaves open, transformers would fill in from the model's own.
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def _ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ends = getattr(model.generation_config, "eos_token_id", None)
    ends = tokenizer.eos_token_id if ends is None else ends
    return (
        []
        if ends is None
        else [cast(int, end) for end in ends]
        if isinstance(ends, list | tuple)
        else [cast(int, ends)]
    )


def _until(ids: list[int], ends: set[int]) -> list[int]:
    stop = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    return ids[:stop]
