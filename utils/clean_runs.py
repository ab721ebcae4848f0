"""One prompt through the model as it is, with everything kept that a patch needs of it."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float

from utils.models.components import component_layers, hook_component
from utils.models.forward import logits_at
from utils.models.load import LanguageModel
from utils.models.prompts import Prompt
from utils.options import Component


@dataclass(frozen=True)
class CleanRun:
    """A run without any change.

    Attributes
    ----------
    values
        ``values[component][layer]``: (token, d_model), for heads (token, n_heads, head_dim), in the model's dtype and
        on the device of the layer.
    logits
        (vocabulary,) logits behind the last token.
    """

    prompt: Prompt
    values: dict[Component, dict[int, torch.Tensor]]
    logits: Float[torch.Tensor, " vocabulary"]


def run_clean(lm: LanguageModel, prompt: Prompt, components: Sequence[Component]) -> CleanRun:
    """Run one prompt and keep the values of components at every layer and token."""
    values: dict[Component, dict[int, torch.Tensor]] = {component: {} for component in components}

    def keep(component: Component, layer: int, value: torch.Tensor) -> None:
        values[component][layer] = value[0].clone()

    ids = torch.tensor([prompt.ids], device=lm.device)
    with torch.inference_mode(), ExitStack() as stack:
        for component in values:
            layers = component_layers(lm, component)
            stack.enter_context(hook_component(lm, component, layers, partial(keep, component)))
        place = torch.tensor([len(prompt.ids) - 1])
        logits = logits_at(lm, ids, place, attention_mask=torch.ones_like(ids))[0]
    return CleanRun(prompt, values, logits)
