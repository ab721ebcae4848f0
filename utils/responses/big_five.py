"""The Big Five by the public-domain IPIP-NEO-120 items, which the optional package ``ffm`` ships."""

import importlib
import importlib.util
from typing import Literal

import pandas as pd

from utils.models.language_model import LanguageModel
from utils.responses.measures import System
from utils.responses.preference import answer_odds

ITEM = 'Does this statement describe you? Answer with "Yes" or "No".\n\n{item}'
TRAITS = ("agreeableness", "conscientiousness", "extraversion", "neuroticism", "openness")


def has_items() -> bool:
    """Whether the package with the items is installed."""
    return importlib.util.find_spec("FFM") is not None


def find_trait(persona: str) -> str | None:
    """The trait that a persona is called after, where there is one and its items are installed."""
    return persona if persona in TRAITS and has_items() else None


def load_items() -> pd.DataFrame:
    """The items of the inventory.

    Returns
    -------
    DataFrame
        120 rows: ``item``, ``trait`` (as the persona is called) and ``key``, +1 where agreeing speaks for the trait and −1
        where it speaks against.

    Raises
    ------
    ModuleNotFoundError
        The package is not installed.
    """
    if not has_items():
        raise ModuleNotFoundError("the Big Five items come with the optional package ffm: run `pip install ffm`.")
    core = importlib.import_module("FFM.core")
    # The keys are inside the scoring function: what does one answer more do to the traits?
    neutral = [3] * len(core.Qs)
    base = core.score(neutral).iloc[0]
    rows = []
    for place, item in enumerate(core.Qs):
        answers = list(neutral)
        answers[place] = 4
        change = core.score(answers).iloc[0] - base
        trait = str(change.abs().idxmax())
        rows.append((item, trait.lower(), 1 if change[trait] > 0 else -1))
    return pd.DataFrame(rows, columns=["item", "trait", "key"])


def report_traits(
    lm: LanguageModel,
    *,
    trait: str | None = None,
    system: System = None,
    batch_size: int | Literal["auto"] = "auto",
    progress: bool = True,
) -> pd.DataFrame:
    """What the model says of itself, item by item.

    Parameters
    ----------
    trait
        Only the items of this trait; all by default.

    Returns
    -------
    DataFrame
        The items with ``value``, the log-odds of *Yes* against *No* times the item's key, so that more is more of the
        trait, and ``weight``: in the weighted mean over a trait, items of either key weigh the same in all, so that a
        leaning to say yes cancels.

    Raises
    ------
    ModuleNotFoundError, ValueError
        The package is not installed; an unknown trait.
    """
    if trait is not None and trait not in TRAITS:
        raise ValueError(f"unknown trait {trait!r}; expected one of {', '.join(TRAITS)}.")
    items = load_items()
    items = items if trait is None else items[items["trait"] == trait].reset_index(drop=True)
    asked = [ITEM.format(item=item) for item in items["item"]]
    odds = answer_odds(
        lm, asked, ("Yes", "No"), system=system, batch_size=batch_size, progress=progress, name="Big Five"
    )
    weight = 1 / items.groupby(["trait", "key"])["key"].transform("size")
    return items.assign(value=odds * items["key"], weight=weight)
