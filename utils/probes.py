"""Linear probes: whether a hyperplane tells the two sides apart on statements it was not fitted on."""

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold


def probe_scores(
    x: Float[np.ndarray, "n d"],
    labels: Bool[np.ndarray, "n"],
    units: Int[np.ndarray, "n"],
    *,
    folds: int = 5,
    n_bootstrap: int = 500,
    rng: int = 0,
) -> dict[str, float]:
    """Accuracy and AUROC of a logistic-regression probe with 95 % intervals.

    Parameters
    ----------
    x
        Activations.
    labels
        True for H1.
    units
        The pair (or single statement) of each row: never split over folds, resampled as a whole.

    Returns
    -------
    dict
        ``probe_accuracy`` (balanced over the sides, so that chance is 0.5) and ``probe_auroc``, each also with
        ``_low`` and ``_high``: percentiles over resampled units with the predictions held fixed.
    """
    scores = out_of_fold_scores(x, labels, units, folds=folds, rng=rng)
    generator = np.random.default_rng(rng)
    n_units = int(units.max()) + 1
    weights = generator.multinomial(n_units, np.full(n_units, 1 / n_units), size=n_bootstrap)[:, units]  # (b, n)
    weights = np.vstack([np.ones_like(weights[:1]), weights]).astype(float)
    # A resample that lost a whole side says nothing about telling the sides apart.
    weights = weights[(weights[:, labels].sum(1) > 0) & (weights[:, ~labels].sum(1) > 0)]
    result = {}
    for name, values in {
        "probe_accuracy": _balanced_accuracy(scores, labels, weights),
        "probe_auroc": _auroc(scores, labels, weights),
    }.items():
        low, high = np.quantile(values[1:], [0.025, 0.975])
        result |= {name: float(values[0]), f"{name}_low": float(low), f"{name}_high": float(high)}
    return result


def out_of_fold_scores(
    x: Float[np.ndarray, "n d"],
    labels: Bool[np.ndarray, "n"],
    units: Int[np.ndarray, "n"],
    *,
    folds: int = 5,
    rng: int = 0,
) -> Float[np.ndarray, "n"]:
    """Log-odds of H1 for each row from a probe that saw neither the row nor its pair.

    The nodes are standardised over all rows (labels unseen) and rotated onto their principal axes, which leaves an
    L2-penalised probe as it is and makes its fit cheap where there are more nodes than rows.
    """
    spread = x.std(axis=0)
    z = (x - x.mean(axis=0)) / np.where(spread > 0, spread, 1)
    left, singular, _ = np.linalg.svd(z, full_matrices=False)
    rotated = left * singular / np.sqrt(x.shape[1])  # rows of about unit norm, whatever the width of the model
    scores = np.empty(len(x))
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=rng)
    for fitted, held_out in split.split(rotated, labels, units):
        probe = LogisticRegression(C=10.0, class_weight="balanced", tol=1e-6, max_iter=1000)
        scores[held_out] = probe.fit(rotated[fitted], labels[fitted]).decision_function(rotated[held_out])
    return scores


def _balanced_accuracy(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    right = (scores > 0) == labels
    sides = [weights[:, side] @ right[side] / weights[:, side].sum(1) for side in (labels, ~labels)]
    return (sides[0] + sides[1]) / 2


def _auroc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    ahead = np.subtract.outer(scores[labels], scores[~labels])
    wins = (ahead > 0) + 0.5 * (ahead == 0)  # (n_h1, n_h0)
    plus, minus = weights[:, labels], weights[:, ~labels]
    return np.einsum("bi,ij,bj->b", plus, wins, minus, optimize=True) / (plus.sum(1) * minus.sum(1))
