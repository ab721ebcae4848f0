"""Changing nodes of the residual stream: ablate, patch and steer them, at chosen tokens, in any forward pass.

An :class:`Intervention` says what becomes of the residual stream at one layer; :func:`intervene` carries it out in
whatever runs inside it, a forward pass or ``generate``, and leaves the model as it was.
"""

import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float

from utils.models.components import check_layers, hook_component
from utils.models.language_model import LanguageModel
from utils.nodes.sets import NodeSet
from utils.options import Scope
from utils.responses.measures import Readout

Nodes = NodeSet | Collection[int] | np.ndarray


@dataclass(frozen=True, eq=False)
class Intervention:
    """What becomes of the residual stream h at one layer: first some of it is overwritten or capped, then something is added.

    Attributes
    ----------
    layer
        Numbered as everywhere; layer 0 is what enters block 1.
    nodes
        (n,) nodes that take their value from ``values``; None for none.
    axis
        (d_model,) unit vector along which h takes its place from ``values`` or keeps it inside ``limits``; None for none.
    values
        (d_model,), or (row, d_model) with one row for each row of the batch.
    added
        (d_model,) added to h; None for nothing.
    limits
        Least and largest place along ``axis``; None for none. Tokens that lie inside stay as they are, bit for bit.
    """

    layer: int
    nodes: np.ndarray | None = None
    axis: np.ndarray | torch.Tensor | None = None
    values: np.ndarray | torch.Tensor | None = None
    added: np.ndarray | torch.Tensor | None = None
    limits: tuple[float, float] | None = None

    def apply(
        self,
        hidden: Float[torch.Tensor, "row token d"],
        tokens: Bool[torch.Tensor, "row token"],
        *,
        rows: Sequence[int] | None = None,
    ) -> Float[torch.Tensor, "row token d"]:
        """The residual stream with the change at ``tokens``; ``rows`` tells which rows of ``values`` belong to those of h."""
        changed = hidden
        if self.values is not None and (self.axis is not None or (self.nodes is not None and len(self.nodes))):
            values = torch.as_tensor(self.values).to(hidden)
            if values.dim() == 2:
                values = (values if rows is None else values[list(rows)])[:, None]
                if len(values) != len(hidden):
                    raise ValueError(f"values of {len(values)} rows were given to a batch of {len(hidden)}.")
            if self.axis is not None:
                axis = torch.as_tensor(self.axis).to(hidden)
                changed = changed + ((values - changed) @ axis)[..., None] * axis
            else:
                changed = changed.clone()
                at = torch.as_tensor(self.nodes, device=hidden.device)
                changed[..., at] = values[..., at].expand(*changed.shape[:-1], -1)
        if self.limits is not None and self.axis is not None:
            axis = torch.as_tensor(self.axis).to(hidden)
            place = (changed.float() @ axis.float())[..., None]  # in half precision the sum would be coarse
            capped = place.clamp(*self.limits)
            changed = torch.where(capped == place, changed, changed + (capped - place).to(hidden) * axis)
        if self.added is not None:
            changed = changed + torch.as_tensor(self.added).to(hidden)
        return torch.where(tokens.to(hidden.device)[..., None], changed, hidden)


def ablate(layer: int, nodes: Nodes, values: Float[np.ndarray, "... d"]) -> Intervention:
    """Take from nodes what they say of the input at hand.

    Parameters
    ----------
    layer
        Where.
    nodes
        (node, sign) or nodes; signs do not matter here.
    values
        What the nodes are set to: (d_model,), such as the mean over the background, or (row, d_model), such as another
        statement for each row of the batch (resampling).

    Raises
    ------
    ValueError
        A node that ``values`` does not have.
    """
    return Intervention(layer, nodes=_node_index(nodes, values.shape[-1]), values=values)


def patch_nodes(layer: int, nodes: Nodes, values: Float[np.ndarray, "row d"]) -> Intervention:
    """Give nodes the values of a matched run, one row of ``values`` for each row of the batch."""
    return ablate(layer, nodes, values)


def steer(
    layer: int,
    nodes: NodeSet,
    spread: Float[np.ndarray, " d"],
    *,
    strength: float,
    norm: float,
) -> Intervention:
    """Push nodes to their side: add a multiple of their signed spreads.

    Parameters
    ----------
    nodes
        (node, sign).
    spread
        Standard deviation of each node over the background.
    strength
        Length of what is added, in units of ``norm``; below 0 it pushes to the other side. Sets of any size are pushed
        equally far in all.
    norm
        Length of a usual residual stream there, such as its mean over the background.

    Raises
    ------
    ValueError
        A node that ``spread`` does not have, or one without a side.
    """
    index = _node_index(nodes, len(spread))
    sign = np.array([sign for _, sign in sorted(nodes)], dtype=float)
    if (sign == 0).any():
        raise ValueError(f"node {index[sign == 0][0]} has no sign; give each node the side to push it to, +1 or -1.")
    direction = np.zeros(len(spread))
    direction[index] = sign * spread[index]
    return steer_along(layer, direction, strength=strength, norm=norm)


def steer_along(layer: int, direction: Float[np.ndarray, " d"], *, strength: float, norm: float) -> Intervention:
    """Add ``strength * norm`` times the unit vector of a direction; nothing where the direction is zero."""
    if not np.isfinite([strength, norm]).all() or not np.isfinite(direction).all():
        raise ValueError(f"direction, strength ({strength}) and norm ({norm}) must be finite numbers.")
    length = float(np.linalg.norm(direction))
    return Intervention(layer, added=direction * (strength * norm / length) if length else np.zeros(len(direction)))


