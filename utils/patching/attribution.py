"""Attribution patching: the patching grid by its gradient, from two forward passes and one backward pass a question.

After Nanda 2023 and Syed, Rager & Conmy 2023 (arXiv 2310.10348): the effect of a patch is approximated to first order as
(source activation − base activation) · gradient of m at the base run. It is exact where the rest of the model is linear,
and tends to be wrong where attention patterns or gates saturate: compare it with :func:`utils.patching.patch`.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from utils.models.components import component_layers, hook_component
from utils.models.forward import logits_at
from utils.models.language_model import LanguageModel
from utils.options import Component, Segment
from utils.patching.alignment import Pair, pair_prompts
from utils.patching.effects import CELL, summarise_cells
from utils.patching.grid import letters_of, list_cells
from utils.patching.runs import Cell, CleanRun, run_clean
from utils.responses.answers import check_lengths
from utils.responses.wording import identity_prompt, letter_tokens, render_questions

_UNKNOWN = ("direct", "indirect", "kl")


def attribute(
    lm: LanguageModel,
    base: str,
    source: str,
    questions: pd.DataFrame,
    *,
    components: Sequence[Component] = ("resid", "attn", "mlp"),
    layers: Sequence[int] | None = None,
    segments: Sequence[Segment] = ("persona", "question", "last"),
    n_bootstrap: int = 1000,
    rng: int | np.random.Generator = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Approximate the grid of :func:`utils.patching.patch`; arguments and errors as there.

    Returns
    -------
    DataFrame
        One row a cell, with the columns of :func:`utils.patching.patch` but for ``direct``, ``indirect`` and the KLs, which
        a gradient of m does not tell.
    """
    cells = list_cells(lm, components, layers, segments)
    pairs = pair_prompts(lm.tokenizer, base, source, questions)
    check_lengths(lm, questions, [max(len(pair.base.ids), len(pair.source.ids)) for pair in pairs])
    text = render_questions(lm.tokenizer, questions.iloc[:1], system=identity_prompt(base))[0]
    tokens = letter_tokens(lm.tokenizer, text)
    kinds = list(dict.fromkeys(components))
    names = pd.DataFrame([[getattr(cell, name) for name in CELL] for cell in cells], columns=CELL)
    tables = []
    for pair in tqdm(pairs, desc="attribution", unit="question", disable=not progress):
        run = run_clean(lm, pair.source, kinds)
        change, m_base, m_source, fallback = _attribute_question(lm, pair, run, cells, tokens)
        unknown = dict.fromkeys(["m_direct", "kl_base", "kl_source"], np.nan)
        table = names.assign(question=pair.id, fallback=fallback, m_base=m_base, m_source=m_source, **unknown)
        tables.append(table.assign(m_patched=m_base + change))
    effects = summarise_cells(pd.concat(tables, ignore_index=True), n_bootstrap=n_bootstrap, rng=rng)
    return effects[[name for name in effects if not str(name).startswith(_UNKNOWN)]]


def rank_agreement(exact: pd.DataFrame, approximate: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rank correlation of two grids over the cells that both have, component by component and over all.

    Returns
    -------
    DataFrame
        ``component`` (or ``all``), ``fallback``, ``n_cells``, ``spearman`` (NaN where a grid is constant), and
        ``slope``, the least-squares slope through the origin of the approximate effect on the exact one.
    """
    both = exact.merge(approximate, on=[*CELL, "fallback"], suffixes=("", "_approximate"))
    both = both[both["effect"].notna() & both["effect_approximate"].notna()]
    if both.empty:
        raise ValueError("the two grids have no cell in common; compute both over the same layers and segments.")
    rows = []
    for fallback, part in both.groupby("fallback"):
        groups = [*part.groupby("component", sort=False), ("all", part)]
        for component, own in groups:
            a, b = own["effect"].to_numpy(), own["effect_approximate"].to_numpy()
            varied = len(own) > 1 and np.ptp(a) > 0 and np.ptp(b) > 0
            rows.append(
                {
                    "component": component,
                    "fallback": fallback,
                    "n_cells": len(own),
                    "spearman": own["effect"].corr(own["effect_approximate"], method="spearman") if varied else np.nan,
                    "slope": float(a @ b / (a @ a)) if (a != 0).any() else np.nan,
                }
            )
    return pd.DataFrame(rows)


def _attribute_question(
    lm: LanguageModel, pair: Pair, source: CleanRun, cells: Sequence[Cell], tokens: Sequence[int]
) -> tuple[np.ndarray, float, float, bool]:
    """Approximate change of m in each cell, m of the two runs, and whether the letters are those of the fallback."""
    values: dict[tuple[Component, int], torch.Tensor] = {}
    offsets: dict[tuple[Component, int], torch.Tensor] = {}

    def offset(component: Component, layer: int, value: torch.Tensor) -> torch.Tensor:
        values[component, layer] = value.detach()[0]
        offsets[component, layer] = torch.zeros_like(value, requires_grad=True)
        return value + offsets[component, layer]

    # inference_mode(False): a caller may have switched gradients off for everything.
    with torch.inference_mode(False), torch.enable_grad(), ExitStack() as stack:
        ids = torch.tensor([pair.base.ids], device=lm.device)
        for component in source.values:
            layers = component_layers(lm, component)
            stack.enter_context(hook_component(lm, component, layers, partial(offset, component)))
        place = torch.tensor([len(pair.base.ids) - 1])
        logits = logits_at(lm, ids, place, attention_mask=torch.ones_like(ids))[0]
        (rose, fell), fallback = letters_of(tokens, logits.detach(), source.logits)
        m = logits[rose] - logits[fell]
        # Not backward(): the weights are to keep no gradients.
        gradients = dict(zip(offsets, torch.autograd.grad(m, list(offsets.values())), strict=True))
    change = np.empty(len(cells))
    for i, cell in enumerate(cells):
        key = cell.component, cell.layer
        to, taken = pair.places(cell.segment)
        product = (source.values[cell.component][cell.layer][taken] - values[key][to]) * gradients[key][0, to]
        change[i] = float((product[:, cell.head] if cell.component == "heads" else product).double().sum())
    return change, float(m.detach()), float(source.logits[rose] - source.logits[fell]), fallback
