"""Persona vectors at work in a model: added, projected out or capped, at all tokens or those of one part, while it speaks."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import torch
from torch import nn

from utils.causal.interventions import (
    Intervention,
    ablate_along,
    cap_along,
    check_interventions,
    steer_along,
)
from utils.models.components import hook_component
from utils.models.hooks import watch_arguments
from utils.models.language_model import LanguageModel
from utils.options import TokenPart
from utils.statements.names import find_names
from utils.vectors.fit import PersonaVectors


def add_vectors(
    lm: LanguageModel,
    vectors: PersonaVectors,
    strength: float | Mapping[str, float],
    *,
    layers: int | Sequence[int] | None = None,
) -> list[Intervention]:
    """Add every vector of a set at every chosen layer.

    Parameters
    ----------
    vectors
        Of this model; see :meth:`PersonaVectors.__getitem__` for one persona's.
    strength
        Length of what is added at each layer, in units of the residual stream's there; below 0 it pushes away from the
        persona; 0 changes nothing. One number for all, or by persona.
    layers
        Of ``vectors``; may be left out where they have one.

    Returns
    -------
    list of Intervention
        For :func:`steering`, or for :func:`utils.causal.scoring.score_interventions`.

    Raises
    ------
    ValueError
        Vectors of another model, a layer that they do not have, a strength that is not finite or for an unknown persona.
    """
    chosen = _choose(lm, vectors, layers)
    given = strength if isinstance(strength, Mapping) else dict.fromkeys(vectors.personas, strength)
    by_persona = dict(zip(find_names("persona", given, vectors.personas), given.values(), strict=True))
    for persona, value in by_persona.items():
        if not np.isfinite(value):
            raise ValueError(f"the strength of {persona!r} is {value}; give a finite number.")
    return [
        steer_along(layer, direction, strength=by_persona[persona], norm=norm)
        for layer, persona, direction, norm in _each(chosen)
        if by_persona.get(persona)
    ]


def ablate_vectors(
    lm: LanguageModel, vectors: PersonaVectors, *, layers: int | Sequence[int] | None = None
) -> list[Intervention]:
    """Project the span of a set's vectors out of the residual stream at every chosen layer.

    Raises
    ------
    ValueError
        Vectors of another model, or a layer that they do not have.
    """
    chosen = _choose(lm, vectors, layers)
    nothing = np.zeros(lm.d_model)
    made = []
    for layer, rows in zip(chosen.layers, chosen.values, strict=True):
        # One after the other, only directions at right angles take away what all of them take away together.
        _, singular, basis = np.linalg.svd(rows.astype(np.float64), full_matrices=False)
        made += [ablate_along(layer, axis, nothing) for axis in basis[singular > 1e-6 * singular.max(initial=0)]]
    return made


def cap_vectors(
    lm: LanguageModel,
    vectors: PersonaVectors,
    low: float,
    high: float,
    *,
    layers: int | Sequence[int] | None = None,
) -> list[Intervention]:
    """Keep the projection onto each vector of a set between two bounds, one vector after the other.

    Parameters
    ----------
    low, high
        In units of the residual stream's length, as :func:`utils.vectors.read_tokens` gives projections; either may be
        infinite. Where projections lie inside, nothing changes.

    Raises
    ------
    ValueError
        Vectors of another model, a layer that they do not have, a vector of zeros, or bounds out of order.
    """
    chosen = _choose(lm, vectors, layers)
    return [cap_along(layer, direction, low * norm, high * norm) for layer, _, direction, norm in _each(chosen)]


@contextlib.contextmanager
def steering(
    lm: LanguageModel,
    *interventions: Intervention | Iterable[Intervention],
    tokens: TokenPart = "all",
    first: bool = False,
) -> Iterator[None]:
    """Carry out interventions in every forward pass inside, also while :meth:`LanguageModel.generate` runs.

    With or without a cache of keys and values, each token is changed in the same way.

    Parameters
    ----------
    interventions
        Of the functions of this module or of :mod:`utils.causal`, one or lists of them; at one layer one after the other.
        Contexts inside each other add up too, the outer first.
    tokens
        ``all``; ``prompt``: those that generation starts from; ``answer``: those that it adds. A prompt is what a pass begins
        with; later passes that go on from it add the answer.
    first
        Whether the first token of each row is changed too, as repeng and llama.cpp do. In many models it collects attention
        and has values hundreds of times as large as any other.

    Raises
    ------
    ValueError
        A layer or width that the model does not have, or an unknown part.
    """
    if tokens not in get_args(TokenPart):
        raise ValueError(f"unknown part {tokens!r}; expected {', '.join(get_args(TokenPart))}.")
    wanted = [one for given in interventions for one in ([given] if isinstance(given, Intervention) else given)]
    check_interventions(lm, wanted)
    wanted = [one for one in wanted if not _does_nothing(one)]
    if not wanted:
        yield
        return
    by_layer: dict[int, list[Intervention]] = {}
    for one in wanted:
        by_layer.setdefault(one.layer, []).append(one)
    places = _Places(tokens, first)

    def act(layer: int, value: torch.Tensor) -> torch.Tensor:
        ready = by_layer[layer] = [_move(one, value) for one in by_layer[layer]]
        chosen = places.chosen(value)
        for one in ready:
            value = one.apply(value, chosen)
        return value

    with watch_arguments(_holder(lm), places.see), hook_component(lm, "resid", sorted(by_layer), act):
        yield


@dataclass
class _Places:
    """Which tokens of the pass at hand are of the wanted part."""

    part: TokenPart
    first: bool
    ids: torch.Tensor | None = None
    n_prompt: int = 0
    mask: torch.Tensor | None = None

    def see(self, args: tuple, kwargs: dict[str, Any]) -> None:
        ids = args[0] if args else kwargs["input_ids"]
        cache, attended = kwargs.get("past_key_values"), kwargs.get("attention_mask")
        past = int(cache.get_seq_length()) if cache is not None else 0
        if self.part != "all":
            self._follow(ids, past)
        rows, width = ids.shape
        at = torch.arange(past, past + width, device=ids.device).expand(rows, -1)
        chosen = torch.ones_like(at, dtype=torch.bool)
        if self.part == "prompt":
            chosen = at < self.n_prompt
        elif self.part == "answer":
            chosen = at >= self.n_prompt
        if not self.first:
            # Where rows are padded on the left, each begins later.
            begin: torch.Tensor | int = 0
            if attended is not None and attended.dim() == 2 and attended.shape[1] >= past + width:
                begin = attended.argmax(dim=1, keepdim=True)
            chosen = chosen & (at > begin)
        self.mask = chosen

    def chosen(self, value: torch.Tensor) -> torch.Tensor:
        assert self.mask is not None
        return self.mask

    def _follow(self, ids: torch.Tensor, past: int) -> None:
        """Tell a new prompt from a pass that goes on from the last one, whose tokens it repeats or whose cache it has."""
        known = self.ids
        n = 0 if known is None else known.shape[1]
        if known is not None and past and past == n and len(known) == len(ids):
            self.ids = torch.cat([known, ids], dim=1)
        elif known is not None and not past and ids.shape[1] > n and torch.equal(ids[:, :n], known):
            self.ids = ids
        else:
            self.ids, self.n_prompt = ids, past + ids.shape[1]


def _holder(lm: LanguageModel) -> nn.Module:
    """The module that holds the blocks: each pass goes through it, as not each goes through the whole decoder (OPT)."""
    return next(module for module in lm.model.modules() if any(child is lm.blocks for child in module.children()))


def _choose(lm: LanguageModel, vectors: PersonaVectors, layers: int | Sequence[int] | None) -> PersonaVectors:
    vectors.check_model(lm)
    component = vectors.record.get("component", "resid")
    if component != "resid":
        raise ValueError(f"the vectors are of component {component!r}; those of the residual stream can steer.")
    if layers is None and len(vectors.layers) > 1:
        raise ValueError(
            f"the vectors have {len(vectors.layers)} layers, {vectors.layers[0]} to {vectors.layers[-1]}; say at which, such as "
            f"layers={vectors.layers[len(vectors.layers) // 2]}."
        )
    return vectors if layers is None else vectors.at(layers)


def _each(vectors: PersonaVectors) -> Iterator[tuple[int, str, np.ndarray, float]]:
    for layer, rows, norm in zip(vectors.layers, vectors.values, vectors.norms, strict=True):
        for persona, row in zip(vectors.personas, rows, strict=True):
            yield layer, persona, row.astype(np.float64), float(norm)


def _does_nothing(one: Intervention) -> bool:
    """Whether nothing is overwritten and what is added is zero: adding it would turn −0 into 0."""
    overwrites = one.axis is not None or (one.nodes is not None and len(one.nodes) > 0)
    return not overwrites and (one.added is None or not np.any(one.added))


def _move(one: Intervention, value: torch.Tensor) -> Intervention:
    """The intervention with its arrays where the model needs them; moved once, and not for every token."""
    names = [name for name in ("axis", "values", "added") if isinstance(getattr(one, name), np.ndarray)]
    return replace(one, **{name: torch.as_tensor(getattr(one, name)).to(value) for name in names}) if names else one
