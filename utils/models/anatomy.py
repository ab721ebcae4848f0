"""Where the parts of a decoder-only model are, found by watching a small forward pass and not by their names.

Two rows of tokens that differ only in their first token go through the model. The attention is the part of a
block where later tokens begin to tell the rows apart although its input does not; the MLP is the other part with
matrices.
What each *adds to the residual stream* is checked by arithmetic: input + attention + MLP must be the block's output.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from utils.models.hooks import first_tensor, hook_inputs, trace_calls

# In elevenths of the vocabulary, so that ordinary words are among them and not only control tokens.
_TOKENS = [[5, 2, 7, 3], [9, 2, 7, 3]]


@dataclass(frozen=True)
class Addition:
    """What is added to the residual stream: ``scale`` times the output of the module at ``path`` within its block.

    ``flat``: the module sees the tokens of all rows in one list, (batch * token, width).
    """

    path: str
    scale: float
    flat: bool = False


@dataclass(frozen=True)
class Anatomy:
    """Paths of the parts, those of a block relative to it.

    Attributes
    ----------
    attention
        The attention module.
    projection
        Its output projection, whose input holds the heads side by side.
    mlp
        The MLP or mixture of experts; None where its layers lie in the block itself (OPT).
    attn_added, mlp_added
        What the two add to the residual stream: after post-norms and multipliers. None where the block normalises
        the sum, so that no such parts exist.
    parallel
        Whether the MLP reads the same residual stream as the attention.
    final_norm
        Path in the model of the norm between the last block and the head; None where there is none.
    returns
        Length of the tuple that a block returns; 0 where it returns the bare tensor.
    has_heads
        Whether it is an attention; a recurrent, linear or convolutional mixer of tokens stands in its place otherwise.
    head_width, qkv_width
        Input width of ``projection``, and the summed output widths of the matrices before it.
    """

    attention: str
    projection: str
    mlp: str | None
    attn_added: Addition | None
    mlp_added: Addition | None
    parallel: bool
    final_norm: str | None
    returns: int
    has_heads: bool
    head_width: int
    qkv_width: int


@dataclass(frozen=True)
class _Call:
    """One module's run: the tensors themselves, and copies, as some models go on to add to them in place."""

    name: str
    given: torch.Tensor | None
    output: torch.Tensor
    input_copy: torch.Tensor | None
    copy: torch.Tensor
    returns: int


