"""Reading persona vectors: how far the residual stream lies along them, token by token, before and while a model speaks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy.stats import spearmanr
from tqdm.auto import tqdm

from utils.intervals import interval, resample_weights
from utils.models.components import hook_component
from utils.models.language_model import LanguageModel
from utils.models.prompts import encode_texts, render_chat
from utils.responses.measures import continue_texts
from utils.vectors.fit import PersonaVectors


def project(
    values: Float[np.ndarray, "... layer row node"], vectors: PersonaVectors
) -> Float[np.ndarray, "... layer row persona"]:
    """Place of activations along each vector, in units of the residual stream's length.

    Parameters
    ----------
    values
        At the layers of ``vectors``, in their order.
    """
    return np.einsum("...lrn,lpn->...lrp", values, vectors.units) / vectors.norms[:, None, None]


def read_tokens(
    lm: LanguageModel, vectors: PersonaVectors, question: str, answer: str = "", *, system: str | None = None
) -> pd.DataFrame:
    """Projection of every token of a prompt, and of an answer to it, onto vectors.

    The model is run as it is set up around the call: inside :func:`utils.vectors.steering`, the steered stream is read.

    Parameters
    ----------
    answer
        What was said, such as :meth:`LanguageModel.generate` returned it; none by default.

    Returns
    -------
    DataFrame
        One row a token, layer and persona: ``place, token, part`` (``prompt`` or ``answer``), ``layer, persona`` and
        ``projection``, in units of the residual stream's length.

    Raises
    ------
    ValueError
        Vectors of another model, or a text that is longer than the context window.
    """
    vectors.check_model(lm)
    opened = render_chat(lm.tokenizer, question, system=system)
    if answer:
        (prompt,) = continue_texts(lm.tokenizer, [opened], [answer])
        begin = prompt.start
    else:
        (prompt,) = encode_texts(lm.tokenizer, [opened], [(0, len(opened))])
        begin = len(prompt.ids)
    if lm.max_tokens is not None and len(prompt.ids) > lm.max_tokens:
        raise ValueError(f"the text takes {len(prompt.ids)} tokens, the model's context window has {lm.max_tokens}.")
    found = project(_run(lm, prompt.ids, vectors.layers), vectors)
    tokens = [str(lm.tokenizer.decode([token])) for token in prompt.ids]
    index = pd.MultiIndex.from_product(
        [vectors.layers, range(len(tokens)), vectors.personas], names=["layer", "place", "persona"]
    )
    table = pd.Series(found.ravel(), index, name="projection").reset_index()
    table["token"] = [tokens[place] for place in table["place"]]
    table["part"] = np.where(table["place"] < begin, "prompt", "answer")
    return table[["place", "token", "part", "layer", "persona", "projection"]]


def summarise_tokens(tokens: pd.DataFrame) -> pd.DataFrame:
    """``before``, the projection of the last prompt token, and ``answer``, the mean over the answer, by layer and persona."""
    by = ["layer", "persona"]
    prompt = tokens[tokens["part"] == "prompt"]
    before = prompt[prompt["place"] == prompt["place"].max()].set_index(by)["projection"]
    answer = tokens[tokens["part"] == "answer"].groupby(by, sort=False)["projection"].mean()
    return pd.DataFrame({"before": before, "answer": answer}).reset_index()


def read_answers(
    lm: LanguageModel,
    vectors: PersonaVectors,
    questions: Sequence[str],
    systems: Sequence[str | None],
    *,
    max_tokens: int = 40,
    progress: bool = True,
) -> pd.DataFrame:
    """Let the model answer each question under each system prompt, and read the vectors before and while it speaks.

    Returns
    -------
    DataFrame
        One row a system prompt, question, layer and persona: ``system, question, answer, layer, persona, before, said``, the
        projection of the last prompt token, and the mean projection of the answer's tokens **read without the system
        prompt**: what was said, and not what was asked for. Rows without an answer are left out.
    """
    parts = []
    for system in tqdm(systems, desc="answers", disable=not progress):
        answers = lm.generate(questions, system=system, max_tokens=max_tokens)
        for question, answer in zip(questions, answers, strict=True):
            if not answer:
                continue
            before = summarise_tokens(read_tokens(lm, vectors, question, system=system))
            said = summarise_tokens(read_tokens(lm, vectors, question, answer))
            labels = {"system": system or "", "question": question, "answer": answer}
            parts.append(before.assign(**labels, said=said["answer"]).drop(columns="answer").assign(answer=answer))
    columns = ["system", "question", "answer", "layer", "persona", "before", "said"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def correlate_answers(answers: pd.DataFrame, *, n_bootstrap: int = 1000, rng: int = 0) -> pd.DataFrame:
    """How well the projection before speaking tells what is then said.

    Parameters
    ----------
    answers
        Of :func:`read_answers`.

    Returns
    -------
    DataFrame
        One row a layer and persona: ``layer, persona, n`` and ``correlation`` (Spearman), with ``low`` and ``high`` (95 %,
        bootstrap over questions, each with all its system prompts); ``within`` is the mean correlation within a system
        prompt, where prompts alone explain nothing (Chen et al. 2025, arXiv 2507.21509, find most of it between prompts).
    """
    rows = []
    for (layer, persona), own in answers.groupby(["layer", "persona"], sort=False):
        questions = [group[["before", "said"]].to_numpy() for _, group in own.groupby("question", sort=False)]
        drawn = []
        for counts in resample_weights(len(questions), n_bootstrap, rng).astype(int):
            sample = np.concatenate(
                [np.repeat(each, count, axis=0) for each, count in zip(questions, counts, strict=True)]
            )
            drawn.append(_correlate(sample))
        low, high = interval(np.array(drawn)) if len(questions) > 1 else (np.nan, np.nan)
        within = [_correlate(group[["before", "said"]].to_numpy()) for _, group in own.groupby("system", sort=False)]
        row = {"layer": layer, "persona": persona, "n": len(own), "correlation": _correlate(np.concatenate(questions))}
        rows.append(row | {"low": low, "high": high, "within": float(np.mean(within))})
    return pd.DataFrame(rows)


def _run(lm: LanguageModel, ids: Sequence[int], layers: Sequence[int]) -> Float[np.ndarray, "layer token node"]:
    kept: dict[int, torch.Tensor] = {}
    given = torch.tensor([list(ids)], device=lm.device)
    with (
        torch.inference_mode(),
        hook_component(lm, "resid", layers, lambda layer, value: kept.update({layer: value[0].float().cpu()})),
    ):
        lm.decoder(input_ids=given, attention_mask=torch.ones_like(given), use_cache=False)
    return torch.stack([kept[layer] for layer in layers]).numpy()


def _correlate(pairs: np.ndarray) -> float:
    if len(pairs) < 3 or (np.ptp(pairs, axis=0) == 0).any():
        return float("nan")
    found: Any = spearmanr(pairs[:, 0], pairs[:, 1])  # the stubs of SciPy do not name its fields
    return float(found.statistic)
