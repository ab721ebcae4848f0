import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

from utils.probes import out_of_fold_scores, probe_scores


def make_pairs(rng, n_pairs, d, *, effect=0.0, topic=1.0):
    """Pairs (H0 before H1) that share a topic; ``effect`` on the first node."""
    shared = topic * rng.normal(size=(n_pairs, d))
    x = np.concatenate([shared, shared]) + rng.normal(size=(2 * n_pairs, d))
    labels = np.repeat([False, True], n_pairs)
    x[labels, 0] += effect
    return x, labels, np.tile(np.arange(n_pairs), 2)


@pytest.mark.parametrize(("n_pairs", "d"), [(20, 8), (20, 200), (60, 60)])
@pytest.mark.parametrize("seed", [0, 1])
def test_scores_are_those_of_a_probe_on_the_unrotated_nodes(n_pairs, d, seed):
    """Rotation to principal axes must not change the probe; the reference fits all nodes, with another solver."""
    x, labels, units = make_pairs(np.random.default_rng(seed), n_pairs, d, effect=1.0)
    scores = out_of_fold_scores(x, labels, units, rng=seed)
    z = (x - x.mean(0)) / x.std(0) / np.sqrt(d)
    expected = np.full(len(x), np.nan)
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
    for fitted, held_out in folds.split(x, labels, units):
        probe = LogisticRegression(C=10.0, class_weight="balanced", solver="newton-cg", tol=1e-10, max_iter=1000)
        expected[held_out] = probe.fit(z[fitted], labels[fitted]).decision_function(z[held_out])
    np.testing.assert_allclose(scores, expected, atol=1e-3)
    assert np.abs(expected).max() > 0.1


def test_pairs_are_never_split():
    """Each pair lies at plus and minus a direction of its own, side by chance: only a split pair gives its label away."""
    rng = np.random.default_rng(0)
    n = 40
    code = 5 * rng.normal(size=(n, 300)) * rng.choice([-1, 1], size=(n, 1))
    x = np.concatenate([-code, code])
    labels = np.repeat([False, True], n)
    units = np.tile(np.arange(n), 2)
    whole = out_of_fold_scores(x, labels, units)
    split = out_of_fold_scores(x, labels, np.arange(2 * n))
    assert ((split > 0) == labels).mean() > 0.75  # the data do leak
    # 40 independent pairs, both right or both wrong: 0.5 with standard error 0.08.
    assert 0.25 < ((whole > 0) == labels).mean() < 0.75
    # The two scores of a pair come from one fold and so from one hyperplane: they lie opposite about one intercept.
    middle = (whole[:n] + whole[n:]) / 2
    assert len(np.unique(np.round(middle, 6))) <= 5


@pytest.mark.parametrize("effect", [0.0, 0.7, 2.0])
@pytest.mark.parametrize("sides", ["paired", "unequal"])
def test_accuracy_and_auroc_are_those_of_scikit_learn(effect, sides):
    x, labels, units = make_pairs(np.random.default_rng(3), 30, 12, effect=effect)
    if sides == "unequal":
        x, labels, units = x[12:], labels[12:], np.arange(48)
    scores = out_of_fold_scores(x, labels, units)
    row = probe_scores(x, labels, units)
    assert row["probe_auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert row["probe_accuracy"] == pytest.approx(balanced_accuracy_score(labels, scores > 0), abs=1e-12)


def test_auroc_counts_ties_half():
    """One constant node beside one with two values: scores are tied in masses."""
    rng = np.random.default_rng(0)
    x = np.stack([np.ones(60), rng.integers(0, 2, 60)], axis=1).astype(float)
    labels = np.arange(60) % 2 == 0
    scores = out_of_fold_scores(x, labels, np.arange(60))
    assert len(np.unique(scores)) < 20
    assert probe_scores(x, labels, np.arange(60))["probe_auroc"] == pytest.approx(roc_auc_score(labels, scores))


def test_intervals_resample_whole_pairs():
    """Every statement twice in one unit: as wide as the intervals of the statements once, not narrower."""
    rng = np.random.default_rng(0)
    x, labels, _ = make_pairs(rng, 60, 5, effect=0.6, topic=0.0)
    once = probe_scores(x, labels, np.arange(120), n_bootstrap=2000)
    together = probe_scores(np.tile(x, (4, 1)), np.tile(labels, 4), np.tile(np.arange(120), 4), n_bootstrap=2000)
    apart = probe_scores(np.tile(x, (4, 1)), np.tile(labels, 4), np.arange(480), n_bootstrap=2000)
    width = [row["probe_auroc_high"] - row["probe_auroc_low"] for row in (once, together, apart)]
    assert width[1] == pytest.approx(width[0], rel=0.25)
    assert width[2] < 0.65 * width[0]


def test_interval_width_is_that_of_the_binomial():
    """Unpaired statements: the bootstrap of the accuracy has the textbook standard error."""
    rng = np.random.default_rng(1)
    x, labels, _ = make_pairs(rng, 100, 5, effect=1.0, topic=0.0)
    row = probe_scores(x, labels, np.arange(200), n_bootstrap=4000)
    share = row["probe_accuracy"]
    expected = 2 * 1.96 * np.sqrt(share * (1 - share) / 200)
    assert row["probe_accuracy_high"] - row["probe_accuracy_low"] == pytest.approx(expected, rel=0.15)
    assert row["probe_accuracy_low"] < share < row["probe_accuracy_high"]


def test_auroc_interval_covers_chance_without_effect():
    """Correlated pairs, nothing that tells the sides apart: at least 90 of 100 intervals hold 0.5."""
    covered = 0
    for seed in range(100):
        x, labels, units = make_pairs(np.random.default_rng(seed), 25, 10)
        row = probe_scores(x, labels, units, n_bootstrap=200, rng=seed)
        covered += row["probe_auroc_low"] <= 0.5 <= row["probe_auroc_high"]
    assert covered >= 90


def test_effect_is_found_and_the_seed_decides():
    x, labels, units = make_pairs(np.random.default_rng(5), 40, 30, effect=4.0)
    row = probe_scores(x, labels, units, rng=7)
    assert row["probe_auroc_low"] > 0.8
    assert row == probe_scores(x, labels, units, rng=7)
    assert row != probe_scores(x, labels, units, rng=8)


def test_constant_nodes_and_offsets_change_nothing():
    x, labels, units = make_pairs(np.random.default_rng(2), 20, 10, effect=1.0)
    expected = out_of_fold_scores(x, labels, units)
    scaled = out_of_fold_scores(x * np.logspace(-3, 3, 10) + 100, labels, units)
    np.testing.assert_allclose(scaled, expected, atol=2e-3)
    assert np.isfinite(out_of_fold_scores(np.hstack([x, np.ones((40, 3))]), labels, units)).all()
