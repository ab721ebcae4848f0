import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

from utils.layers.clusters import flip_sides
from utils.layers.probes import class_probe_scores, out_of_fold_scores, plan_probes, probe_scores


def make_pairs(rng, n_pairs, d, *, effect=0.0, topic=1.0):
    """Pairs (H0 before H1) that share a topic; ``effect`` on the first node."""
    shared = topic * rng.normal(size=(n_pairs, d))
    x = np.concatenate([shared, shared]) + rng.normal(size=(2 * n_pairs, d))
    labels = np.repeat([False, True], n_pairs)
    x[labels, 0] += effect
    return x, labels, np.tile(np.arange(n_pairs), 2)


def score(x, labels, units, **options):
    return probe_scores(x, plan_probes(labels, units, **options))


def held_out_scores(x, labels, units, **options):
    return out_of_fold_scores(x, plan_probes(labels, units, **options))[:, 0]


@pytest.mark.parametrize(("n_pairs", "d"), [(20, 8), (20, 200), (60, 60)])
@pytest.mark.parametrize("seed", [0, 1])
def test_scores_are_those_of_a_probe_on_the_unrotated_nodes(n_pairs, d, seed):
    """Rotation to principal axes must not change the probe; the reference fits all nodes, with another solver."""
    x, labels, units = make_pairs(np.random.default_rng(seed), n_pairs, d, effect=1.0)
    shuffled = flip_sides(labels, units, 3, np.random.default_rng(seed))
    scores = out_of_fold_scores(x, plan_probes(labels, units, shuffled=shuffled, rng=seed))
    z = (x - x.mean(0)) / x.std(0) / np.sqrt(d)
    expected = np.full((len(x), 4), np.nan)
    for column, sides in enumerate([labels, *shuffled.T]):
        folds = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
        for fitted, held_out in folds.split(x, sides, units):
            probe = LogisticRegression(C=10.0, class_weight="balanced", solver="lbfgs", tol=1e-10, max_iter=10000)
            expected[held_out, column] = probe.fit(z[fitted], sides[fitted]).decision_function(z[held_out])
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
    whole = held_out_scores(x, labels, units)
    split = held_out_scores(x, labels, np.arange(2 * n))
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
    scores = held_out_scores(x, labels, units)
    row = score(x, labels, units)
    assert row["probe_auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert row["probe_accuracy"] == pytest.approx(balanced_accuracy_score(labels, scores > 0), abs=1e-12)


def test_auroc_counts_ties_half():
    """One constant node beside one with two values: scores are tied in masses."""
    rng = np.random.default_rng(0)
    x = np.stack([np.ones(60), rng.integers(0, 2, 60)], axis=1).astype(float)
    labels = np.arange(60) % 2 == 0
    scores = held_out_scores(x, labels, np.arange(60))
    assert len(np.unique(scores)) < 20
    assert score(x, labels, np.arange(60))["probe_auroc"] == pytest.approx(roc_auc_score(labels, scores))


def test_intervals_resample_whole_pairs():
    """Every statement twice in one unit: as wide as the intervals of the statements once, not narrower."""
    rng = np.random.default_rng(0)
    x, labels, _ = make_pairs(rng, 60, 5, effect=0.6, topic=0.0)
    once = score(x, labels, np.arange(120), n_bootstrap=2000)
    together = score(np.tile(x, (4, 1)), np.tile(labels, 4), np.tile(np.arange(120), 4), n_bootstrap=2000)
    apart = score(np.tile(x, (4, 1)), np.tile(labels, 4), np.arange(480), n_bootstrap=2000)
    width = [row["probe_auroc_high"] - row["probe_auroc_low"] for row in (once, together, apart)]
    assert width[1] == pytest.approx(width[0], rel=0.25)
    assert width[2] < 0.65 * width[0]


def test_interval_width_is_that_of_the_binomial():
    """Unpaired statements: the textbook standard error, widened by the square root of 1 + 5 · (1/5) / (4/5) = 2.25."""
    rng = np.random.default_rng(1)
    x, labels, _ = make_pairs(rng, 100, 5, effect=1.0, topic=0.0)
    row = score(x, labels, np.arange(200), n_bootstrap=4000)
    share = row["probe_accuracy"]
    expected = 1.5 * 2 * 1.96 * np.sqrt(share * (1 - share) / 200)
    assert row["probe_accuracy_high"] - row["probe_accuracy_low"] == pytest.approx(expected, rel=0.15)
    assert row["probe_accuracy_low"] < share < row["probe_accuracy_high"]


@pytest.mark.parametrize(("n_pairs", "d"), [(25, 10), (80, 15)])
def test_intervals_cover_chance_without_effect(n_pairs, d):
    """Correlated pairs, nothing that tells the sides apart. The unwidened percentiles fail this in the second case."""
    covered = {"probe_accuracy": 0, "probe_auroc": 0}
    for seed in range(100):
        x, labels, units = make_pairs(np.random.default_rng(seed), n_pairs, d)
        row = score(x, labels, units, n_bootstrap=200, rng=seed)
        for name in covered:
            covered[name] += row[f"{name}_low"] <= 0.5 <= row[f"{name}_high"]
    assert min(covered.values()) >= 90, covered


def test_intervals_cover_what_probes_of_as_many_statements_reach_on_new_ones():
    """With an effect: the truth is measured on many new statements, with probes fitted to four fifths as many."""
    rows, truth = [], []
    for seed in range(80):
        rng = np.random.default_rng(seed)
        x, labels, units = make_pairs(rng, 40, 15, effect=2.0)
        rows.append(score(x, labels, units, n_bootstrap=200, rng=seed))
        fitted = units < 32
        new, new_labels, _ = make_pairs(rng, 500, 15, effect=2.0)
        scale = x.std(0) * np.sqrt(15)
        probe = LogisticRegression(C=10.0).fit(x[fitted] / scale, labels[fitted])
        scores = probe.decision_function(new / scale)
        truth.append([balanced_accuracy_score(new_labels, scores > 0), roc_auc_score(new_labels, scores)])
    for name, expected in zip(("probe_accuracy", "probe_auroc"), np.mean(truth, axis=0), strict=True):
        covered = np.mean([row[f"{name}_low"] <= expected <= row[f"{name}_high"] for row in rows])
        assert covered >= 0.9, name


def test_band_of_flipped_sides_is_about_chance_and_below_an_effect():
    x, labels, units = make_pairs(np.random.default_rng(0), 40, 20, effect=4.0)
    shuffled = flip_sides(labels, units, 20, np.random.default_rng(0))
    row = score(x, labels, units, shuffled=shuffled)
    for name, rate in (("probe_accuracy", balanced_accuracy_score), ("probe_auroc", roc_auc_score)):
        scores = [held_out_scores(x, sides, units) for sides in shuffled.T]
        values = [
            rate(sides, own > 0 if name == "probe_accuracy" else own)
            for sides, own in zip(shuffled.T, scores, strict=True)
        ]
        found = row[f"{name}_null_low"], row[f"{name}_null_high"]
        assert found == pytest.approx(tuple(np.quantile(values, [0.05, 0.95])))
        assert found[0] < 0.5 < found[1] < row[f"{name}_low"]


def test_folds_are_balanced_over_the_sides_of_each_labelling():
    labels, units = np.repeat([False, True], [20, 40]), np.arange(60)
    shuffled = flip_sides(labels, units, 4, np.random.default_rng(0))
    plan = plan_probes(labels, units, shuffled=shuffled)
    assert plan.folds.shape == (60, 5)
    for sides, folds in zip(plan.labels.T, plan.folds.T, strict=True):
        assert np.bincount(folds[sides]).tolist() == [8] * 5
        assert np.bincount(folds[~sides]).tolist() == [4] * 5


@pytest.mark.parametrize("effect", [0.0, 3.0])
def test_many_classes_are_scored_as_scikit_learn_scores_them(effect):
    rng = np.random.default_rng(1)
    classes = np.repeat([0, 1, 2], [20, 30, 40])
    x = rng.normal(size=(90, 40))
    x[np.arange(90), classes] += effect
    plan = plan_probes(classes, np.arange(90), shuffled=rng.permutation(classes)[:, None].repeat(20, axis=1), rng=2)
    row = class_probe_scores(x, plan)
    z = (x - x.mean(0)) / x.std(0) / np.sqrt(40)
    guessed = np.empty(90, int)
    for fitted, held_out in StratifiedGroupKFold(5, shuffle=True, random_state=2).split(x, classes, np.arange(90)):
        probe = LogisticRegression(C=10.0, class_weight="balanced", tol=1e-10, max_iter=10000)
        guessed[held_out] = probe.fit(z[fitted], classes[fitted]).predict(z[held_out])
    assert row["probe_accuracy"] == pytest.approx(balanced_accuracy_score(classes, guessed))
    assert row["probe_accuracy_low"] < row["probe_accuracy"] < row["probe_accuracy_high"]
    assert (row["probe_accuracy_low"] > 1 / 3) == bool(effect)
    assert 0.1 < row["probe_accuracy_null_low"] == row["probe_accuracy_null_high"] < 0.6  # one labelling, twenty times


def test_fewer_statements_than_folds():
    with pytest.raises(ValueError, match="4 statements, too few for 5 folds"):
        plan_probes(np.arange(14) < 4, np.arange(14))


def test_effect_is_found_and_the_seed_decides():
    x, labels, units = make_pairs(np.random.default_rng(5), 40, 30, effect=4.0)
    row = score(x, labels, units, rng=7)
    assert row["probe_auroc_low"] > 0.8
    assert row == score(x, labels, units, rng=7)
    assert row != score(x, labels, units, rng=8)


def test_constant_nodes_and_offsets_change_nothing():
    x, labels, units = make_pairs(np.random.default_rng(2), 20, 10, effect=1.0)
    expected = held_out_scores(x, labels, units)
    scaled = held_out_scores(x * np.logspace(-3, 3, 10) + 100, labels, units)
    np.testing.assert_allclose(scaled, expected, atol=2e-3)
    assert np.isfinite(held_out_scores(np.hstack([x, np.ones((40, 3))]), labels, units)).all()
