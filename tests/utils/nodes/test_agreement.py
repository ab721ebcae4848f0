import numpy as np
import pytest
from planted import draw_pairs, make_acts

from utils.nodes.agreement import rule_agreement, set_recurrence, vector_overlap
from utils.statements.contrasts import Contrast, find_contrasts


def two_personas(seed, *, effects=(0.0, 0.0), n_pairs=40, d=30, nodes=10):
    """Activations of two personas, (4 * n_pairs, d), whose first nodes move by their effects."""
    rng = np.random.default_rng(seed)
    parts, contrasts = [], []
    for i, effect in enumerate(effects):
        x = draw_pairs(rng, n_pairs, d)[0]
        x[:n_pairs, :nodes] += effect
        parts.append(x)
        first = 2 * n_pairs * i
        h1 = np.arange(first, first + n_pairs)
        contrasts.append(Contrast(f"p{i}", "t", h1 + n_pairs, h1, True))
    return np.concatenate(parts), contrasts


def test_agreement_counts_shared_nodes():
    sets = {"a": {"x": frozenset({(1, 1), (2, -1)})}, "b": {"x": frozenset({(1, 1), (2, 1), (3, 1)})}}
    row = rule_agreement(sets).iloc[0]
    assert (row["persona"], row["a"], row["b"], row["shared"], row["opposite"]) == ("x", "a", "b", 1, 1)
    assert row["jaccard"] == 1 / 4


@pytest.mark.parametrize(("effects", "sign"), [((1.0, 1.0), 1), ((1.0, -1.0), -1)])
def test_cosine_of_personas_that_move_the_same_nodes(effects, sign):
    values, contrasts = two_personas(0, effects=effects)
    row = vector_overlap(values, contrasts, n_permutations=199).iloc[0]
    z = [(d := values[c.h1] - values[c.h0]).sum(axis=0) / np.sqrt((d**2).sum(axis=0)) for c in contrasts]
    assert row["cosine"] == pytest.approx(z[0] @ z[1] / np.linalg.norm(z[0]) / np.linalg.norm(z[1]))
    assert row["cosine"] * sign > 0.5
    assert row["cosine_p_adjusted"] == 1 / 200


def test_cosine_holds_its_level_with_correlated_nodes():
    mix = np.random.default_rng(9).normal(size=(30, 30)) / 3
    p = []
    for seed in range(200):
        values, contrasts = two_personas(seed, n_pairs=15)
        p.append(vector_overlap(values @ mix, contrasts, n_permutations=39, rng=seed)["cosine_p"][0])
    assert np.mean(np.array(p) <= 0.05) <= 0.1


def test_personas_that_share_statements_are_not_tested():
    values, contrasts = two_personas(0)
    shared = Contrast("both", "t", contrasts[0].h0, contrasts[1].h1, False)
    table = vector_overlap(values, [contrasts[0], shared], n_permutations=19)
    assert table[["cosine", "cosine_p", "cosine_p_adjusted"]].isna().all(axis=None)


@pytest.mark.parametrize("paired", [True, False])
def test_planted_nodes_recur_and_noise_does_not(paired):
    values, contrasts = two_personas(1, effects=(1.5, 0.0))
    contrasts = [Contrast(c.persona, c.topic, c.h0, c.h1, paired) for c in contrasts]
    table = set_recurrence(values, contrasts, {"p0": 10, "p1": 10}, n_permutations=99).set_index("persona")
    assert table.loc["p0", "jaccard"] > 0.8
    assert table.loc["p0", "p_adjusted"] <= 0.02
    assert table.loc["p1", "p_value"] > 0.05
    assert table["expected_jaccard"].between(0.02, 0.4).all()


def test_recurrence_of_empty_sets_is_nan_and_its_level_holds():
    values, contrasts = two_personas(2)
    table = set_recurrence(values, contrasts, {"p0": 0, "p1": 5}, n_permutations=19).set_index("persona")
    assert table.loc["p0"].drop("size").isna().all()
    p = [
        set_recurrence(values, contrasts[:1], {"p0": 6}, n_splits=2, n_permutations=19, rng=seed)["p_value"][0]
        for seed, (values, contrasts) in ((seed, two_personas(seed, n_pairs=12)) for seed in range(150))
    ]
    assert np.mean(np.array(p) <= 0.05) <= 0.11


def test_same_seed_same_table():
    values, contrasts = two_personas(3, effects=(1.0, 0.5))
    options = {"n_permutations": 19, "rng": 4}
    assert set_recurrence(values, contrasts, {"p0": 5, "p1": 5}, **options).equals(
        set_recurrence(values, contrasts, {"p0": 5, "p1": 5}, **options)
    )
    assert find_contrasts(make_acts(draw_pairs(np.random.default_rng(0), 6, 3)))[0].paired
