import numpy as np
import pytest
from sided import make_acts

from utils.statements.contrasts import find_contrasts
from utils.vectors.differences import find_directions, side_differences
from utils.vectors.judgement import choose_layer, judge_vectors

OPTIONS = {"n_flips": 39, "n_halves": 3, "progress": False}


@pytest.mark.parametrize("method", ["mean-difference", "ridge", "pca"])
def test_a_planted_persona_is_found_and_nothing_below_it(method):
    acts = make_acts(effect=2.0, seed=1)
    judged = judge_vectors(acts, find_contrasts(acts), layers=[0, 2], method=method, **OPTIONS)
    at = judged.set_index(["persona", "layer"])
    for persona in ("a", "b"):
        assert at.loc[(persona, 2), "accuracy"] > 0.9
        assert at.loc[(persona, 2), "p_value"] == pytest.approx(1 / 40)
        if method == "mean-difference":  # flips change no more than the sign of a first component
            assert at.loc[(persona, 2), "cosine"] > at.loc[(persona, 2), "cosine_null_high"]
        assert at.loc[(persona, 0), "p_value"] > 0.03
        assert at.loc[(persona, 2), "p_adjusted"] <= 0.05
    assert choose_layer(judged).to_dict() == {"a": 2, "b": 2}


def test_pairs_are_judged_by_vectors_of_other_pairs_alone():
    acts = make_acts(n=10, personas=("a",), layers=(0, 1))
    contrast = find_contrasts(acts)[0]
    judged = judge_vectors(acts, [contrast], layers=[1], n_folds=10, n_flips=1, n_halves=1, progress=False)
    differences = side_differences(acts.sel(layer=1).values, contrast)
    along = [
        differences[i] @ find_directions(np.delete(differences, i, 0), np.ones((1, 9)), method="mean-difference")[0]
        for i in range(10)
    ]
    assert judged["accuracy"].item() == pytest.approx(np.mean(np.array(along) > 0))


def test_level_without_any_effect():
    # With as many nodes as pairs a vector tells nearly all pairs that it was fitted on.
    p_values = []
    for seed in range(40):
        acts = make_acts(n=12, width=30, personas=("a",), layers=(0, 1, 2), effect=0.0, seed=seed)
        options = {"n_flips": 19, "n_halves": 1, "n_folds": 4, "progress": False}
        p_values.append(judge_vectors(acts, find_contrasts(acts), layers=[1, 2], **options)["p_layers"].iloc[0])
    found = np.array(p_values)
    assert (found <= 0.05).mean() < 0.15  # exact level 0.05: 2 of 40 expected
    assert 0.33 < found.mean() < 0.7


def test_sides_without_pairs_are_matched_at_random():
    acts = make_acts(effect=6.0, paired=False)
    judged = judge_vectors(acts, find_contrasts(acts), layers=[2], **OPTIONS)
    assert (judged["accuracy"] > 0.9).all()


def test_too_few_pairs():
    acts = make_acts(n=4)
    with pytest.raises(ValueError, match="has 4 pairs; at least 6"):
        judge_vectors(acts, find_contrasts(acts), progress=False)
