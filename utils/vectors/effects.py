"""What steering by persona vectors does to preferences and to perplexity, beside random vectors and vectors of flipped sides."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float
from scipy.stats import false_discovery_control

from utils.causal.interventions import Intervention, steer_along
from utils.causal.scoring import cache_prompts, score_interventions
from utils.intervals import interval, resample_weights
from utils.models.language_model import LanguageModel
from utils.options import CausalMeasure
from utils.responses.evaluation import Condition, evaluate
from utils.responses.measures import Readout, agreement_readout, likelihood_readout, text_readout
from utils.statements.contrasts import Contrast
from utils.statements.splits import name_seen, pair_sides
from utils.vectors.differences import find_directions, side_differences
from utils.vectors.fit import PersonaVectors
from utils.vectors.steering import steering

CLEAN, RANDOM, FLIPPED = "none", "random", "flipped"
_N_BOOTSTRAP, _N_FLIPS = 2000, 4999


@dataclass(frozen=True, eq=False)
class Change:
    """One condition: what is done to the model, at one layer, and what is measured under it.

    Attributes
    ----------
    only
        The persona whose pairs alone are measured; all by default.
    costed
        Whether neutral texts are measured too.
    """

    name: str
    what: Intervention
    only: str | None = None
    costed: bool = False


def draw_controls(
    vectors: PersonaVectors,
    acts: xr.DataArray,
    contrasts: Sequence[Contrast],
    *,
    layer: int,
    strength: float,
    n_random: int = 39,
    n_flipped: int = 39,
    rng: int = 0,
) -> list[Change]:
    """Every persona's vector at one layer and strength, and vectors of the same length that have nothing of the persona.

    Parameters
    ----------
    vectors
        As :func:`utils.vectors.persona_vectors` fitted them on ``acts`` and ``contrasts``.
    n_random
        Directions drawn evenly, the same for all personas.
    n_flipped
        For each persona, vectors fitted in the same way after the sides of pairs were flipped at random. (Flips change no
        more than the sign of a first component, ``pca``.)

    Returns
    -------
    list of Change
        ``none``; each persona's name; ``random <i>``; ``flipped <i>``, for each persona's own pairs.
    """
    generator = np.random.default_rng([rng, layer, 5])
    at = vectors.at(layer)
    norm, own_values = float(at.norms[0]), acts.sel(layer=layer).to_numpy()

    def change(name: str, direction: np.ndarray, **options) -> Change:
        return Change(name, steer_along(layer, direction, strength=strength, norm=norm), **options)

    made = [Change(CLEAN, Intervention(layer), costed=True)]
    rows = zip(at.personas, at.values[0].astype(np.float64), strict=True)
    made += [change(persona, row, costed=True) for persona, row in rows]
    made += [change(f"{RANDOM} {i}", generator.normal(size=at.values.shape[2])) for i in range(n_random)]
    options = {"method": vectors.record.get("method"), "ridge": vectors.record.get("ridge", 1.0)}
    for contrast in contrasts:
        differences = side_differences(own_values, contrast)
        flips = generator.choice([-1.0, 1.0], size=(n_flipped, len(differences)))
        drawn = find_directions(differences, flips, **options)
        made += [change(f"{FLIPPED} {i}", row, only=contrast.persona) for i, row in enumerate(drawn)]
    return made


def measure_changes(
    lm: LanguageModel,
    changes: Sequence[Change],
    statements: pd.DataFrame,
    *,
    texts: Sequence[str] = (),
    measure: CausalMeasure = "likelihood",
    progress: bool = True,
) -> pd.DataFrame:
    """The preference of every pair, and the perplexity of neutral texts, under each of many changes at one layer.

    Parameters
    ----------
    changes
        All at one layer, the one called ``none`` among them. Every token but the first is changed.
    statements
        Positive and negative statements in whole pairs, of one persona or several.

    Returns
    -------
    DataFrame
        As :func:`utils.responses.evaluate` gives it, with ``persona``: ``condition, measure, persona, unit, value, weight``.
    """
    layers = {change.what.layer for change in changes}
    if len(layers) != 1:
        raise ValueError(f"changes at one layer are expected, not at {sorted(layers)}; give each layer its own call.")
    (layer,) = layers
    make = likelihood_readout if measure == "likelihood" else agreement_readout
    parts = []
    for persona, own in statements.groupby("persona", sort=False):
        wanted = [change for change in changes if change.only in (None, persona)]
        positive, negative = pair_sides(own)
        readout = make(lm.tokenizer, [*positive["statement"], *negative["statement"]])
        scores = _score(lm, readout, layer, [change.what for change in wanted], progress) / readout.n_read
        values = scores[:, : len(positive)] - scores[:, len(positive) :]
        for change, row in zip(wanted, values, strict=True):
            rows = {
                "condition": change.name,
                "measure": measure,
                "persona": persona,
                "unit": positive["pair"],
                "value": row,
            }
            parts.append(pd.DataFrame({**rows, "weight": 1.0}))
    if len(texts):
        wanted = [change for change in changes if change.costed]
        readout = text_readout(lm.tokenizer, texts)
        scores = _score(lm, readout, layer, [change.what for change in wanted], progress)
        for change, row in zip(wanted, scores, strict=True):
            unit = [str(place) for place in range(len(texts))]
            rows = {"condition": change.name, "measure": "perplexity", "persona": "", "unit": unit, "value": row}
            parts.append(pd.DataFrame({**rows, "weight": readout.n_read}))
    return pd.concat(parts, ignore_index=True)


def evaluate_vectors(
    lm: LanguageModel,
    steered: Mapping[str, Sequence[Intervention]],
    statements: pd.DataFrame,
    *,
    vectors: PersonaVectors,
    conditions: Sequence[Condition] = (),
    **options,
) -> pd.DataFrame:
    """Vectors in the shared evaluation, :func:`utils.responses.evaluate`, beside prompts and masks.

    Parameters
    ----------
    steered
        By condition: what :func:`utils.vectors.add_vectors` and its kin gave.
    vectors
        What they were made from, so that no pair is measured that they were fitted on.
    conditions
        Of another kind, such as a system prompt or a mask.
    options
        Of :func:`utils.responses.evaluate`.

    Raises
    ------
    ValueError
        A statement that the vectors were fitted on.
    """
    if shared := vectors.seen & name_seen(statements):
        raise ValueError(
            f"the vectors were fitted on statements or pairs that they are to be measured on ({len(shared)} shared); fit them on "
            "others, see utils.statements.restrict."
        )
    parts = [evaluate(lm, [Condition("none"), *conditions], statements, **options)]
    for name, interventions in steered.items():
        with steering(lm, interventions):
            parts.append(evaluate(lm, [Condition(name)], statements, **options))
    return pd.concat(parts, ignore_index=True)


def find_turned(measured: pd.DataFrame, personas: Sequence[str], *, rng: int = 0) -> pd.DataFrame:
    """Which personas their vectors turn up, further than random vectors do.

    Parameters
    ----------
    measured
        Of :func:`measure_changes`, with the conditions of :func:`draw_controls`.

    Returns
    -------
    DataFrame
        One row a persona: ``persona, n_pairs, clean``, the preference of the model as it is; ``effect``, the mean change over
        pairs, with ``low, high`` (95 %, bootstrap over pairs); ``random_mean, random_low, random_high`` (5th and 95th
        percentile) and ``flipped_…`` likewise; ``p_random, p_flipped``: share of drawn vectors, the vector itself
        included, with at least this effect (right tail); ``p_random_adjusted, p_flipped_adjusted``: Benjamini–Hochberg
        over personas; ``perplexity_ratio`` with ``_low, _high``.
    """
    rows = []
    preferences = measured[measured["measure"] != "perplexity"]
    texts = measured[measured["measure"] == "perplexity"]
    for persona in personas:
        wide = preferences[preferences["persona"] == persona].pivot(index="condition", columns="unit", values="value")
        change = wide - wide.loc[CLEAN]
        own = change.loc[persona].to_numpy()
        weights = resample_weights(len(own), _N_BOOTSTRAP, rng) / len(own)
        low, high = interval(weights @ own)
        row = {"persona": persona, "n_pairs": len(own), "clean": wide.loc[CLEAN].mean()}
        row |= {"effect": own.mean(), "low": low, "high": high}
        for kind in (RANDOM, FLIPPED):
            drawn = change[change.index.str.startswith(f"{kind} ")].mean(axis=1).to_numpy()
            row |= _describe(kind, float(own.mean()), drawn)
        if len(texts):
            row |= describe_cost(texts, persona, rng=rng)
        rows.append(row)
    table = pd.DataFrame(rows)
    for kind in (RANDOM, FLIPPED):
        known = table[f"p_{kind}"].notna()
        table[f"p_{kind}_adjusted"] = np.nan
        if known.any():
            table.loc[known, f"p_{kind}_adjusted"] = false_discovery_control(table.loc[known, f"p_{kind}"])
    return table


def find_interference(measured: pd.DataFrame, cosines: pd.DataFrame, *, rng: int = 0) -> pd.DataFrame:
    """What steering by each persona's vector does to the preference for every persona.

    Parameters
    ----------
    measured
        Of :func:`measure_changes`.
    cosines
        Of the personas' vectors, see :meth:`PersonaVectors.cosines`.

    Returns
    -------
    DataFrame
        One row a steered and a measured persona: ``steered, measured, effect, low, high`` (95 %, bootstrap over pairs),
        ``flip_low, flip_high`` (5th and 95th percentile with the sides of measured pairs flipped), ``p_value`` (two-sided,
        by those flips), ``p_adjusted`` (Benjamini–Hochberg over all cells) and ``cosine``.
    """
    personas = list(cosines.index)
    preferences = measured[measured["measure"] != "perplexity"]
    rows = []
    for shown in personas:
        wide = preferences[preferences["persona"] == shown].pivot(index="condition", columns="unit", values="value")
        n = wide.shape[1]
        signs = np.random.default_rng([rng, 6]).choice([-1.0, 1.0], size=(_N_FLIPS, n))
        weights = resample_weights(n, _N_BOOTSTRAP, rng) / n
        for steered in personas:
            change = (wide.loc[steered] - wide.loc[CLEAN]).to_numpy()
            flipped = signs @ change / n
            reached = (np.abs(flipped) >= abs(change.mean()) - 1e-12).sum()
            low, high = interval(weights @ change)
            flip_low, flip_high = np.quantile(flipped, [0.05, 0.95])
            row = {"steered": steered, "measured": shown, "effect": change.mean(), "low": low, "high": high}
            row |= {"flip_low": flip_low, "flip_high": flip_high, "p_value": (1 + reached) / (1 + _N_FLIPS)}
            rows.append(row | {"cosine": cosines.loc[steered, shown]})
    table = pd.DataFrame(rows)
    return table.assign(p_adjusted=false_discovery_control(table["p_value"]))


def _score(
    lm: LanguageModel, readout: Readout, layer: int, changes: Sequence[Intervention], progress: bool
) -> Float[np.ndarray, "change prompt"]:
    return score_interventions(lm, cache_prompts(lm, readout, layer), changes, progress=progress)


def _describe(kind: str, effect: float, drawn: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(drawn, [0.05, 0.95]) if len(drawn) else (np.nan, np.nan)
    p_value = (1 + (drawn >= effect).sum()) / (1 + len(drawn)) if len(drawn) else np.nan
    mean = drawn.mean() if len(drawn) else np.nan
    return {f"{kind}_mean": mean, f"{kind}_low": low, f"{kind}_high": high, f"p_{kind}": p_value}


def describe_cost(texts: pd.DataFrame, condition: str, *, rng: int = 0) -> dict[str, float]:
    """The perplexity under a condition over that of the model as it is, with its interval over texts."""
    value = texts.pivot(index="condition", columns="unit", values="value")
    weight = texts[texts["condition"] == CLEAN].set_index("unit")["weight"].reindex(value.columns).to_numpy(float)
    loss = (value.loc[CLEAN] - value.loc[condition]).to_numpy()
    draws = resample_weights(len(loss), _N_BOOTSTRAP, rng)
    low, high = np.exp(interval(draws @ loss / (draws @ weight)))
    return {
        "perplexity_ratio": float(np.exp(loss.sum() / weight.sum())),
        "perplexity_ratio_low": float(low),
        "perplexity_ratio_high": float(high),
    }
