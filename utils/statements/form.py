"""The form of statements: what tells two directions apart without a word of content.

A scan or a probe that separates "would say" from "would not say" may have found length, punctuation or negation
instead of a persona. The form baseline measures how far these alone go.
"""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Shaped
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from utils.statements.contrasts import Contrast

# Form that tells the sides apart this well leaves little to be said about a persona.
FORM_LIMIT = 0.62

# Closed-class English words. Stop-word lists of libraries mix in content words ("system", "fire"), and those that
# do not drop the contractions that carry negation.
FUNCTION_WORDS = frozenset(
    """
    a about above across after again against all almost alone along already also although always am among an and
    another any anybody anyone anything are around as at away back be because been before behind being below beside
    between beyond both but by came can cannot come could did do does doing done down during each either else enough
    even ever every everybody everyone everything except few for from get gets getting give go goes going gone got
    had has have having he her here hers herself him himself his how however i if in inside instead into is it its
    itself just keep last least less let like many may maybe me might mine more most much must my myself near need
    neither never next no nobody none nor not nothing now nowhere of off often on once one only onto or other others
    ought our ours ourselves out outside over own per perhaps put quite rather really same shall she should since so
    some somebody someone something sometimes somewhere still such take than that the their theirs them themselves
    then there these they this those though through till to together too toward towards two under unless until up
    upon us very was we well were what whatever when whenever where wherever whether which whichever while who
    whoever whom whose why will with within without would yet you your yours yourself
    i'm i've i'd i'll it's that's there's he's she's they're we're you're they've we've you've they'd we'd you'd
    they'll we'll you'll he'd she'd he'll she'll who's what's let's don't doesn't didn't won't wouldn't can't
    couldn't shouldn't isn't aren't wasn't weren't haven't hasn't hadn't mustn't needn't ain't
    """.split()
)
_NEGATION = re.compile(r"\b(?:not|no|never|none|nobody|nothing|neither|nor|nowhere|cannot|without)\b|n't\b")
_PUNCTUATION = [",", ".", ";", ":", "?", "!", "-", "\u2014", "'", '"', "("]


def words(statement: str) -> list[str]:
    """Lower-case words of a statement, contractions kept whole."""
    return re.findall(r"[a-z0-9]+(?:['-][a-z0-9]+)*", statement.lower().replace("\u2019", "'"))


def has_negation(statement: str) -> bool:
    """Tell whether a statement holds a negation word or a contracted *not*."""
    return _NEGATION.search(statement.lower().replace("\u2019", "'")) is not None


def form_features(statements: Sequence[str], *, n_words: int = 50) -> pd.DataFrame:
    """Counts of the most common function words, length and punctuation: (n_statements, n_features)."""
    tokens = [words(statement) for statement in statements]
    counts = pd.Series([word for row in tokens for word in row if word in FUNCTION_WORDS]).value_counts()
    # Sorted by count and then by word, so that ties do not depend on the order of the statements.
    common = sorted(counts.index, key=lambda word: (-counts[word], word))[:n_words]
    features = {word: [row.count(word) for row in tokens] for word in common}
    features |= {f"mark {mark}": [text.count(mark) for text in statements] for mark in _PUNCTUATION}
    features |= {
        "words": [len(row) for row in tokens],
        "characters": [len(text) for text in statements],
    }
    return pd.DataFrame(features, dtype=float)


def form_accuracy(
    texts: Sequence[str],
    labels: Bool[np.ndarray, "n"],
    units: Shaped[np.ndarray, "n"],
    *,
    folds: int = 5,
    repeats: int = 5,
    rng: int = 0,
) -> float:
    """Cross-validated accuracy of telling two sides apart by form alone; chance is 0.5.

    Logistic regression on :func:`form_features`, in folds that keep units (pairs) whole, averaged over ``repeats``
    draws of the folds. Accuracy is balanced over the sides.

    Raises
    ------
    ValueError
        All statements are of one side.
    """
    x = form_features(texts).to_numpy()
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, class_weight="balanced"))
    return _accuracy(model, x, labels, units, folds, repeats, rng)


def content_accuracy(
    texts: Sequence[str],
    labels: Bool[np.ndarray, "n"],
    units: Shaped[np.ndarray, "n"],
    *,
    folds: int = 5,
    repeats: int = 1,
    rng: int = 0,
) -> float:
    """Accuracy of a logistic regression on TF-IDF of all words, in the folds of :func:`form_accuracy`."""
    vectors = TfidfVectorizer(analyzer=words)  # pyright: ignore[reportArgumentType]
    model = make_pipeline(vectors, LogisticRegression(C=10.0, max_iter=2000, class_weight="balanced"))
    return _accuracy(model, np.asarray(texts, dtype=object), labels, units, folds, repeats, rng)


def form_table(texts: Sequence[str], contrasts: list[Contrast], *, repeats: int = 2) -> pd.DataFrame:
    """The form baseline of each contrast: ``persona, form_accuracy, gives_away`` (whether form passes the limit).

    Parameters
    ----------
    texts
        All statements, in the order that the contrasts point into.
    """
    rows = []
    for contrast in contrasts:
        own = [texts[int(i)] for i in contrast.rows]
        accuracy = form_accuracy(own, contrast.labels, contrast.units, repeats=repeats)
        rows.append({"persona": contrast.persona, "form_accuracy": accuracy, "gives_away": accuracy >= FORM_LIMIT})
    return pd.DataFrame(rows, columns=["persona", "form_accuracy", "gives_away"])


def _accuracy(
    model: Pipeline, x: np.ndarray, labels: np.ndarray, units: np.ndarray, folds: int, repeats: int, rng: int
) -> float:
    if labels.all() or not labels.any():
        raise ValueError("the statements are all of one side; both are needed to compare their form.")
    hits = []
    for seed in range(rng, rng + repeats):
        split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        guessed = cross_val_predict(model, x, labels, groups=units, cv=split)
        hits.append(balanced_accuracy_score(labels, guessed))
    return float(np.mean(hits))