def find_blocks(model: nn.Module) -> nn.ModuleList:
    """Find the decoder blocks: the outermost list of as many modules with parts as the config has layers.

    They need not be of one class: a hybrid alternates attention and recurrent blocks (Jamba).

    Raises
    ------
    ValueError
        No such list, with what was looked for.
    """
    n_layers = cast(PreTrainedModel, model).config.get_text_config().num_hidden_layers
    lists = [
        (path.count("."), path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == n_layers
        and all(any(block.children()) and any(True for _ in block.parameters()) for block in module)
    ]
    if not lists:
        raise ValueError(
            f"{type(model).__name__} has an unknown layout: looked for a ModuleList of {n_layers} modules with parts and "
            "weights (the decoder blocks) and found none."
        )
    return min(lists, key=lambda entry: entry[:2])[2]


def find_anatomies(model: nn.Module) -> tuple[Anatomy | ValueError, ...]:
    """Find the parts of each block from one forward pass over eight tokens, in which all are given the first one's input.

    Returns
    -------
    tuple
        One entry a block; where a part cannot be told, the error that says what was looked for.
    """
    blocks = find_blocks(model)
    inner, outer = _trace(model, blocks)
    found: list[Anatomy | ValueError] = []
    for i, block in enumerate(blocks):
        try:
            found.append(_find_parts(model, block, inner[i], outer, has_heads=_has_heads(model, i)))
        except ValueError as error:
            found.append(error)
    return tuple(found)


def choose_anatomy(found: Sequence[Anatomy | ValueError]) -> Anatomy:
    """Of the first block with an attention, else of the first whose parts can be told; raises the first block's error."""
    known = [parts for parts in found if isinstance(parts, Anatomy)]
    if not known:
        raise cast(ValueError, found[0])
    return next((parts for parts in known if parts.has_heads), known[0])


def find_anatomy(model: nn.Module) -> Anatomy:
    """Find the parts of a model's blocks, see :func:`find_anatomies` and :func:`choose_anatomy`."""
    return choose_anatomy(find_anatomies(model))


def _has_heads(model: nn.Module, block: int) -> bool:
    """Whether the config calls the block's mixer of tokens an attention; so it is where there is but one kind."""
    config = cast(PreTrainedModel, model).config.get_text_config()
    named = [getattr(config, name, None) for name in ("layer_types", "layers_block_type")]
    kinds = next((kinds for kinds in named if isinstance(kinds, list) and len(kinds) > block), None)
    return kinds is None or ("attention" in kinds[block] and "linear" not in kinds[block])


def _find_parts(
    model: nn.Module, block: nn.Module, inner: list[_Call], outer: list[_Call], *, has_heads: bool
) -> Anatomy:
    whole = inner[-1]
    attention = _find_attention(model, inner)
    before = [call for call in inner if call.name.startswith(f"{attention.name}.") and _is_matrix(block, call.name)]
    width = whole.copy.shape[-1]
    projections = [call for call in before if call.input_copy is not None and call.copy.shape[-1] == width]
    if not projections:
        _refuse(model, f"a matrix inside {attention.name} whose output is as wide as the residual stream")
    projection = projections[-1]
    children = [
        call
        for call in inner
        if call.name and "." not in call.name and call.name != attention.name and _has_matrix(block, call.name)
    ]
    if not children:
        _refuse(model, "an MLP, a part of the block with matrices that is not its attention")
    mlp = children[-1]
    last_matrix = [call for call in inner if call.name.startswith(f"{mlp.name}.") and _is_matrix(block, call.name)][-1:]
    added = _fit_sum(
        whole,
        [_follow(attention, inner, block), attention, projection],
        [_follow(mlp, inner, block), mlp, *last_matrix],
        model,
    )
    return Anatomy(
        attention=attention.name,
        projection=projection.name,
        mlp=mlp.name if len(children) == 1 else None,
        attn_added=added[0],
        mlp_added=added[1],
        parallel=_difference(children[0].input_copy) < 0.1 * _difference(attention.copy),
        final_norm=_find_final_norm(model, outer),
        returns=whole.returns,
        has_heads=has_heads,
        head_width=cast(torch.Tensor, projection.input_copy).shape[-1],
        qkv_width=sum(call.copy.shape[-1] for call in before if call is not projection),
    )


def find_position_limits(model: nn.Module) -> list[int]:
    """How many tokens each embedding of positions holds, found as what is looked up by consecutive numbers."""
    outside = {id(module) for block in find_blocks(model) for module in block.modules()}
    tables = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and id(module) not in outside
    }
    limits: list[int] = []

    def keep(name: str, given: Any, _output: Any) -> None:
        places = given.reshape(-1).tolist() if isinstance(given, torch.Tensor) and not given.is_floating_point() else []
        n, first = len(_TOKENS[0]), places[0] if places else 0
        if places[:n] == list(range(first, first + n)):
            limits.append(tables[name].num_embeddings - first)

    with torch.inference_mode(), trace_calls(tables, keep):
        model(input_ids=_small_input(model), use_cache=False)
    return limits


def _small_input(model: nn.Module) -> torch.Tensor:
    embedding = cast(nn.Embedding, cast(PreTrainedModel, model).get_input_embeddings())
    ids = torch.tensor(_TOKENS) * embedding.num_embeddings // 11
    # Where accelerate moves weights about, it moves the ids to them as well.
    return ids if embedding.weight.is_meta else ids.to(embedding.weight.device)


def _trace(model: nn.Module, blocks: nn.ModuleList) -> tuple[list[list[_Call]], list[_Call]]:
    """Calls inside each block (the block itself, named "", last), and outside of all blocks with the last block."""
    inner: list[list[_Call]] = [[] for _ in blocks]
    outer: list[_Call] = []
    first: list[torch.Tensor] = []

    def give_first(_block: int, value: torch.Tensor) -> torch.Tensor | None:
        # Behind the first attention all tokens differ between the rows, and the next one would not show.
        if first:
            return first[0].to(value.device).clone()
        first.append(value.detach().clone())
        return None

    in_blocks = {id(module) for block in blocks for module in block.modules()}
    names = {name: module for name, module in model.named_modules() if id(module) not in in_blocks and name}
    names["(last block)"] = blocks[-1]

    def record(calls: list[_Call]) -> Any:
        def keep(name: str, given: Any, output: Any) -> None:
            tensor = first_tensor(output) if isinstance(output, torch.Tensor | tuple | list) else None
            if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
                return
            given = given if isinstance(given, torch.Tensor) and given.is_floating_point() else None
            copies = [None if x is None else _rows(x.detach().clone()) for x in (given, tensor)]
            returns = 0 if isinstance(output, torch.Tensor) else len(output)
            calls.append(_Call(name, given, tensor, copies[0], cast(torch.Tensor, copies[1]), returns))

        return keep

    with torch.inference_mode(), ExitStack() as stack:
        stack.enter_context(hook_inputs(dict(enumerate(blocks)), give_first))
        for block, calls in zip(blocks, inner, strict=True):
            stack.enter_context(trace_calls(dict(block.named_modules()), record(calls)))
        stack.enter_context(trace_calls(names, record(outer)))
        model(input_ids=_small_input(model), use_cache=False)
    return inner, outer


