"""A readout under many interventions at one layer: each starts from the residual stream that was cached there.

Nothing below the layer changes, so that it is run once. Rows of a forward pass are interventions × prompts, and what the
prompts have in common is run once for each intervention.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from tqdm.auto import tqdm

from utils.batches import Prefix, pad_right, share_prefix
from utils.choices import Scope
from utils.components import hook_component, start_at
from utils.interventions import Intervention, check_interventions, scope_mask
from utils.models import LanguageModel
from utils.prompt_batches import batch_rows
from utils.prompt_scores import check_finite, check_prompts, logits_budget, read_batch, repeat_prefix
from utils.prompts import Prompt
from utils.readouts import Readout

# Tokens a forward pass: on a CPU more gain nothing, a GPU wants more.
_CPU_TOKENS, _GPU_TOKENS = 1024, 16384


def score_interventions(
    lm: LanguageModel,
    readout: Readout,
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
    interventions
        All at one layer. ``values`` with several rows have one for each prompt of the readout.
    scope
        Which tokens are changed, see :func:`utils.interventions.scope_mask`.
    max_tokens
        Bound on the tokens of a forward pass, and so on memory; one intervention on one prompt always goes.

    Raises
    ------
    ValueError
        No interventions, interventions at several layers, at a layer or at nodes that the model does not have; and as
        :func:`utils.prompt_scores.score_prompts`.
    """
    layer = _check(lm, readout, interventions, max_tokens)
    masks = scope_mask(readout, scope)
    by_row = any(each.values is not None and each.values.ndim == 2 for each in interventions)
    # A change of its own for each prompt, in tokens that they share, leaves nothing to share.
    prefix = Prefix() if by_row and scope == "all" else _share_prefix(lm, readout, masks, scope)
    skipped = len(prefix.ids)
    budget = max_tokens if max_tokens != "auto" else _token_budget(lm)
    lengths = [len(prompt.ids) - skipped for prompt in readout.prompts]
    batches = batch_rows(lengths, "auto", lm.device, max_tokens=budget)
    together = max(1, budget // sum(lengths)) if len(batches) == 1 else 1
    found = np.empty((len(interventions), len(readout.prompts)))
    with torch.inference_mode(), tqdm(total=found.size, desc=name, disable=not progress) as bar:
        padded = [pad_right([readout.prompts[i].ids[skipped:] for i in places], lm.device) for places in batches]
        cached = [_read_residual(lm, layer, ids, repeat_prefix(prefix, mask)) for ids, mask in padded]
        chosen = [_pad_masks([masks[i][skipped:] for i in places]) for places in batches]
        for first in range(0, len(interventions), together):
            part = interventions[first : first + together]
            own = _change_prefix(lm, prefix, part, scope)
            for places, (ids, mask), hidden, tokens in zip(batches, padded, cached, chosen, strict=True):
                changed = torch.cat([each.apply(hidden, tokens, rows=places) for each in part])
                n, rows = len(part), places * len(part)
                options = repeat_prefix(own, mask.repeat(n, 1), len(rows) if own is prefix else len(places))
                with start_at(lm, layer, changed):
                    scores = read_batch(lm, readout, rows, ids.repeat(n, 1), skipped=skipped, **options)
                found[first : first + n, places] = np.reshape(scores, (n, len(places)))
                bar.update(len(rows))
    check_finite(found)
    return found


def mean_residuals(
    lm: LanguageModel, readout: Readout, layer: int, *, scope: Scope = "all", progress: bool = True
) -> Float[np.ndarray, "prompt d"]:
    """The residual stream of every prompt at a layer, averaged over the tokens that an intervention would change."""
    check_prompts(lm, readout)
    masks = scope_mask(readout, scope)
    prefix = _share_prefix(lm, readout, masks, "statement")
    skipped = len(prefix.ids)
    lengths = [len(prompt.ids) - skipped for prompt in readout.prompts]
    found = np.empty((len(lengths), lm.d_model))
    with torch.inference_mode(), tqdm(total=len(lengths), desc="means", disable=not progress) as bar:
        for places in batch_rows(lengths, "auto", lm.device):
            ids, mask = pad_right([readout.prompts[i].ids[skipped:] for i in places], lm.device)
            hidden = _read_residual(lm, layer, ids, repeat_prefix(prefix, mask)).double().cpu()
            tokens = _pad_masks([masks[i][skipped:] for i in places])
            found[places] = (torch.einsum("bt,btd->bd", tokens.double(), hidden) / tokens.sum(1, keepdim=True)).numpy()
            bar.update(len(places))
    return found


def _check(
    lm: LanguageModel, readout: Readout, interventions: Sequence[Intervention], max_tokens: int | Literal["auto"]
) -> int:
    if not interventions or not readout.prompts:
        raise ValueError("there is nothing to run; give at least one intervention and one prompt.")
    if max_tokens != "auto" and max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1 or 'auto', not {max_tokens}.")
    check_prompts(lm, readout)
    check_interventions(lm, interventions)
    layers = sorted({intervention.layer for intervention in interventions})
    if len(layers) > 1:
        raise ValueError(f"interventions at one layer are expected, not at {layers}; give each layer its own call.")
    for intervention in interventions:
        values = intervention.values
        if values is not None and values.ndim == 2 and len(values) != len(readout.prompts):
            raise ValueError(
                f"an intervention has values of {len(values)} rows for {len(readout.prompts)} prompts; "
                "expected one row for all, or one for each."
            )
    return layers[0]


def _token_budget(lm: LanguageModel) -> int:
    if lm.device.type == "cpu":
        return _CPU_TOKENS
    return min(_GPU_TOKENS, logits_budget(lm) or _GPU_TOKENS)


def _share_prefix(lm: LanguageModel, readout: Readout, masks: Sequence[np.ndarray], scope: Scope) -> Prefix:
    """What all prompts begin with: before anything is read and, unless all tokens are changed, before any change."""
    firsts = [prompt.start - 1 for prompt in readout.prompts]
    if scope != "all":
        firsts = [min(first, int(mask.argmax())) for first, mask in zip(firsts, masks, strict=True)]
    return share_prefix(
        lm, [Prompt(prompt.ids, first, prompt.stop) for prompt, first in zip(readout.prompts, firsts, strict=True)]
    )


def _read_residual(lm: LanguageModel, layer: int, ids: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    kept: dict[int, torch.Tensor] = {}
    with hook_component(lm, "resid", [layer], lambda layer, value: kept.update({layer: value.clone()})):
        lm.decoder(input_ids=ids, **options)
    return kept[layer]


def _pad_masks(masks: Sequence[np.ndarray]) -> torch.Tensor:
    padded = torch.zeros(len(masks), max(map(len, masks)), dtype=torch.bool)
    for row, mask in enumerate(masks):
        padded[row, : len(mask)] = torch.from_numpy(mask)
    return padded


def _change_prefix(lm: LanguageModel, prefix: Prefix, interventions: Sequence[Intervention], scope: Scope) -> Prefix:
    """The shared beginning: where its tokens are changed too, with a row for each intervention, run under it."""
    if not prefix.ids or scope != "all":
        return prefix
    ids = torch.tensor([prefix.ids], device=lm.device).expand(len(interventions), -1)
    tokens = torch.ones(1, ids.shape[1], dtype=torch.bool)
    tokens[:, 0] = False

    def act(_layer: int, value: torch.Tensor) -> torch.Tensor:
        rows = [each.apply(value[row : row + 1], tokens) for row, each in enumerate(interventions)]
        return torch.cat(rows)

    with hook_component(lm, "resid", [interventions[0].layer], act):
        output = lm.decoder(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True)
    return Prefix(prefix.ids, output.past_key_values)
