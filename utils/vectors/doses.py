"""Layer and strength: dose–response of steering with its cost, and what is chosen by it on the ``select`` pairs."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from utils.causal.interventions import Intervention, steer_along
from utils.intervals import interval, resample_weights
from utils.models.language_model import LanguageModel
from utils.options import CausalMeasure
from utils.statements.splits import split_parts
from utils.vectors.effects import CLEAN, Change, describe_cost, measure_changes
from utils.vectors.fit import PersonaVectors

_N_BOOTSTRAP = 2000


def split_for_steering(statements: pd.DataFrame | xr.DataArray, *, share: float = 0.4, rng: int = 0) -> np.ndarray:
    """Divide the ``test`` part of :func:`utils.statements.split_parts` once more.

    Parameters
    ----------
    share
        About how much of the test pairs to measure on.

    Returns
    -------
    ndarray
        (n_statements,) of ``select`` (layer and strength are chosen on these), ``fit`` (vectors) and ``measure``, whole
        pairs each.
    """
    part = split_parts(statements, rng=rng)
    within = split_parts(statements, share=share, rng=rng + 1)
    return np.where(part == "select", "select", np.where(within == "select", "measure", "fit"))


def take_pairs(statements: pd.DataFrame, n_pairs: int) -> pd.DataFrame:
    """The first pairs of each persona, at most that many."""
    place = statements.groupby("persona", sort=False)["pair"].transform(lambda pairs: pd.factorize(pairs)[0])
    return statements[place < n_pairs]


def measure_doses(
    lm: LanguageModel,
    vectors: PersonaVectors,
    statements: pd.DataFrame,
    *,
    strengths: Sequence[float],
    texts: Sequence[str] = (),
    measure: CausalMeasure = "likelihood",
    rng: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """The effect of every persona's vector on its own pairs, and its cost, by layer and strength.

    Parameters
    ----------
    vectors
        At each of their layers by itself.
    statements
        In whole pairs, none of which the vectors were fitted on.
    texts
        Neutral texts for the perplexity.

    Returns
    -------
    DataFrame
        One row a layer, persona and strength, strength 0 (nothing done) among them: ``layer, persona, strength, n_pairs,
        effect``, the mean change in preference, with ``low, high`` (95 %, bootstrap over pairs); ``margin``, mean over
        standard deviation of the change; ``perplexity_ratio`` with ``_low, _high``.
    """
    vectors.check_model(lm)
    rows = []
    for layer in vectors.layers:
        own = vectors.at(layer)
        names = {
            (persona, strength): f"{persona} {strength}"
            for persona in own.personas
            for strength in strengths
            if strength
        }
        changes = [Change(CLEAN, Intervention(layer), costed=True)]
        for (persona, strength), name in names.items():
            direction = own[persona].values[0, 0].astype(np.float64)
            what = steer_along(layer, direction, strength=strength, norm=float(own.norms[0]))
            changes.append(Change(name, what, only=persona, costed=True))
        kept = statements[statements["persona"].isin(own.personas)]
        measured = measure_changes(lm, changes, kept, texts=texts, measure=measure, progress=progress)
        costs = measured[measured["measure"] == "perplexity"]
        for persona in own.personas:
            wide = measured[measured["persona"] == persona].pivot(index="condition", columns="unit", values="value")
            row = {"layer": layer, "persona": persona, "n_pairs": wide.shape[1]}
            nothing = dict.fromkeys(["strength", "effect", "low", "high", "margin"], 0.0)
            unit = dict.fromkeys(["perplexity_ratio", "perplexity_ratio_low", "perplexity_ratio_high"], 1.0)
            rows.append(row | nothing | (unit if len(texts) else {}))
            for strength in strengths:
                if not strength:
                    continue
                name = names[persona, strength]
                change = (wide.loc[name] - wide.loc[CLEAN]).to_numpy()
                low, high = interval(resample_weights(len(change), _N_BOOTSTRAP, rng) @ change / len(change))
                spread = change.std(ddof=1)
                found = {"strength": strength, "effect": change.mean(), "low": low, "high": high}
                found["margin"] = change.mean() / spread if spread else 0.0
                rows.append(row | found | (describe_cost(costs, name, rng=rng) if len(texts) else {}))
    return pd.DataFrame(rows).sort_values(["layer", "persona", "strength"], ignore_index=True)


def choose_dose(doses: pd.DataFrame, *, bound: float = 1.1) -> tuple[int, float]:
    """Layer and strength, for all personas, with the largest margin in the mean over personas whose mean cost is in bounds.

    Parameters
    ----------
    doses
        Of :func:`measure_doses` on ``select`` pairs; strengths above 0 are chosen from.
    bound
        Of the perplexity ratio. Where nothing stays under it, the least cost is taken.
    """
    means = doses[doses["strength"] > 0].groupby(["layer", "strength"])[["margin", "perplexity_ratio"]].mean()
    allowed = means[means["perplexity_ratio"] <= bound]
    best = means["perplexity_ratio"].idxmin() if allowed.empty else allowed["margin"].idxmax()
    layer, strength = best  # pyright: ignore[reportGeneralTypeIssues]
    return int(layer), float(strength)


def largest_strengths(doses: pd.DataFrame, *, bound: float = 1.1) -> pd.DataFrame:
    """The largest strength of each persona, up and down, up to which the perplexity ratio stays under a bound.

    Returns
    -------
    DataFrame
        One row a layer, persona and side: ``layer, persona, side`` (``up``, ``down``), ``strength, effect, low, high,
        perplexity_ratio``; strength 0 where none of those tried stays under it.

    Raises
    ------
    ValueError
        A bound below 1, which even doing nothing exceeds.
    """
    if not bound >= 1:
        raise ValueError(f"the bound on the perplexity ratio is {bound}; expected 1, the model as it is, or more.")
    rows = []
    for (layer, persona), own in doses.groupby(["layer", "persona"], sort=False):
        for side, sign in (("up", 1), ("down", -1)):
            ordered = own[own["strength"] * sign >= 0].sort_values("strength", key=abs)
            # The first that is over the bound ends it, also where a larger one happens to lie under it again.
            within = (ordered["perplexity_ratio"] <= bound).cumprod().astype(bool)
            last = ordered[within].iloc[-1]
            names = ["strength", "effect", "low", "high", "perplexity_ratio"]
            rows.append({"layer": layer, "persona": persona, "side": side, **last[names].to_dict()})
    return pd.DataFrame(rows)
