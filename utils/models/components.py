"""The places in a model where activations are read and changed: residual stream, attention, MLP and heads of a layer.

``resid`` of layer k is the residual stream after block k (0: what enters block 1; the last one before the final norm).
``attn`` and ``mlp`` of layer k are what block k *adds* to it, after post-norms and multipliers, so that
``resid[k-1] + attn[k] + mlp[k] = resid[k]``. ``heads`` of layer k is the input of block k's attention output
projection, one vector a head.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from utils.models.anatomy import Addition, Anatomy
from utils.models.hooks import hook_inputs, hook_outputs, replace_forward
from utils.models.language_model import LanguageModel
from utils.options import Component

Act = Callable[[int, torch.Tensor], torch.Tensor | None]


def component_layers(lm: LanguageModel, component: Component) -> list[int]:
    """The layers that a component has: 0 to L for the residual stream, 1 to L for the parts of a block.

    Left out are blocks whose parts cannot be told, and for heads those that have no attention (LFM2, Qwen3.5, Jamba).
    """
    if component == "resid":
        return list(range(lm.n_layers + 1))
    there = [
        layer
        for layer, parts in enumerate(lm.anatomies, start=1)
        if isinstance(parts, Anatomy) and (parts.has_heads or component != "heads")
    ]
    if not there:
        lm.block_anatomy(1)
        raise ValueError(f"{lm.name} has no component {component}: no block of it has an attention.")
    return there


def component_width(lm: LanguageModel, component: Component, layers: Sequence[int] | None = None) -> int:
    """Nodes of a component: the width of the residual stream, or of all heads side by side at the layers.

    Raises
    ------
    ValueError
        Heads of several widths (Gemma 4).
    """
    if component != "heads":
        return lm.d_model
    chosen = check_layers(lm, component, layers)
    widths = {layer: lm.block_anatomy(layer).head_width for layer in chosen}
    if len(set(widths.values())) > 1 or widths[chosen[0]] % lm.n_heads:
        raise ValueError(f"{lm.name}: the widths of all heads by layer are {widths}; take layers of one width.")
    return widths[chosen[0]]


@contextlib.contextmanager
def hook_component(lm: LanguageModel, component: Component, layers: Sequence[int], act: Act) -> Iterator[None]:
    """Call ``act(layer, value)`` in each forward pass where the component's value is known; what it returns replaces it.

    Parameters
    ----------
    component, layers
        Which values, see the module's docstring.
    act
        Given (batch, token, d_model), for heads (batch, token, n_heads, head_dim). It must not write into its
        argument, which may be the model's own tensor: to keep it, copy it; to change it, return another; to leave
        it, return None.

    Raises
    ------
    ValueError
        An unknown component, a layer that it does not have, or an architecture without such a component.
    """
    with contextlib.ExitStack() as stack:
        for hook in _hooks(lm, component, check_layers(lm, component, layers), act):
            stack.enter_context(hook)
        yield


@contextlib.contextmanager
def start_at(lm: LanguageModel, layer: int, hidden: torch.Tensor) -> Iterator[None]:
    """Skip the first ``layer`` blocks in each forward pass and go on from ``hidden``, (batch, token, d_model).

    The pass must be given token ids of the same shape. Nothing before block ``layer`` + 1 is computed but the
    embedding, so that the effect of a change at a layer costs only the layers above it.
    """
    if not 0 <= layer <= lm.n_layers:
        raise ValueError(f"layer {layer} is out of range; {lm.name} has layers 0 to {lm.n_layers}.")
    returns = lm.anatomy.returns

    def skip(hidden_states: torch.Tensor, *_args: Any, **_kwargs: Any) -> Any:
        return (hidden_states, *[None] * (returns - 1)) if returns else hidden_states

    # Blocks that others take keys from must run; what they pass on is replaced all the same.
    skipped = {} if lm.shares_keys else dict(enumerate(lm.blocks[:layer]))
    with replace_forward(skipped, skip), hook_component(lm, "resid", [layer], lambda _layer, _value: hidden):
        yield


def check_layers(lm: LanguageModel, component: Component, layers: Sequence[int] | None) -> list[int]:
    """The layers in order, all of the component's by default; ValueError for one that it does not have."""
    if component not in ("resid", "attn", "mlp", "heads"):
        raise ValueError(f"unknown component {component!r}; expected resid, attn, mlp or heads.")
    there = component_layers(lm, component)
    chosen = list(there) if layers is None else sorted(set(layers))
    outside = [layer for layer in chosen if layer not in there]
    if outside or not chosen:
        raise ValueError(
            f"layers {outside} are out of range; {lm.name} has layers {_spell(there)} of component {component}."
        )
    return chosen


def _spell(layers: list[int]) -> str:
    gapless = layers == list(range(layers[0], layers[-1] + 1))
    return f"{layers[0]} to {layers[-1]}" if gapless else ", ".join(map(str, layers))


def _hooks(lm: LanguageModel, component: Component, layers: list[int], act: Act) -> Iterator[Any]:
    blocks = lm.blocks
    if component == "resid":
        act = _one_stream(lm, act)
        if 0 in layers:
            yield hook_inputs({0: blocks[0]}, act)
        yield hook_outputs({layer: blocks[layer - 1] for layer in layers if layer}, act)
        return
    if component == "heads":
        parts = {layer: blocks[layer - 1].get_submodule(lm.block_anatomy(layer).projection) for layer in layers}
        yield hook_inputs(parts, _by_head(act, lm.n_heads))
        return
    for layer in layers:
        parts = lm.block_anatomy(layer)
        added = parts.attn_added if component == "attn" else parts.mlp_added
        if added is None:
            raise ValueError(
                f"{lm.name} has no component {component}: its blocks do not add attention and MLP to the residual stream "
                "as they are (they normalise the sum); use resid or heads."
            )
        shapes: dict[int, torch.Size] = {}
        if added.flat:
            yield hook_inputs({layer: blocks[layer - 1]}, partial(_note_shape, shapes))
        module = blocks[layer - 1].get_submodule(added.path)
        yield hook_outputs({layer: module}, _as_added(act, added, shapes))


def _note_shape(shapes: dict[int, torch.Size], layer: int, value: torch.Tensor) -> None:
    shapes[layer] = value.shape


def _one_stream(lm: LanguageModel, act: Act) -> Act:
    """``act``, where what a block passes on is one vector a token; several streams (Gemma 3n, mHC) are refused."""

    def checked(layer: int, value: torch.Tensor) -> torch.Tensor | None:
        if value.dim() != 3 or value.shape[-1] != lm.d_model:
            raise ValueError(
                f"{lm.name} has no component resid: at layer {layer} its blocks pass on {tuple(value.shape)} and not one "
                f"vector of {lm.d_model} a token."
            )
        return act(layer, value)

    return checked


def _by_head(act: Act, n_heads: int) -> Act:
    def by_head(layer: int, value: torch.Tensor) -> torch.Tensor | None:
        changed = act(layer, value.unflatten(-1, (n_heads, -1)))
        return None if changed is None else changed.flatten(-2)

    return by_head


def _as_added(act: Act, added: Addition, shapes: dict[int, torch.Size]) -> Act:
    """``act`` on what is added, where the module's output is multiplied afterwards or has its rows in one list."""

    def as_added(layer: int, value: torch.Tensor) -> torch.Tensor | None:
        seen = value.view(shapes[layer]) if added.flat else value
        changed = act(layer, seen * added.scale if added.scale != 1 else seen)
        if changed is None:
            return None
        changed = changed / added.scale if added.scale != 1 else changed
        return changed.reshape(value.shape)

    return as_added
