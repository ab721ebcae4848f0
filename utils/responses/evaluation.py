"""What changes of a model do, and asking in words: conditions times measures on the same held-out pairs, one long table."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from utils.intervals import interval, resample_ratio, resample_weights
from utils.models.language_model import LanguageModel
from utils.models.prompts import render_chat
from utils.options import Measure
from utils.responses.answers import answer_questions
from utils.responses.big_five import report_traits
from utils.responses.measures import AGREEMENT
from utils.responses.preference import (
    answer_odds,
    choose_statements,
    self_report,
    statement_likelihood,
    text_likelihood,
)
from utils.responses.wording import examples_prompt, retrieve_examples
from utils.statements.splits import name_seen, pair_differences, pair_sides

_TIMED = 5  # answers
PREFERENCES: tuple[Measure, ...] = ("likelihood", "self_report", "two_options")


@dataclass(frozen=True)
class Condition:
    """One way to have the persona: a change of the model, a system prompt, examples for each question, or several of them.

    Attributes
    ----------
    change
        Gives, for a model, a context manager inside which it is another: a :class:`utils.subnetworks.PersonaMask`, or a
        function such as ``lambda lm: intervene(lm, intervention)``. Where it has ``check_model``, that is called before
        anything is measured; where it has ``seen``, these are the statements that it was made from.
    examples
        Statements to retrieve from, the nearest ``n_examples`` of which go into the prompt.
    """

    name: str
    change: Callable[[LanguageModel], contextlib.AbstractContextManager[Any]] | None = None
    system: str | None = None
    examples: tuple[str, ...] = ()
    n_examples: int = 4

    def systems(self, queries: Sequence[str]) -> list[str | None]:
        """The system prompt for each of the queries."""
        if not self.examples:
            return [self.system] * len(queries)
        found = retrieve_examples(self.examples, queries, self.n_examples)
        return [examples_prompt(each, self.system) for each in found]


def evaluate(
    lm: LanguageModel,
    conditions: Sequence[Condition],
    statements: pd.DataFrame,
    *,
    preferences: Sequence[Measure] = PREFERENCES,
    questions: pd.DataFrame | None = None,
    texts: Sequence[str] | None = None,
    trait: str | None = None,
    batch_size: int | Literal["auto"] = "auto",
    progress: bool = True,
) -> pd.DataFrame:
    """Measure every condition on the same held-out pairs, questions and texts.

    Parameters
    ----------
    statements
        Positive and negative statements in whole pairs, none of which any mask or example was made from.
    preferences
        Which measures of preference: ``likelihood`` (log-likelihood a token, positive minus negative statement),
        ``self_report`` (log-odds of agreeing, positive minus negative), ``two_options`` (log-odds of choosing the
        positive one).
    questions
        For ``accuracy``, as :func:`utils.statements.load_questions` returns them. With examples, those nearest to all
        questions together are shown with each.
    texts
        Neutral texts for ``perplexity``, see :func:`neutral_texts`. They are given plain, so that prompts do not
        matter to it.
    trait
        Also measure ``big_five``, the self-report on the items of this trait.

    Returns
    -------
    DataFrame
        One row a condition, measure and unit (pair, question, text, item): ``condition, measure, unit, value, weight``.
        A measure is the sum of values over the sum of weights, see :func:`summarise`. ``prompt_tokens`` and
        ``seconds`` come with ``self_report`` and are of one answer of it, asked by itself.

    Raises
    ------
    ValueError
        A change was made from one of the statements or it is among the examples; conditions of one name.
    """
    names = [condition.name for condition in conditions]
    if len(set(names)) < len(names):
        raise ValueError(f"conditions need names of their own, not {', '.join(names)}.")
    for condition in conditions:
        _check_unseen(condition, statements)
        if check := getattr(condition.change, "check_model", None):
            check(lm)
    options = {"batch_size": batch_size, "progress": False}
    parts = []
    for condition in tqdm(conditions, desc="conditions", disable=not progress):
        with contextlib.nullcontext() if condition.change is None else condition.change(lm):
            for measure, unit, value, weight in _measure(
                lm, condition, statements, preferences, questions, texts, trait, options
            ):
                part = pd.DataFrame({"unit": [str(name) for name in unit], "value": value, "weight": weight})
                parts.append(part.assign(condition=condition.name, measure=measure))
    return pd.concat(parts, ignore_index=True)[["condition", "measure", "unit", "value", "weight"]]


def summarise(
    measured: pd.DataFrame, *, baseline: str | None = None, n_bootstrap: int = 2000, rng: int = 0
) -> pd.DataFrame:
    """Estimates with 95 % bootstrap intervals over the units.

    Parameters
    ----------
    measured
        Of :func:`evaluate`.
    baseline
        The condition that others are compared with, unit by unit; the first by default.

    Returns
    -------
    DataFrame
        One row a condition and measure: ``condition, measure, n, estimate, low, high`` and ``change, change_low,
        change_high``, the difference from the baseline under the same resamples (for ``perplexity`` the ratio to it).
        Intervals are of the held-out pairs alone: those of a mask from shuffled sides do not cover another shuffle. They
        are not corrected for their number.
    """
    baseline = baseline if baseline is not None else str(measured["condition"].iloc[0])
    rows = []
    for measure, group in measured.groupby("measure", sort=False):
        wide = {str(name): part.set_index("unit") for name, part in group.groupby("condition", sort=False)}
        if baseline not in wide:
            raise ValueError(f"there is no condition {baseline!r} to compare with; there are {', '.join(wide)}.")
        units = wide[baseline].index
        draws = resample_weights(len(units), n_bootstrap, rng)
        found = {name: _estimate(str(measure), part.loc[units], draws) for name, part in wide.items()}
        base, base_draws = found[baseline]
        for name, (estimate, resampled) in found.items():
            ratio = measure == "perplexity"
            change = estimate / base if ratio else estimate - base
            changes = interval(resampled / base_draws if ratio else resampled - base_draws)
            low, high = interval(resampled)
            row = {"condition": name, "measure": measure, "n": len(units)}
            row |= {"estimate": estimate, "low": low, "high": high}
            rows.append(row | {"change": change, "change_low": changes[0], "change_high": changes[1]})
    return pd.DataFrame(rows)


def _measure(
    lm: LanguageModel,
    condition: Condition,
    statements: pd.DataFrame,
    preferences: Sequence[Measure],
    questions: pd.DataFrame | None,
    texts: Sequence[str] | None,
    trait: str | None,
    options: dict,
) -> Iterator[tuple[str, Sequence, np.ndarray, np.ndarray | float]]:
    """Measure, units, values, weights."""
    positive, negative = pair_sides(statements)
    # Both sides of a pair get one prompt, chosen by what both say, so that it cannot favour the side that is asked about.
    by_pair = dict(
        zip(positive["pair"], condition.systems([*(positive["statement"] + " " + negative["statement"])]), strict=True)
    )
    systems = [by_pair[pair] for pair in statements["pair"]]
    asked = {"likelihood": statement_likelihood, "self_report": self_report}
    for name in preferences:
        if name == "two_options":
            found = choose_statements(lm, statements, system=list(by_pair.values()), **options)
        else:
            found = asked[name](lm, statements, system=systems, **options)
        differences = pair_differences(found)
        yield name, list(differences.index), differences.to_numpy(), 1.0
    if trait is not None:
        system = condition.systems([f"I am someone with {trait}."])[0]
        report = report_traits(lm, trait=trait, system=system, **options)
        weight = report["weight"].to_numpy()
        yield "big_five", list(report["item"]), report["value"].to_numpy() * weight, weight
    if questions is not None:
        system = condition.systems([" ".join(questions["question"])])[0]
        answers = answer_questions(lm, questions, system=system, **options)
        yield "accuracy", list(answers["id"]), answers["correct"].to_numpy(float), 1.0
    if texts is not None:
        likelihood = text_likelihood(lm, texts, **options)
        yield "perplexity", range(len(texts)), likelihood["log_likelihood"].to_numpy(), likelihood["tokens"].to_numpy()
    if "self_report" in preferences:
        tokens, seconds = _time_answers(lm, statements["statement"][:_TIMED], systems)
        yield "prompt_tokens", range(len(tokens)), tokens, 1.0
        yield "seconds", range(len(seconds)), seconds, 1.0


def _time_answers(lm: LanguageModel, statements: pd.Series, systems: Sequence[str | None]) -> np.ndarray:
    """(2, answer): tokens in the prompt, and seconds."""
    asked = [AGREEMENT.format(statement=text) for text in statements]
    tokens, seconds = [], []
    for question, system in zip(asked, systems, strict=False):
        if not tokens:  # the first pass of its kind is slower
            answer_odds(lm, [question], ("Agree", "Disagree"), system=system, progress=False)
        tokens.append(len(lm.tokenizer(render_chat(lm.tokenizer, question, system=system))["input_ids"]))
        started = time.perf_counter()
        answer_odds(lm, [question], ("Agree", "Disagree"), system=system, progress=False)
        seconds.append(time.perf_counter() - started)
    return np.array([tokens, seconds])


def _estimate(measure: str, part: pd.DataFrame, draws: np.ndarray) -> tuple[float, np.ndarray]:
    value, weight = part["value"].to_numpy(float), part["weight"].to_numpy(float)
    estimate, resampled = resample_ratio(value, weight, draws)
    return (np.exp(-estimate), np.exp(-resampled)) if measure == "perplexity" else (estimate, resampled)


def _check_unseen(condition: Condition, statements: pd.DataFrame) -> None:
    seen = name_seen(condition.examples) | getattr(condition.change, "seen", set())
    if shared := seen & name_seen(statements):
        raise ValueError(
            f"condition {condition.name!r} was made from statements or pairs that it is to be measured on ({len(shared)} "
            "shared); keep them apart with utils.statements.draw_parts."
        )
