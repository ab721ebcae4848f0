"""Activation patching: what of one run, put into another, moves the answer.

After Poonia & Jain 2025 (arXiv 2507.20936). Activations go from the *source* run into the *base* run. Every cell of the
grid is exact: it is run, not approximated. What makes it fast is that several cells go through the model together, that
each starts from the residual stream of the layer below it, and that where only the last token is patched, the keys and
values of all tokens before it are those of the base run.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from utils.models.components import check_layers
from utils.models.language_model import LanguageModel
from utils.options import Component, Segment
from utils.patching.alignment import check_segments, pair_prompts
from utils.patching.effects import CELL, choose_letters, summarise_cells
from utils.patching.runs import Cell, Read, run_cells, run_clean
from utils.responses.answers import check_lengths
from utils.responses.wording import LETTERS, identity_prompt, letter_tokens, render_questions


def patch(
    lm: LanguageModel,
    base: str,
    source: str,
    questions: pd.DataFrame,
    *,
    components: Sequence[Component] = ("resid", "attn", "mlp"),
    layers: Sequence[int] | None = None,
    segments: Sequence[Segment] = ("persona", "question", "last"),
    max_tokens: int | Literal["auto"] = "auto",
    n_bootstrap: int = 1000,
    rng: int | np.random.Generator = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Patch activations of the source identity's runs into the base identity's, one cell of the grid at a time.

    Parameters
    ----------
    base, source
        Identities, see :func:`utils.responses.identity_prompt`.
    questions
        As :func:`utils.statements.load_questions` returns them, or
        :func:`utils.patching.effects.choose_questions` chose them.
    components
        ``resid``: the residual stream behind a block. ``attn``, ``mlp``: what a block's attention or MLP adds to it.
        ``heads``: each head's input to the attention's output projection, one cell a head.
    layers
        All of each component by default; those that a component does not have are left out for it.
    segments
        Tokens that are patched, see :meth:`utils.patching.alignment.Pair.places`. Before the persona the two runs are the same.
    max_tokens
        Bound on the tokens that go through the model together, and so on memory; one row always does.
    n_bootstrap, rng
        Resamples of the questions for the intervals.

    Returns
    -------
    DataFrame
        One row a cell, with the columns of :func:`utils.patching.summarise_cells`. The effect is 0 where a patch does
        nothing and 1 where it does all that the identity does; m is the difference of the model's own logits (after any
        scaling and capping) of the source's and the base's answer. ``direct`` is the part that reaches the logits without
        passing through anything later than the patched component (its change is added to the last token's final
        residual stream, before the final norm), ``indirect`` the rest. ``attrs`` hold base, source and the model.

    Raises
    ------
    ValueError
        Identities that are the same or cannot be aligned, option letters that are not single tokens, an unknown
        component or segment, layers out of range, or an architecture without the component.
    """
    cells = list_cells(lm, components, layers, segments)
    table = patch_questions(lm, base, source, questions, cells, max_tokens=max_tokens, progress=progress)
    effects = summarise_cells(table, n_bootstrap=n_bootstrap, rng=rng)
    effects.attrs = {"base": base, "source": source, "model": lm.name, "revision": lm.revision or ""}
    return effects


def list_cells(
    lm: LanguageModel, components: Sequence[Component], layers: Sequence[int] | None, segments: Sequence[Segment]
) -> list[Cell]:
    """All cells of a grid, component by component."""
    cells = []
    for component in dict.fromkeys(components):
        check_layers(lm, component, None)
        wanted = None if layers is None else [layer for layer in layers if layer != 0 or component == "resid"]
        heads = range(lm.n_heads) if component == "heads" else [-1]
        for layer in check_layers(lm, component, wanted):
            cells += [Cell(component, layer, segment, head) for segment in check_segments(segments) for head in heads]
    if not cells:
        raise ValueError("there is nothing to patch; name at least one component.")
    return cells


def patch_questions(
    lm: LanguageModel,
    base: str,
    source: str,
    questions: pd.DataFrame,
    cells: Sequence[Cell],
    *,
    max_tokens: int | Literal["auto"] = "auto",
    progress: bool = True,
) -> pd.DataFrame:
    """Patch every question by itself.

    Returns
    -------
    DataFrame
        One row a cell and question, as :func:`utils.patching.summarise_cells` takes it. m is in logits; ``kl_base`` is
        KL(base ‖ patched) and ``kl_source`` KL(source ‖ patched) over the whole vocabulary, in nats.
    """
    pairs = pair_prompts(lm.tokenizer, base, source, questions)
    check_lengths(lm, questions, [max(len(pair.base.ids), len(pair.source.ids)) for pair in pairs])
    text = render_questions(lm.tokenizer, questions.iloc[:1], system=identity_prompt(base))[0]
    tokens = letter_tokens(lm.tokenizer, text)
    components: list[Component] = list(dict.fromkeys(["resid", *(cell.component for cell in cells)]))
    if "heads" in components and lm.anatomy.attn_added is not None and "attn" not in components:
        components.append("attn")
    names = pd.DataFrame([[getattr(cell, name) for name in CELL] for cell in cells], columns=CELL)
    tables = []
    for pair in tqdm(pairs, desc="patching", unit="question", disable=not progress):
        own, other = (run_clean(lm, prompt, components) for prompt in (pair.base, pair.source))
        letters, chosen = letters_of(tokens, own.logits, other.logits)
        read = reader(letters, own.logits, other.logits)
        total, direct = run_cells(lm, pair, own, other, cells, read, max_tokens=max_tokens)
        m_base, m_source = (read(run.logits[None])[0, 0] for run in (own, other))
        table = names.assign(question=pair.id, fallback=chosen, m_base=m_base, m_source=m_source)
        columns = {"m_patched": total[:, 0], "m_direct": direct[:, 0], "kl_base": total[:, 1], "kl_source": total[:, 2]}
        tables.append(table.assign(**columns))
    return pd.concat(tables, ignore_index=True)


def letters_of(tokens: Sequence[int], base: torch.Tensor, source: torch.Tensor) -> tuple[tuple[int, int], bool]:
    """Letters of source and base, see :func:`~utils.patching.effects.choose_letters`, and whether by fallback."""
    clean = [logits[list(tokens)].double().cpu().numpy()[None] for logits in (base, source)]
    chosen = choose_letters(*clean).iloc[0]
    rose, fell = (tokens[LETTERS.index(chosen[name])] for name in ("source_letter", "base_letter"))
    return (rose, fell), bool(chosen["fallback"])


def reader(letters: tuple[int, int], base: torch.Tensor, source: torch.Tensor) -> Read:
    """Turns logits (row, vocabulary) into m, KL(base ‖ row) and KL(source ‖ row)."""
    clean = torch.stack([base, source], dim=1).double().cpu().log_softmax(dim=0)  # (V, 2)
    p = clean.exp()
    negative_entropy = torch.where(p > 0, p * clean, 0).sum(dim=0)

    def read(logits: torch.Tensor) -> np.ndarray:
        logits = logits.double().cpu()
        m = logits[:, letters[0]] - logits[:, letters[1]]
        # log q is logits - logsumexp: nothing as large as the logits is made for each of the two.
        divergences = negative_entropy - logits @ p + logits.logsumexp(dim=-1, keepdim=True)
        return torch.cat([m[:, None], divergences], dim=1).numpy()

    return read
