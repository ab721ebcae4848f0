import numpy as np
import pandas as pd
import pytest
from planted import draw_pairs

from utils.nodes.paper import paper_scans
from utils.statements.contrasts import Contrast, subsample
from utils.study.power import describe_power, measure_power

QUICK = {"n_draws": 4, "n_permutations": 39, "progress": False}


def personas(*effects, n_pairs=40, paired=True):
    rng = np.random.default_rng(0)
    parts, contrasts = [], []
    for i, effect in enumerate(effects):
        parts.append(draw_pairs(rng, n_pairs, 12, effect=effect)[0])
        h1 = np.arange(n_pairs) + 2 * n_pairs * i
        contrasts.append(Contrast(f"p{i}", "t", h1 + n_pairs, h1, paired))
    return np.concatenate(parts), contrasts


@pytest.mark.parametrize("paired", [True, False])
def test_more_pairs_find_more_and_a_strong_effect_is_found(paired):
    values, contrasts = personas(4.0, 0.0, paired=paired)
    table = measure_power(values, contrasts, **QUICK)
    assert table["n"].unique().tolist() == [10, 20, 40]
    last = table[table["n"] == 40]
    assert last["found"].between(1, 1.5).all()
    assert (table["power"] == table["found"] / 2).all()
    assert table["found"].between(table["found_low"], table["found_high"]).all()


def test_a_planted_effect_replaces_what_is_there():
    values, contrasts = personas(6.0)
    nothing = measure_power(values, contrasts, sizes=[40], plant=(1, 0.0), **QUICK | {"n_draws": 20})
    assert (nothing["found"] <= 0.3).all()
    much = measure_power(values, contrasts, sizes=[40], plant=(6, 1.5), **QUICK)
    assert (much["found"] == 1).all()


def test_every_test_counts_and_threads_change_nothing():
    values, contrasts = personas(4.0, 0.0)
    options = QUICK | {"sizes": [20, 40], "n_draws": 2, "tests": ("separation", "calibrated", "node", "scan")}
    table = measure_power(values, contrasts, **options)
    assert table["test"].tolist() == 2 * list(options["tests"])
    assert (table["found"] >= 1).all()
    pd.testing.assert_frame_equal(table, measure_power(values, contrasts, n_jobs=2, **options))
    assert (
        describe_power(table, paired=True) == "With fewer pairs, the separation test would have found, of 2: 1 with 20."
    )
    assert describe_power(table[table["n"] == 40], paired=True) == ""


@pytest.mark.usefixtures("unchecked")
def test_sizes_that_cannot_be_drawn():
    values, contrasts = personas(1.0)
    with pytest.raises(ValueError, match=r"unknown tests \['t'\]; expected one or more of separation, calibrated"):
        measure_power(values, contrasts, tests=["t"], **QUICK)
    with pytest.raises(ValueError, match="19 permutations none of 1 personas could be found alone"):
        measure_power(values, contrasts, level=0.04, **QUICK | {"n_permutations": 19})
    with pytest.raises(ValueError, match=r"sizes \[4, 41\] cannot be drawn; expected 5 to 40"):
        measure_power(values, contrasts, sizes=[4, 41], **QUICK)
    with pytest.raises(ValueError, match="13 nodes cannot be shifted"):
        measure_power(values, contrasts, plant=(13, 1.0), **QUICK)


def test_subsamples_keep_pairs_whole_and_repeat_with_the_seed():
    _, (contrast,) = personas(1.0)
    drawn = subsample(contrast, 7, rng=3)
    assert len(drawn.h0) == 7
    assert (drawn.h0 - drawn.h1 == 40).all()
    assert (subsample(contrast, 7, rng=3).h1 == drawn.h1).all()


def test_the_papers_protocol_fills_unions_with_and_without_an_effect():
    values, contrasts = personas(5.0, 0.0, n_pairs=60)
    table = paper_scans(-values, contrasts, n_runs=30, progress=False).set_index("persona")
    assert table.loc["p0", "precision"] > 0.9 > table.loc["p1", "precision"]
    assert table["n_background"].tolist() == [30, 30]
    assert (table[["union_nodes", "clean_union_nodes"]] > 0).all(axis=None)