def ablate_along(layer: int, direction: Float[np.ndarray, " d"], values: Float[np.ndarray, "... d"]) -> Intervention:
    """Take from h its place along a direction, and give it that of ``values``; the rest of h stays.

    Raises
    ------
    ValueError
        A direction of zeros.
    """
    return Intervention(layer, axis=_unit(direction), values=values)


def cap_along(layer: int, direction: Float[np.ndarray, " d"], low: float, high: float) -> Intervention:
    """Keep the place of h along a direction between two bounds (activation capping, Lu et al. 2026, arXiv 2601.10387).

    Parameters
    ----------
    low, high
        In the units of h along the unit vector of the direction; either may be infinite.

    Raises
    ------
    ValueError
        A direction of zeros, or bounds that are out of order.
    """
    if not low <= high:
        raise ValueError(f"the bounds are {low} and {high}; expected the lower one first.")
    return Intervention(layer, axis=_unit(direction), limits=(float(low), float(high)))


@contextlib.contextmanager
def intervene(
    lm: LanguageModel, *interventions: Intervention, tokens: Bool[torch.Tensor, "row token"] | None = None
) -> Iterator[None]:
    """Carry out interventions, one after the other, in every forward pass inside.

    Parameters
    ----------
    interventions
        At one layer or several. Contexts inside each other add up too, the outer first.
    tokens
        Which tokens of the prompts to change; all by default. Tokens that ``generate`` adds are treated as the last of
        its row. In many models the first token collects attention and has values hundreds of times as large as any
        other: leave it out where nodes are overwritten, as :func:`scope_mask` does.

    Raises
    ------
    ValueError
        A layer or node that the model does not have, or a pass whose tokens are not those of ``tokens``.
    """
    check_interventions(lm, interventions)

    def act(layer: int, value: torch.Tensor) -> torch.Tensor:
        for intervention in interventions:
            if intervention.layer == layer:
                value = intervention.apply(value, _chosen(value, tokens))
        return value

    layers = sorted({intervention.layer for intervention in interventions})
    with hook_component(lm, "resid", layers, act) if layers else contextlib.nullcontext():
        yield


def scope_mask(readout: Readout, scope: Scope) -> list[Bool[np.ndarray, " token"]]:
    """Which tokens of each prompt an intervention changes.

    ``all``: every token but the first, which in many models is set apart (see :func:`intervene`); ``statement``: those
    of the statement; ``last``: the last one before what is read, which in a question is its last.
    """
    if scope not in ("all", "statement", "last"):
        raise ValueError(f"unknown scope {scope!r}; expected all, statement or last.")
    masks = []
    for prompt, (first, stop) in zip(readout.prompts, readout.statements, strict=True):
        mask = np.zeros(len(prompt.ids), dtype=bool)
        bounds = {"all": (1, None), "statement": (first, stop), "last": (prompt.start - 1, prompt.start)}[scope]
        mask[slice(*bounds)] = True
        masks.append(mask)
    return masks


def check_interventions(lm: LanguageModel, interventions: Sequence[Intervention]) -> None:
    """Refuse layers, nodes and widths that the model does not have."""
    for intervention in interventions:
        check_layers(lm, "resid", [intervention.layer])
        nodes = intervention.nodes
        if nodes is not None and len(nodes) and not 0 <= nodes.min() <= nodes.max() < lm.d_model:
            raise ValueError(
                f"node {nodes[(nodes < 0) | (nodes >= lm.d_model)][0]} is out of range; {lm.name} has nodes 0 to "
                f"{lm.d_model - 1}."
            )
        for name in ("axis", "values", "added"):
            given = getattr(intervention, name)
            if given is not None and given.shape[-1] != lm.d_model:
                raise ValueError(f"{name} has {given.shape[-1]} nodes, and {lm.name} has {lm.d_model}.")


def _unit(direction: np.ndarray) -> np.ndarray:
    length = float(np.linalg.norm(direction))
    if not length:
        raise ValueError("the direction is zero at every node, so that it has no axis; give one that is not.")
    return direction / length


def _node_index(nodes: Nodes, width: int) -> np.ndarray:
    index = np.array(sorted(node[0] if isinstance(node, tuple) else int(node) for node in nodes), dtype=int)
    if outside := [node for node in index if not 0 <= node < width]:
        raise ValueError(f"node {outside[0]} is out of range; there are nodes 0 to {width - 1}.")
    if repeated := index[:-1][np.diff(index) == 0].tolist():
        raise ValueError(f"node {repeated[0]} is in the set more than once; give each node once, with one side.")
    return index


def _chosen(value: torch.Tensor, tokens: torch.Tensor | None) -> torch.Tensor:
    rows, width = value.shape[:2]
    if tokens is None:
        return torch.ones(rows, width, dtype=torch.bool, device=value.device)
    if tokens.shape == (rows, width):
        return tokens
    if width == 1 and len(tokens) == rows:
        return tokens[:, -1:]
    raise ValueError(
        f"tokens are chosen in {tokens.shape[0]} x {tokens.shape[1]} and the model was given {rows} x {width}; "
        "expected one place for each token of the batch."
    )
