"""What interventions on node sets do to a model's preference: effects with intervals, and ranks among random sets."""

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control

from utils.intervals import FEWEST, interval, rank_p_value, resample_weights

# What is compared with each other: the same thing done to equally many nodes of one layer.
CHECK = ["mode", "measure", "prompt"]
GROUP = ["layer", *CHECK, "strength", "size"]
DENSE, TURNED = "dense direction", "scan, sides of the means"
CLEAN, ASKED, RANDOM, MATCHED = "none", "persona prompt", "random", "random, matched"


def summarise_effects(
    values: pd.DataFrame, *, n_bootstrap: int = 2000, rng: int | np.random.Generator = 0
) -> pd.DataFrame:
    """Effects on the preference for the persona's side, against the model as it is and against random node sets.

    Parameters
    ----------
    values
        One row a node set and pair: ``layer, mode, measure, prompt, strength, size, selector, draw, n_nodes, pair`` and
        ``value``, the preference (positive minus negative statement). Selector ``none`` is the model as it is, ``random``
        and ``random, matched`` are drawn sets, told apart by ``draw``; ``persona prompt`` is asking in words.

    Returns
    -------
    DataFrame
        One row a node set that was chosen, by what was done to it: the columns above and ``n_pairs``; ``clean``, the
        preference of the model as it is; ``effect``, the mean over pairs of the change in preference (above 0: towards the
        persona), with ``low`` and ``high`` (95 %, bootstrap over pairs) and ``effect_per_node``. ``random_mean, random_low,
        random_high``: mean and 5th and 95th percentile of the effects of random sets. ``p_value``: twice the smaller of
        the shares of random sets with an effect at least as high and at least as low, the set itself counted in (exact
        if any set of nodes was as good as any other); ``p_matched`` likewise among sets matched in spread.

    Raises
    ------
    ValueError
        Something was measured without the model as it is on the same pairs.
    """
    rows = []
    where = ["layer", *CHECK]
    clean = {
        key: group.set_index("pair")["value"]
        for key, group in values[values["selector"] == CLEAN].groupby(where, sort=False)
    }
    weights: dict[int, np.ndarray] = {}
    for key, group in values[values["selector"] != CLEAN].groupby(GROUP, sort=False):
        at = dict(zip(GROUP, key, strict=True))
        sets = group[["selector", "draw", "n_nodes"]].drop_duplicates()
        wide = group.pivot(index=list(sets), columns="pair", values="value").loc[pd.MultiIndex.from_frame(sets)]
        own_clean = clean.get(tuple(at[name] for name in where), pd.Series(dtype=float)).reindex(wide.columns)
        if own_clean.isna().any():
            named = "/".join(str(at[name]) for name in where)
            raise ValueError(
                f"there is no clean run of the same pairs to compare {named} with; give rows of selector none."
            )
        unchanged = own_clean.to_numpy()
        change = wide - unchanged
        n = len(unchanged)
        if n not in weights:
            weights[n] = resample_weights(n, n_bootstrap, rng) / n
        effects = change.mean(axis=1)
        null = {
            name: effects[effects.index.get_level_values("selector") == name].to_numpy() for name in (RANDOM, MATCHED)
        }
        for (selector, _, n_nodes), own in change.iterrows():
            if selector in null:
                continue
            effect = float(own.mean())
            low, high = interval(weights[n] @ own.to_numpy()) if n >= FEWEST else (np.nan, np.nan)
            drawn = null[RANDOM]
            rows.append(
                {
                    **at,
                    "selector": selector,
                    "n_nodes": n_nodes,
                    "n_pairs": n,
                    "clean": unchanged.mean(),
                    "effect": effect,
                    "low": low,
                    "high": high,
                    "effect_per_node": effect / n_nodes if n_nodes else np.nan,
                    "random_mean": drawn.mean() if len(drawn) else np.nan,
                    "random_low": np.quantile(drawn, 0.05) if len(drawn) else np.nan,
                    "random_high": np.quantile(drawn, 0.95) if len(drawn) else np.nan,
                    "n_random": len(drawn),
                    "p_value": rank_p_value(effect, drawn) if n_nodes else np.nan,
                    "p_matched": rank_p_value(effect, null[MATCHED]) if n_nodes else np.nan,
                }
            )
    return pd.DataFrame(rows)


def adjust_checks(effects: pd.DataFrame) -> pd.DataFrame:
    """The effects with ``p_adjusted``: Benjamini–Hochberg over all rows of a selector; NaN where there is no p-value."""
    return effects.assign(p_adjusted=effects.groupby("selector")["p_value"].transform(_adjust))


def _adjust(p_values: pd.Series) -> np.ndarray:
    known = p_values.notna().to_numpy()
    adjusted = np.full(len(p_values), np.nan)
    if known.any():
        adjusted[known] = false_discovery_control(p_values[known])
    return adjusted
