"""A readout under many interventions at one layer: each starts from the residual stream that was cached there.

Nothing below the layer changes, so that it is run once. Rows of a forward pass are interventions × prompts, and what the
prompts have in common is run once for each intervention.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from tqdm.auto import tqdm

from utils.causal.interventions import Intervention, check_interventions, scope_mask
from utils.models.components import hook_component, start_at
from utils.models.forward import Prefix, batch_rows, pad_right, repeat_prefix, share_prefix, thin_prefix, token_budget
from utils.models.language_model import LanguageModel
from utils.models.prompts import Prompt
from utils.options import Scope
from utils.responses.measures import Readout, check_finite, check_prompts, logits_budget, read_batch


@dataclass(frozen=True, eq=False)
class CachedPrompts:
    """The prompts of a readout, run up to a layer.

    Attributes
    ----------
    prefix
        What they begin with, which is not in the batches, with the keys and values that passes from the layer on need.
    opening
        (1, token, d_model) residual stream of the prefix at the layer.
    batches
        Places of the prompts of each batch, their token ids and attention mask, the residual stream at the layer (row,
        token, d_model) and which tokens are changed.
    """

    readout: Readout
    layer: int
    scope: Scope
    prefix: Prefix
    opening: torch.Tensor
    batches: list[tuple[list[int], torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]


def cache_prompts(
    lm: LanguageModel,
    readout: Readout,
    layer: int,
    *,
    scope: Scope = "all",
    shared: bool = True,
    max_tokens: int | Literal["auto"] = "auto",
) -> CachedPrompts:
    """Run the prompts of a readout up to a layer, for :func:`score_interventions`.

    Parameters
    ----------
    scope
        Which tokens are to be changed, see :func:`utils.causal.interventions.scope_mask`.
    shared
        Whether each intervention changes tokens that prompts share alike in all of them; else nothing is shared.
    max_tokens
        Bound on the tokens of a forward pass, and so on memory; one prompt always goes. What is kept is as large as one
        layer's residual stream over all prompts.

    Raises
    ------
    ValueError
        A layer that the model does not have, no prompts, one longer than the context window, or an unknown scope.
    """
    if not readout.prompts:
        raise ValueError("there is nothing to run; give at least one prompt.")
    if max_tokens != "auto" and max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1 or 'auto', not {max_tokens}.")
    check_prompts(lm, readout)
    masks = scope_mask(readout, scope)
    firsts = [prompt.start - 1 for prompt in readout.prompts]
    if scope != "all":
        # What is shared is run once for all interventions: it must end before any change.
        firsts = [min(first, int(mask.argmax())) for first, mask in zip(firsts, masks, strict=True)]
    openings = [Prompt(prompt.ids, first, prompt.stop) for prompt, first in zip(readout.prompts, firsts, strict=True)]
    prefix, opening = Prefix(), torch.zeros(1, 0, lm.d_model)
    if shared:
        with _keep_residual(lm, layer) as kept:
            prefix = share_prefix(lm, openings)
        opening = kept.get(layer, opening)
    skipped = len(prefix.ids)
    lengths = [len(prompt.ids) - skipped for prompt in readout.prompts]
    batches = []
    with torch.inference_mode():
        for places in batch_rows(lm, lengths, "auto", skipped=skipped, max_tokens=_token_budget(lm, max_tokens)):
            ids, mask = pad_right([readout.prompts[i].ids[skipped:] for i in places], lm.device)
            with _keep_residual(lm, layer) as kept:
                lm.decoder(input_ids=ids, **repeat_prefix(prefix, mask))
            batches.append((places, ids, mask, kept[layer], _pad_masks([masks[i][skipped:] for i in places])))
    return CachedPrompts(readout, layer, scope, thin_prefix(prefix, layer), opening, batches)


def score_interventions(
    lm: LanguageModel,
    readout: Readout | CachedPrompts,
    interventions: Sequence[Intervention],
    *,
    scope: Scope = "all",
    max_tokens: int | Literal["auto"] = "auto",
    progress: bool = True,
    name: str = "interventions",
) -> Float[np.ndarray, "intervention prompt"]:
    """The readout's number of every prompt under each intervention by itself.

    Parameters
    ----------
    readout
        What is read; or what :func:`cache_prompts` made of it, for several calls at one layer, with its scope.
    interventions
        All at one layer. ``values`` with several rows have one for each prompt of the readout.
    scope, max_tokens
        As of :func:`cache_prompts`.

    Raises
    ------
    ValueError
        No interventions, interventions at several layers, at a layer or at nodes that the model does not have; and as
        :func:`cache_prompts`.
    """
    by_row = any(each.values is not None and each.values.ndim == 2 for each in interventions)
    layer = _check(lm, interventions)
    if isinstance(readout, Readout):
        # A change of its own for each prompt, in tokens that they share, leaves nothing to share.
        shared = not by_row or scope != "all"
        cached = cache_prompts(lm, readout, layer, scope=scope, shared=shared, max_tokens=max_tokens)
    else:
        cached, readout = readout, readout.readout
        if cached.layer != layer:
            raise ValueError(f"prompts were cached at layer {cached.layer} and the interventions are at {layer}.")
        if by_row and cached.scope == "all" and cached.prefix.ids:
            raise ValueError("values of each prompt's own need prompts that share nothing: cache with shared=False.")
    _check_rows(interventions, len(readout.prompts))
    n_tokens = sum(ids.numel() for _, ids, *_ in cached.batches)
    together = max(1, _token_budget(lm, max_tokens) // n_tokens) if len(cached.batches) == 1 else 1
    found = np.empty((len(interventions), len(readout.prompts)))
    with torch.inference_mode(), tqdm(total=found.size, desc=name, disable=not progress) as bar:
        for first in range(0, len(interventions), together):
            part = interventions[first : first + together]
            prefix = _change_prefix(lm, cached, part)
            for places, ids, mask, hidden, tokens in cached.batches:
                changed = torch.cat([each.apply(hidden, tokens, rows=places) for each in part])
                n, rows = len(part), places * len(part)
                times = len(rows) if prefix is cached.prefix else len(places)
                options = repeat_prefix(prefix, mask.repeat(n, 1), times)
                with start_at(lm, layer, changed):
                    scores = read_batch(lm, readout, rows, ids.repeat(n, 1), skipped=len(prefix.ids), **options)
                found[first : first + n, places] = np.reshape(scores, (n, len(places)))
                bar.update(len(rows))
    check_finite(found)
    return found


def mean_residuals(
    lm: LanguageModel, readout: Readout, layer: int, *, scope: Scope = "all"
) -> Float[np.ndarray, "prompt d"]:
    """The residual stream of every prompt at a layer, averaged over the tokens that an intervention would change."""
    cached = cache_prompts(lm, readout, layer, scope=scope, shared=scope != "all")
    found = np.empty((len(readout.prompts), lm.d_model))
    for places, _, _, hidden, tokens in cached.batches:
        weights = tokens.cpu().double()
        total = torch.einsum("bt,btd->bd", weights, hidden.cpu().double())
        found[places] = (total / weights.sum(dim=1, keepdim=True)).numpy()
    return found


def _check(lm: LanguageModel, interventions: Sequence[Intervention]) -> int:
    if not interventions:
        raise ValueError("there is nothing to run; give at least one intervention.")
    check_interventions(lm, interventions)
    layers = sorted({intervention.layer for intervention in interventions})
    if len(layers) > 1:
        raise ValueError(f"interventions at one layer are expected, not at {layers}; give each layer its own call.")
    return layers[0]


def _check_rows(interventions: Sequence[Intervention], n_prompts: int) -> None:
    for intervention in interventions:
        values = intervention.values
        if values is not None and values.ndim == 2 and len(values) != n_prompts:
            raise ValueError(
                f"an intervention has values of {len(values)} rows for {n_prompts} prompts; expected one row for all, or "
                "one for each."
            )


def _token_budget(lm: LanguageModel, max_tokens: int | Literal["auto"]) -> int:
    if max_tokens != "auto":
        return max_tokens
    suited = token_budget(lm.device)
    return min(suited, logits_budget(lm) or suited)


@contextlib.contextmanager
def _keep_residual(lm: LanguageModel, layer: int) -> Iterator[dict[int, torch.Tensor]]:
    """A dict that holds, after each forward pass inside, the residual stream at the layer."""
    kept: dict[int, torch.Tensor] = {}
    with hook_component(lm, "resid", [layer], lambda layer, value: kept.update({layer: value.clone()})):
        yield kept


def _pad_masks(masks: Sequence[np.ndarray]) -> torch.Tensor:
    padded = torch.zeros(len(masks), max(map(len, masks)), dtype=torch.bool)
    for row, mask in enumerate(masks):
        padded[row, : len(mask)] = torch.from_numpy(mask)
    return padded


def _change_prefix(lm: LanguageModel, cached: CachedPrompts, interventions: Sequence[Intervention]) -> Prefix:
    """The shared beginning: where its tokens are changed too, with a row for each intervention, run under it."""
    prefix = cached.prefix
    if not prefix.ids or cached.scope != "all":
        return prefix
    ids = torch.tensor([prefix.ids], device=lm.device).expand(len(interventions), -1)
    tokens = torch.ones(1, ids.shape[1], dtype=torch.bool)
    tokens[:, 0] = False
    changed = torch.cat([each.apply(cached.opening, tokens) for each in interventions])
    with start_at(lm, cached.layer, changed):
        output = lm.decoder(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True)
    cache = output.past_key_values
    # The skipped blocks have left nothing there, and a pass reads its length from them.
    cache.layers[: cached.layer] = prefix.cache.layers[: cached.layer]
    return Prefix(prefix.ids, cache)
