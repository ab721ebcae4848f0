"""Attention from the answer position to the persona's tokens, head by head, and groups of identities compared by it."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy.stats import false_discovery_control
from tqdm.auto import tqdm

from utils.models.components import component_layers, hook_component
from utils.models.forward import pad_right
from utils.models.language_model import LanguageModel
from utils.models.prompts import Prompt
from utils.responses.wording import check_identities, encode_questions, identity_prompt


@contextlib.contextmanager
def eager_attention(lm: LanguageModel) -> Iterator[None]:
    """Let the model compute its attention in the one way that shows the weights, and put its own way back afterwards."""
    own: Any = lm.model.config._attn_implementation
    try:
        _choose_attention(lm, "eager")
        yield
    finally:
        _choose_attention(lm, own)


def persona_attention(
    lm: LanguageModel, questions: pd.DataFrame, identities: pd.DataFrame, *, progress: bool = True
) -> pd.DataFrame:
    """How much each head reads from the persona's tokens where the model is about to answer.

    Parameters
    ----------
    questions, identities
        As :func:`utils.statements.load_questions` and :func:`~utils.statements.load_identities` return them. A few
        questions do: they are averaged over.

    Returns
    -------
    DataFrame
        One row an identity, layer and head: ``identity, group, n_tokens, layer, head, attention`` (weight from the last
        token to all tokens of the identity, without its article; mean over questions) and ``weighted``: each weight times
        the norm of the token's value vector, averaged over the identity's tokens, since the sum grows with their
        number.

    Raises
    ------
    ValueError
        The model gives no attention weights, or an identity is there twice.
    """
    check_identities(identities["identity"].tolist())
    tables = []
    with eager_attention(lm):
        for identity, group in tqdm(
            zip(identities["identity"], identities["group"], strict=True),
            total=len(identities),
            desc="persona attention",
            unit="identity",
            disable=not progress,
        ):
            prompts = encode_questions(
                lm.tokenizer, questions, system=identity_prompt(str(identity)), marked=str(identity)
            )
            sides = lm.split_sides([len(prompt.ids) for prompt in prompts])
            parts = [_read_heads(lm, [prompts[place] for place in places]) for places in sides]
            shares = np.array([len(places) / len(prompts) for places in sides])[:, None, None, None]
            weights, sizes = (np.stack(each) for each in zip(*parts, strict=True))  # (side, layer, head, token)
            weighted, weights = (shares * weights * sizes).sum(axis=0), (shares * weights).sum(axis=0)
            layer, head = np.indices(weights.shape[:2]).reshape(2, -1)
            table = pd.DataFrame(
                {"identity": identity, "group": group, "n_tokens": weights.shape[2], "layer": layer + 1}
            )
            tables.append(
                table.assign(
                    head=head,
                    attention=weights.sum(axis=2).ravel(),
                    weighted=weighted.mean(axis=2).ravel(),
                )
            )
    return pd.concat(tables, ignore_index=True)


def compare_groups(
    attention: pd.DataFrame, *, value: str = "weighted", n_permutations: int = 9999, rng: int | np.random.Generator = 0
) -> pd.DataFrame:
    """Which heads attend more, or less, to one group's identities than to those of the other groups.

    Identities are compared with others of as many tokens: each value is taken minus the mean of its number of tokens,
    and identities that are alone with theirs are left out.

    Parameters
    ----------
    attention
        From :func:`persona_attention`.
    n_permutations
        Permutations of the groups over the identities, within a number of tokens. Questions are no units of the test.

    Returns
    -------
    DataFrame
        One row a group, layer and head: ``n_identities`` of the group, ``difference`` of the means, ``effect_size`` (the
        difference over the pooled standard deviation within the two sides), ``p_value`` (two-sided,
        (1 + number of permutations at least as far apart) / (1 + permutations)) and ``p_adjusted``
        (Benjamini–Hochberg over all heads and groups), smallest first.

    Raises
    ------
    ValueError
        Fewer than two groups with identities to compare.
    """
    wide = attention.pivot(index=["group", "identity", "n_tokens"], columns=["layer", "head"], values=value)
    tokens = wide.index.get_level_values("n_tokens")
    wide = wide[tokens.value_counts().loc[tokens].to_numpy() > 1]
    tokens = wide.index.get_level_values("n_tokens").to_numpy()
    groups = wide.index.get_level_values("group").to_numpy()
    if len(np.unique(groups)) < 2:
        raise ValueError("there are not two groups with identities of the same number of tokens; give more identities.")
    centred = (wide - wide.groupby("n_tokens").transform("mean")).to_numpy()
    shuffled = _shuffle_within(tokens, n_permutations, np.random.default_rng(rng))
    tables = []
    for group in dict.fromkeys(attention["group"]):
        own = groups == group
        if not own.any() or own.all():
            continue
        difference = _mean_difference(own[None], centred)[0]
        permuted = np.abs(_mean_difference(own[shuffled], centred))
        # A permutation that restores the groups must count as equal in floating point too.
        beyond = (permuted >= np.abs(difference) * (1 - 1e-9)).sum(axis=0)
        table = pd.DataFrame(list(wide.columns), columns=["layer", "head"])
        tables.append(
            table.assign(
                group=group,
                n_identities=int(own.sum()),
                difference=difference,
                effect_size=difference / _pooled_deviation(own, centred),
                p_value=(1 + beyond) / (1 + n_permutations),
            )
        )
    found = pd.concat(tables, ignore_index=True)
    found["p_adjusted"] = false_discovery_control(found["p_value"])
    return found.sort_values(["p_adjusted", "p_value"], kind="stable").reset_index(drop=True)


def _choose_attention(lm: LanguageModel, name: str) -> None:
    lm.model.set_attn_implementation(name)
    # Some classes (Falcon) decline, with a warning. They give their weights anyway, but look here for which mask to make.
    lm.model.config._attn_implementation = name


def _read_heads(lm: LanguageModel, prompts: list[Prompt]) -> tuple[np.ndarray, np.ndarray]:
    """Weights from the last token to the marked ones, mean over prompts, and value norms; (layer, head, token) each."""
    ids, mask = pad_right([prompt.ids for prompt in prompts], lm.device)
    start, stop = prompts[0].start, prompts[0].stop
    if any(prompt.ids[:stop] != prompts[0].ids[:stop] for prompt in prompts):
        raise ValueError(
            "the prompts differ before the end of the persona; its tokens cannot be averaged over questions."
        )
    streams: dict[int, torch.Tensor] = {}

    def keep(layer: int, value: torch.Tensor) -> None:
        # What comes before the question is the same in all rows.
        streams[layer] = value[0, start:stop].clone()

    layers = list(component_layers(lm, "resid"))[:-1]
    with torch.inference_mode(), hook_component(lm, "resid", layers, keep):
        shown = lm.decoder(
            input_ids=ids, attention_mask=mask, use_cache=False, output_attentions=True, return_dict=True
        ).attentions
    if shown is None or len(shown) != lm.n_layers or any(weights is None for weights in shown):
        raise ValueError(f"{lm.name} does not give its attention weights, even with the eager implementation.")
    if any(float(weights[:, :, 0, 1:].sum()) > 0 for weights in shown):
        raise ValueError(f"{lm.name} leaves out the causal mask where it gives its attention weights; they are no use.")
    rows, last = torch.arange(len(prompts)), mask.sum(dim=1).cpu() - 1
    weights = torch.stack(
        [layer[rows, :, last, start:stop].float().mean(dim=0).cpu() for layer in shown]
    )  # (layer, head, token)
    return weights.double().numpy(), _value_norms(lm, prompts[0].ids[start:stop], streams)


def _value_norms(
    lm: LanguageModel, ids: tuple[int, ...], streams: dict[int, torch.Tensor]
) -> Float[np.ndarray, "layer head token"]:
    """Norms of the value vectors of tokens, from their residual streams below each block.

    A token by itself attends only to itself, with weight 1, so that what its heads give is its value vector: no need to
    know how an architecture lays out its queries, keys and values, or shares them among heads.
    """
    norms: dict[int, torch.Tensor] = {}

    def keep(layer: int, value: torch.Tensor) -> None:
        norms[layer] = value[:, 0].double().norm(dim=-1).T.cpu()  # (head, token)

    alone = torch.tensor(ids, device=lm.device)[:, None]
    with (
        torch.inference_mode(),
        # In this order: the first hooks on heads look for them in the model as it is.
        hook_component(lm, "heads", list(component_layers(lm, "heads")), keep),
        hook_component(lm, "resid", list(streams), lambda layer, _value: streams[layer][:, None]),
    ):
        lm.decoder(input_ids=alone, attention_mask=torch.ones_like(alone), use_cache=False)
    return np.stack([norms[layer].numpy() for layer in sorted(norms)])


def _shuffle_within(strata: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """(permutation, row) places, permuted within each stratum."""
    places = np.tile(np.arange(len(strata)), (n, 1))
    for stratum in np.unique(strata):
        own = strata == stratum
        places[:, own] = rng.permuted(places[:, own], axis=1)
    return places


def _mean_difference(labels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Mean of the labelled rows minus mean of the others, (labelling, column)."""
    inside = labels.astype(float) @ values
    n = labels.sum(axis=1, keepdims=True)
    return inside / n - (values.sum(axis=0) - inside) / (len(values) - n)


def _pooled_deviation(own: np.ndarray, values: np.ndarray) -> np.ndarray:
    squares = sum(((part - part.mean(axis=0)) ** 2).sum(axis=0) for part in (values[own], values[~own]))
    return np.sqrt(squares / max(1, len(values) - 2))