def _rows(x: torch.Tensor) -> torch.Tensor:
    """(B, T, d) in float64, also for parts that see the tokens of all rows in one list."""
    shape = (len(_TOKENS), len(_TOKENS[0]), x.shape[-1])
    return x.to("cpu", torch.float64).reshape(shape) if x.numel() == shape[0] * shape[1] * shape[2] else x.cpu()


def _difference(x: torch.Tensor | None) -> float:
    """How far the two rows differ from the second token on, relative to their size."""
    if x is None or x.dim() != 3 or len(x) != len(_TOKENS):
        return float("nan")
    return ((x[0, 1:] - x[1, 1:]).norm() / x[0, 1:].norm().clamp_min(1e-30)).item()


def _find_attention(model: nn.Module, inner: list[_Call]) -> _Call:
    """The part that raises the difference most; all others, given rows that agree, differ by rounding at most."""
    rises = {
        call.name: (_difference(call.copy) / (_difference(call.input_copy) + 1e-12), call)
        for call in inner[:-1]
        if "." not in call.name and _difference(call.copy) > 1e-6 and call.input_copy is not None
    }
    best = max(rises.values(), key=lambda entry: entry[0], default=None)
    if best is None or best[0] < 1e3:
        _refuse(model, "an attention, a part of the block where a token begins to depend on earlier ones")
    return cast(tuple[float, _Call], best)[1]


def _follow(start: _Call, inner: list[_Call], block: nn.Module) -> _Call:
    """The last of the parts that take up a part's output and return it changed: norms after the attention or MLP."""
    end, current = start, start.output
    for call in inner[inner.index(start) + 1 :]:
        takes = (
            call.given is not None and call.given.data_ptr() == current.data_ptr() and call.copy.shape == end.copy.shape
        )
        if "." in call.name or not call.name or not takes or _has_matrix(block, call.name):
            continue
        current = call.output
        if not torch.equal(call.copy, end.copy):
            end = call
    return end


def _fit_sum(whole: _Call, attns: list[_Call], mlps: list[_Call], model: nn.Module) -> tuple[Addition | None, ...]:
    """Which outputs, times which constants, add up to what the block adds; none where no choice does."""
    gain = (whole.copy - cast(torch.Tensor, whole.input_copy)).reshape(-1)
    tolerance = 16 * torch.finfo(whole.output.dtype).eps * whole.copy.abs().max()
    for attn, mlp in product(attns, mlps):
        if not attn.copy.shape == mlp.copy.shape == whole.copy.shape:
            continue
        parts = torch.stack([attn.copy.reshape(-1), mlp.copy.reshape(-1)], dim=1)
        fitted = torch.linalg.lstsq(parts, gain[:, None]).solution[:, 0]
        scales = torch.tensor([_nearest(float(scale), model) for scale in fitted], dtype=parts.dtype)
        if (parts @ scales - gain).abs().max() <= tolerance:
            return tuple(
                Addition(call.name, float(scale), call.output.dim() == 2)
                for call, scale in zip((attn, mlp), scales, strict=True)
            )
    return None, None


def _nearest(fitted: float, model: nn.Module) -> float:
    """The fitted factor without its rounding error: 1, or a number of the config, where there is one so near."""
    config = cast(PreTrainedModel, model).config.get_text_config().to_dict()
    known = [1.0, *(value for value in config.values() if isinstance(value, float))]
    best = min(known, key=lambda value: abs(value - fitted))
    return best if abs(best - fitted) <= 0.01 * abs(fitted) else fitted


def _find_final_norm(model: nn.Module, outer: list[_Call]) -> str | None:
    at = next(i for i, call in enumerate(outer) if call.name == "(last block)")
    last = outer[at]
    for call in outer[at + 1 :]:
        if (
            call.input_copy is not None
            and call.copy.shape == last.copy.shape
            and torch.equal(call.input_copy, last.copy)
            and not _has_matrix(model, call.name)
        ):
            return call.name
    return None


def _is_matrix(block: nn.Module, name: str) -> bool:
    weight = getattr(block.get_submodule(name), "weight", None)
    return isinstance(weight, torch.Tensor) and weight.dim() == 2


def _has_matrix(block: nn.Module, name: str) -> bool:
    return any(weight.dim() > 1 for weight in block.get_submodule(name).parameters())


def _refuse(model: nn.Module, looked_for: str) -> None:
    raise ValueError(f"{type(model).__name__} has an unknown layout: looked for {looked_for}, and found none.")
