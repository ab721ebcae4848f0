"""Many patches of one prompt: a run as it is, with what patches need of it, then rows of few passes from below each patch."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float

from utils.models.components import component_layers, hook_component, start_at
from utils.models.forward import Prefix, logits_at, repeat_prefix, run_prefix, thin_prefix, token_budget
from utils.models.language_model import LanguageModel
from utils.models.prompts import Prompt
from utils.options import Component, Segment
from utils.patching.alignment import Pair

# Reusing keys and values costs a copy of them: it pays where at least this share of the tokens need not be run.
_SMALLEST_SHARE = 0.05
# Segments that begin less than this share of the tokens apart run together: fuller passes are worth more.
_SHARED = 0.15
# Of a token whose keys and values are reused, next to one that is run: on a CPU passes of few tokens are slow.
_CACHED_CPU = 0.25
# A pass with less than this part of the allowed tokens is fuller with cells of the next layer, or of any layer.
_SMALL, _SMALLEST = 4, 16

Read = Callable[[torch.Tensor], np.ndarray]
Places = dict[Segment, tuple[list[int], list[int]]]


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


@dataclass(frozen=True)
class Cell:
    """One patch of a grid; ``head`` is -1 but for the component ``heads``."""

    component: Component
    layer: int
    segment: Segment
    head: int = -1

    @property
    def start(self) -> int:
        """The last layer whose residual stream is still that of the base run (with ``resid``, is the one replaced)."""
        return self.layer if self.component == "resid" else self.layer - 1


def run_cells(
    lm: LanguageModel,
    pair: Pair,
    base: CleanRun,
    source: CleanRun,
    cells: Sequence[Cell],
    read: Read,
    *,
    max_tokens: int | Literal["auto"] = "auto",
) -> tuple[Float[np.ndarray, "cell measure"], Float[np.ndarray, "cell measure"]]:
    """Measures of the last token's logits under each patch by itself.

    Parameters
    ----------
    base, source
        Clean runs of the pair's prompts with ``resid`` and the cells' components, and ``attn`` where there are heads.
    read
        Turns logits (row, vocabulary) into measures (row, measure).
    max_tokens
        Bound on rows × tokens of a forward pass, where those that are reused count a quarter on a CPU; one row always
        goes.

    Returns
    -------
    total, direct
        Under the whole patch, and where only what it adds to the last token's final residual stream is changed.

    Notes
    -----
    Cells of the segment ``before`` are not run: up to the persona the two runs have the same tokens and so the same
    values. With ``max_tokens=1`` and the segment ``all``, a pass has the shape of the clean run, and a patch that changes
    nothing gives its logits bit for bit; in other shapes rounding differs.
    """
    if max_tokens == "auto":
        max_tokens = token_budget(lm.device)
    length = len(pair.base.ids)
    places: Places = {cell.segment: pair.places(cell.segment) for cell in cells}
    reused = _reusable(places, length)
    prefixes = {first: run_prefix(lm, pair.base.ids[:first], [length]) for first in set(reused.values())}
    unchanged = read(base.logits[None])[0]
    total, direct = np.tile(unchanged, (len(cells), 1)), np.tile(unchanged, (len(cells), 1))

    final: list[tuple[int, torch.Tensor]] = []
    cached = _CACHED_CPU if lm.device.type == "cpu" else 1.0
    for first, rows in _batch_cells(cells, reused, length, max_tokens, cached=cached):
        own = [cells[row] for row in rows]
        logits, changes = _run_together(lm, base, source, own, places, prefixes[first])
        total[rows] = read(logits)
        final += [(row, change) for row, change in zip(rows, changes, strict=True) if change is not None]
    for i in range(0, len(final), max_tokens):
        part = [row for row, _ in final[i : i + max_tokens]]
        direct[part] = read(_finish(lm, base, [change for _, change in final[i : i + max_tokens]]))
    return total, direct


def _batch_cells(
    cells: Sequence[Cell], reused: dict[Segment, int], length: int, max_tokens: int, *, cached: float
) -> list[tuple[int, list[int]]]:
    """Cells to run, by those that run together: how many tokens are reused, and places in ``cells``.

    They begin at the same layer, except where a pass would be so small that reading the weights is much of its work.
    """
    batches: list[tuple[int, list[int]]] = []
    rows = [row for row, cell in enumerate(cells) if cell.segment != "before"]
    kinds = {row: (reused[cells[row].segment], cells[row].start) for row in rows}
    for (first, start), group in groupby(sorted(rows, key=kinds.__getitem__), key=kinds.__getitem__):
        held = batches[-1][1] if batches and batches[-1][0] == first else []
        size = length - first + cached * first
        skipped = start - min((cells[row].start for row in held), default=start)
        if len(held) * (length - first) * (_SMALL if skipped == 1 else _SMALLEST) >= max_tokens:
            held = []
        for row in group:
            if not held or (len(held) + 1) * size > max_tokens:
                held = []
                batches.append((first, held))
            held.append(row)
    return batches


def _reusable(places: Places, length: int) -> dict[Segment, int]:
    """How many tokens come before any change in each segment, where they are worth reusing."""
    starts: dict[Segment, int] = {own: min(to, default=0) for own, (to, _) in places.items() if own != "before"}
    reused: dict[Segment, int] = {}
    last = 0
    for segment, start in sorted(starts.items(), key=lambda item: item[1]):
        if start - last >= (_SHARED if reused else _SMALLEST_SHARE) * length:
            last = start
        reused[segment] = last
    return reused


def _run_together(
    lm: LanguageModel,
    base: CleanRun,
    source: CleanRun,
    cells: list[Cell],
    places: Places,
    prefix: Prefix,
) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """Logits of a row a cell, and what each patch adds to the last token's residual stream by itself, if anything."""
    first, length, start = len(prefix.ids), len(base.prompt.ids), min(cell.start for cell in cells)
    by_component: dict[Component, dict[int, list[int]]] = {}
    for row, cell in enumerate(cells):
        by_component.setdefault(cell.component, {}).setdefault(cell.layer, []).append(row)
    changes: list[torch.Tensor | None] = [_last_change(base, source, cell, length, places) for cell in cells]

    def replace(component: Component, layer: int, value: torch.Tensor) -> torch.Tensor:
        changed = value.clone()
        for row in by_component[component][layer]:
            to, taken = places[cells[row].segment]
            at = [place - first for place in to]
            new = source.values[component][layer][taken]
            if component == "heads":
                changed[row, at, cells[row].head] = new[:, cells[row].head]
            else:
                changed[row, at] = new
        return changed

    def watch(layer: int, value: torch.Tensor) -> None:
        for row in by_component["heads"][layer]:
            if length - 1 in places[cells[row].segment][0]:
                changes[row] = value[row, -1] - base.values["attn"][layer][-1]

    ids = torch.tensor([base.prompt.ids[first:]], device=lm.device).expand(len(cells), -1)
    last = torch.full((len(cells),), ids.shape[1] - 1)
    with torch.inference_mode(), ExitStack() as stack:
        hidden = base.values["resid"][start][first:].expand(len(cells), -1, -1)
        stack.enter_context(start_at(lm, start, hidden))
        for component, layers in by_component.items():
            stack.enter_context(hook_component(lm, component, list(layers), partial(replace, component)))
        if "heads" in by_component and "attn" in base.values:
            stack.enter_context(hook_component(lm, "attn", list(by_component["heads"]), watch))
        logits = logits_at(lm, ids, last, **repeat_prefix(thin_prefix(prefix, start), torch.ones_like(ids)))
    return logits, changes


def _last_change(base: CleanRun, source: CleanRun, cell: Cell, length: int, places: Places) -> torch.Tensor | None:
    if length - 1 not in places[cell.segment][0] or cell.component == "heads":
        return None
    return source.values[cell.component][cell.layer][-1] - base.values[cell.component][cell.layer][-1]


def _finish(lm: LanguageModel, base: CleanRun, changes: list[torch.Tensor]) -> torch.Tensor:
    """Logits where the last token's final residual stream is changed and nothing else."""
    with torch.inference_mode():
        final = base.values["resid"][lm.n_layers][-1]
        hidden = torch.stack([final + change.to(final.device) for change in changes])[:, None]
        ids = torch.tensor([base.prompt.ids[-1:]], device=lm.device).expand(len(changes), -1)
        with start_at(lm, lm.n_layers, hidden):
            return logits_at(lm, ids, torch.zeros(len(changes), dtype=torch.long), attention_mask=torch.ones_like(ids))
