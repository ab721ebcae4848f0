"""The linear layers of a model: which of its weight matrices a mask can cover, and which it leaves alone.

Covered is what multiplies a vector a token by a matrix: ``nn.Linear`` and its subclasses, fused projections among them
(a row of the matrix is one output, whatever the outputs are split into afterwards), and the transposed ``Conv1D`` of
GPT-2. Left alone, and named in :func:`coverage`, are routers and the experts of a mixture of experts, which
transformers keep in one block of three dimensions and whose tokens are sorted by expert before they are multiplied,
and everything outside the decoder blocks. Norms and biases are vectors and are left alone as well.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import pandas as pd
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from utils.models.components import check_layers
from utils.models.language_model import LanguageModel
from utils.options import MaskScope, Part

logger = logging.getLogger(__name__)

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Linear:
    """One weight matrix.

    Attributes
    ----------
    name
        Path of the parameter in the model, ending in ``.weight``.
    layer
        The block it lies in, 1 to L; L + 1 for the language-modelling head.
    part
        ``attention``, ``mlp`` (whatever of a block is not its attention) or ``head``.
    shape
        (out, in): one row an output.
    transposed
        Whether the model holds it as (in, out).
    """

    name: str
    layer: int
    part: Part
    shape: tuple[int, int]
    transposed: bool = False

    @property
    def module(self) -> str:
        """Path of the module."""
        return self.name.removesuffix(".weight")

    def weight(self, lm: LanguageModel) -> torch.Tensor:
        """The model's own weights, seen as (out, in)."""
        weight = lm.model.get_parameter(self.name).detach()
        return weight.T if self.transposed else weight


def find_linears(
    lm: LanguageModel, *, scope: MaskScope = "all", layers: Sequence[int] | None = None, head: bool = False
) -> list[Linear]:
    """The linear layers that a mask can cover, in the order of the model; what is left alone is logged.

    Parameters
    ----------
    scope
        ``all``, or those of the attention or of the MLP only.
    layers
        Blocks, 1 to L; all by default.
    head
        Also the language-modelling head, where it has weights of its own.

    Raises
    ------
    ValueError
        Quantised weights, weights that lie on no device, nothing to cover, a head tied to the embedding, or layers
        that the model does not have.
    """
    if scope not in ("all", "attention", "mlp"):
        raise ValueError(f"unknown scope {scope!r}; expected all, attention or mlp.")
    _refuse_unusable(lm)
    chosen = check_layers(lm, "mlp", range(1, lm.n_layers + 1) if layers is None else layers)
    found, left = [], {}
    for layer in chosen:
        covered, others = _sort_block(lm, layer)
        found += [linear for linear in covered if scope in ("all", linear.part)]
        left |= {name: what for name, (part, what) in others.items() if scope in ("all", part)}
    if left:
        logger.warning("%s: left alone: %s", lm.name, "; ".join(f"{name} ({what})" for name, what in left.items()))
    if not found:
        names = ", ".join(left) or "no matrices at all"
        raise ValueError(f"{lm.name} has no linear layer that a mask covers in scope {scope!r}: there are {names}.")
    return [*found, _find_head(lm)] if head else found


def coverage(lm: LanguageModel) -> pd.DataFrame:
    """What masks cover and what they leave alone, one row a kind of matrix.

    Returns
    -------
    DataFrame
        ``matrix`` (path within its block, or in the model), ``kind`` (class of its module), ``part``, ``layers`` (how
        many have it), ``weights`` (in all) and ``covered``.
    """
    rows = []
    for layer in range(1, lm.n_layers + 1):
        block, (covered, others) = lm.blocks[layer - 1], _sort_block(lm, layer)
        ours = {id(lm.model.get_parameter(linear.name)) for linear in covered}
        for name, weight in block.named_parameters():
            if id(weight) in ours or name in others:
                owner = type(block.get_submodule(name.rpartition(".")[0])).__name__
                rows.append((name, owner, _part(lm, layer, name), weight.numel(), id(weight) in ours))
    table = pd.DataFrame(rows, columns=["matrix", "kind", "part", "weights", "covered"])
    kinds = table.groupby(["matrix", "kind", "part", "covered"], sort=False)["weights"].agg(["size", "sum"])
    table = kinds.reset_index().rename(columns={"size": "layers", "sum": "weights"})
    in_blocks = {id(weight) for weight in lm.blocks.parameters()}
    outside = [
        {"matrix": name, "kind": "outside the blocks", "layers": 1, "weights": weight.numel(), "covered": False}
        for name, weight in lm.model.named_parameters()
        if id(weight) not in in_blocks and weight.dim() > 1
    ]
    table = pd.concat([table, pd.DataFrame(outside)], ignore_index=True) if outside else table
    return table.fillna({"part": ""})[["matrix", "kind", "part", "layers", "weights", "covered"]]


def _sort_block(lm: LanguageModel, layer: int) -> tuple[list[Linear], dict[str, tuple[Part, str]]]:
    """The linear layers of a block, and what else of it has more than one dimension: its part and why it is left."""
    block = lm.blocks[layer - 1]
    paths = {id(module): path for path, module in lm.model.named_modules()}
    covered, left = [], {}
    for name, weight in block.named_parameters():
        if weight.dim() < 2:
            continue
        owner, _, own_name = name.rpartition(".")
        module, part = block.get_submodule(owner), _part(lm, layer, name)
        if weight is lm.embedding.weight:
            left[name] = (part, "tied to the embedding")
        elif own_name == "weight" and isinstance(module, nn.Linear | Conv1D):
            transposed = isinstance(module, Conv1D)
            shape = cast(tuple[int, int], tuple(weight.shape[::-1] if transposed else weight.shape))
            covered.append(Linear(f"{paths[id(module)]}.weight", layer, part, shape, transposed))
        else:
            left[name] = (part, f"{type(module).__name__}, {weight.dim()}-D")
    return covered, left


def _part(lm: LanguageModel, layer: int, name: str) -> Part:
    return "attention" if name.startswith(f"{lm.block_anatomy(layer).attention}.") else "mlp"


def _find_head(lm: LanguageModel) -> Linear:
    head = lm.head
    if not isinstance(head, nn.Linear) or head.weight is lm.embedding.weight:
        raise ValueError(f"the head of {lm.name} has no weights of its own (tied to the embedding); leave it out.")
    name = next(name for name, weight in lm.model.named_parameters() if weight is head.weight)
    return Linear(name, lm.n_layers + 1, "head", cast(tuple[int, int], tuple(head.weight.shape)))


def _refuse_unusable(lm: LanguageModel) -> None:
    advice = "masks need plain weights: load the model in float32, float16 or bfloat16"
    if getattr(lm.model, "hf_quantizer", None) is not None:
        raise ValueError(f"the weights of {lm.name} are quantised; {advice}.")
    for name, weight in lm.model.named_parameters():
        if weight.dtype not in _DTYPES:
            kind = str(weight.dtype).removeprefix("torch.")
            raise ValueError(f"{name} of {lm.name} is {kind}, a quantised weight; {advice}.")
        if weight.is_meta:
            raise ValueError(f"{name} of {lm.name} lies on no device (offloaded); load the model whole on one device.")
