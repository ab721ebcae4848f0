"""Numbers read from a model's logits at the tokens of interest of many prompts."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from tqdm.auto import tqdm

from utils.batches import pad_right, repeat_prefix, share_prefix
from utils.models.hooks import hook_inputs
from utils.models.load import LanguageModel
from utils.models.prompts import Prompt
from utils.prompt_batches import batch_rows
from utils.responses.measures import Readout

# Logits that are held at a time on a GPU: 1 GB in float32.
_LOGITS = 1 << 28


def score_prompts(
    lm: LanguageModel,
    readout: Readout,
    *,
    batch_size: int | Literal["auto"] = "auto",
    progress: bool = True,
    name: str = "prompts",
) -> Float[np.ndarray, " prompts"]:
    """The readout's number of every prompt.

    A beginning that all prompts share is run once, and the head runs at the tokens that are read only.

    Raises
    ------
    ValueError
        A prompt longer than the context window, or logits that are not finite.
    """
    check_prompts(lm, readout)
    prompts = readout.prompts
    prefix = share_prefix(lm, [Prompt(prompt.ids, prompt.start - 1, prompt.stop) for prompt in prompts])
    lengths = [len(prompt.ids) - len(prefix.ids) for prompt in prompts]
    found = np.empty(len(prompts))
    with torch.inference_mode(), tqdm(total=len(prompts), desc=name, disable=not progress) as bar:
        for places in batch_rows(lengths, batch_size, lm.device, max_tokens=logits_budget(lm)):
            ids, mask = pad_right([prompts[place].ids[len(prefix.ids) :] for place in places], lm.device)
            options = repeat_prefix(prefix, mask)
            found[places] = read_batch(lm, readout, places, ids, skipped=len(prefix.ids), **options)
            bar.update(len(places))
    check_finite(found)
    return found


def read_batch(
    lm: LanguageModel, readout: Readout, places: Sequence[int], ids: torch.Tensor, *, skipped: int, **options: Any
) -> list[float]:
    """The readout's numbers of a batch, one a row of ``ids``.

    Parameters
    ----------
    places
        Which prompt each row is.
    ids
        (row, token) without the ``skipped`` first tokens of the prompts.
    options
        What else the forward pass is given: an attention mask, keys and values of the skipped tokens.
    """
    prompts = [readout.prompts[place] for place in places]
    # The logits of a token are those of the place before it.
    spans = [range(prompt.start - 1 - skipped, prompt.stop - 1 - skipped) for prompt in prompts]
    rows = torch.tensor([row for row, span in enumerate(spans) for _ in span])
    at = torch.tensor([token for span in spans for token in span])

    def pick(_key: int, hidden: torch.Tensor) -> torch.Tensor:
        return hidden[rows.to(hidden.device), at.to(hidden.device)][None]

    with hook_inputs({0: lm.head}, pick):
        logits = lm.model(input_ids=ids, **options).logits[0]
    parts = logits.split([len(span) for span in spans])
    return [readout.score(part.float(), place) for part, place in zip(parts, places, strict=True)]


def logits_budget(lm: LanguageModel) -> int | None:
    """Tokens a forward pass, where the memory for their logits bounds it."""
    return None if lm.device.type == "cpu" else max(256, _LOGITS // lm.embedding.num_embeddings)


def check_prompts(lm: LanguageModel, readout: Readout) -> None:
    """Refuse prompts that do not fit into the model's context window."""
    longest = max((len(prompt.ids) for prompt in readout.prompts), default=0)
    if lm.max_tokens is not None and longest > lm.max_tokens:
        raise ValueError(
            f"a prompt takes {longest} tokens, the model's context window has {lm.max_tokens}; shorten it."
        )


def check_finite(found: np.ndarray) -> None:
    """Refuse what came from logits that are not finite."""
    if not np.isfinite(found).all():
        raise ValueError("the model's logits are not finite; try dtype float32 or bfloat16.")
