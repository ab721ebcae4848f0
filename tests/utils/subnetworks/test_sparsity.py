import numpy as np
import pandas as pd
import pytest
from paired import make_statements

from utils.responses.preference import statement_likelihood
from utils.statements.load import load_statements
from utils.statements.splits import draw_parts, pair_differences, shuffle_sides, split_parts
from utils.subnetworks.build import calibrate, persona_mask
from utils.subnetworks.sparsity import choose_sparsity, sweep_sparsity

QUIET = {"progress": False}
TEXTS = ["I like cats.", "The state is a state.", "Two and two."]


def test_parts_are_whole_pairs_and_leave_the_select_pairs_alone():
    statements = load_statements(topics=["personality"])
    part = draw_parts(statements, n_pairs=40, rng=3)
    assert np.array_equal(part == "select", split_parts(statements, rng=3) == "select")
    table = statements.assign(part=part).groupby(["persona", "part"])["pair"].nunique().unstack()
    assert (table["calibrate"] == 40).all()
    assert (statements.assign(part=part).groupby("pair")["part"].nunique() == 1).all()
    alone = load_statements(personas=["neuroticism"])
    assert np.array_equal(draw_parts(alone, n_pairs=40, rng=3), part[(statements["persona"] == "neuroticism")])
    with pytest.raises(ValueError, match="calibrate on 1 to"):
        draw_parts(statements, n_pairs=94)
    with pytest.raises(ValueError, match="have no pair"):
        draw_parts(statements.assign(pair=None))


def test_shuffled_sides_hold_half_of_each():
    statements = make_statements(10)
    first, second = shuffle_sides(statements, rng=1)
    assert first["direction"].value_counts().to_dict() == {"positive": 5, "negative": 5}
    assert set(first["pair"]) == set(second["pair"])
    assert not set(first["id"]) & set(second["id"])


def test_sweep_measures_each_sparsity(tiny):
    lm, statements = tiny(max_position_embeddings=512), make_statements()
    used = make_statements(4, first=50)
    calibration = calibrate(lm, *(used[used["direction"] == side] for side in ("positive", "negative")), **QUIET)
    table = sweep_sparsity(
        lm, calibration, statements, TEXTS, sparsities=[0.25, 0.5], scores=["wanda", "relu"], **QUIET
    )
    assert sorted(set(zip(table["score"], table["sparsity"], strict=True))) == [
        *(("relu", s) for s in (0.0, 0.25, 0.5)),
        *(("wanda", s) for s in (0.0, 0.25, 0.5)),
    ]
    mask = persona_mask(lm, calibration, sparsity=0.25, score="relu", **QUIET)
    with mask.applied(lm):
        expected = pair_differences(statement_likelihood(lm, statements, **QUIET)).mean()
    row = table[(table["score"] == "relu") & (table["sparsity"] == 0.25) & (table["measure"] == "likelihood")]
    assert row["estimate"].item() == pytest.approx(expected, abs=1e-5)


def test_the_best_sparsity_within_the_limit():
    rows = [("wanda", s, "likelihood", e, 0.0) for s, e in ((0.1, 0.1), (0.3, 0.2), (0.5, 0.9))]
    rows += [("wanda", s, "perplexity", 1.0, c) for s, c in ((0.1, 1.0), (0.3, 1.4), (0.5, 3.0))]
    table = pd.DataFrame(rows, columns=["score", "sparsity", "measure", "estimate", "change"])
    assert choose_sparsity(table, score="wanda") == 0.3
    assert choose_sparsity(table, score="wanda", most_perplexity=3.5) == 0.5
    with pytest.raises(ValueError, match=r"no sparsity of score 'wanda' keeps the perplexity within 0\.5"):
        choose_sparsity(table, score="wanda", most_perplexity=0.5)
