"""The model's own logits at one token of each prompt."""

from typing import Any

import torch
from jaxtyping import Float, Int

from utils.models.hooks import hook_inputs, hook_outputs
from utils.models.load import LanguageModel

# A power of two, small enough for any cap on the logits to be linear there and exact in every dtype.
_SMALL = 2.0**-10


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
        return hidden[rows.to(hidden.device), place.to(hidden.device)][:, None]

    with hook_inputs({0: lm.head}, pick):
        return lm.model(input_ids=ids, **{"use_cache": False, **options}).logits[:, 0]


def logit_scale(lm: LanguageModel) -> float:
    """What the model multiplies the head's output with (Granite, Cohere); a cap on the logits (Gemma 2) is left out.

    Measured: the head's output is replaced by small numbers, where a cap does nothing, and what comes out is compared.
    """
    ids = torch.zeros((1, 1), dtype=torch.long, device=lm.device)
    with torch.inference_mode(), hook_outputs({0: lm.head}, lambda _key, out: torch.full_like(out, _SMALL)):
        logits = lm.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        return float(logits.float().mean()) / _SMALL
