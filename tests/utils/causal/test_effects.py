import numpy as np
import pandas as pd
import pytest
from scipy.stats import false_discovery_control

from utils.causal.effects import adjust_checks, summarise_effects
from utils.intervals import rank_p_value

AT = {"layer": 3, "mode": "steer", "measure": "likelihood", "prompt": "neutral"}


def rows(selector, values, draw=-1, strength=0.2, size=4, n_nodes=4):
    where = {**AT, "strength": strength, "size": size, "selector": selector, "draw": draw, "n_nodes": n_nodes}
    return pd.DataFrame({**where, "pair": range(len(values)), "value": values})


def made_up(n_pairs=10, n_random=99, effect=0.5):
    rng = np.random.default_rng(0)
    clean = rng.normal(size=n_pairs)
    frames = [rows("none", clean, strength=0.0, size=0, n_nodes=0), rows("scan", clean + effect)]
    frames += [rows("random", clean + shift, draw=i) for i, shift in enumerate(rng.normal(size=n_random) * 0.1)]
    return clean, pd.concat(frames, ignore_index=True)


def test_an_effect_is_the_mean_change_over_pairs():
    clean, values = made_up()
    table = summarise_effects(values)
    assert len(table) == 1
    row = table.iloc[0]
    assert row["clean"] == pytest.approx(clean.mean())
    # Every pair moves alike, so that resampling them changes nothing.
    assert [row[name] for name in ("effect", "low", "high")] == pytest.approx([0.5] * 3)
    assert row["effect_per_node"] == pytest.approx(0.125)
    drawn = values[values["selector"] == "random"].groupby("draw")["value"].mean() - clean.mean()
    assert row["random_mean"] == pytest.approx(drawn.mean())
    assert row["random_high"] == pytest.approx(np.quantile(drawn, 0.95))
    assert row["p_value"] == pytest.approx(2 / 100)
    assert np.isnan(row["p_matched"])


def test_the_interval_is_that_of_a_mean():
    rng = np.random.default_rng(1)
    change = rng.normal(size=400)
    values = pd.concat([rows("none", np.zeros(400), strength=0.0, size=0), rows("scan", change)])
    row = summarise_effects(values).iloc[0]
    half = 1.96 * change.std() / 20
    assert row["low"] == pytest.approx(change.mean() - half, abs=0.02)
    assert row["high"] == pytest.approx(change.mean() + half, abs=0.02)


def test_p_values_are_uniform_where_the_set_is_one_of_the_random_ones():
    rng = np.random.default_rng(2)
    found = np.array([rank_p_value(draw[0], draw[1:]) for draw in rng.normal(size=(4000, 100))])
    for level in (0.02, 0.1, 0.5):
        assert (found <= level).mean() == pytest.approx(level, abs=0.02)


def test_ties_do_not_count_as_evidence():
    assert rank_p_value(0.0, np.zeros(99)) == 1.0
    assert np.isnan(rank_p_value(0.0, np.empty(0)))


def test_checks_are_corrected_together():
    table = pd.DataFrame({"selector": ["scan", "probe", "scan", "scan"], "p_value": [0.01, 0.04, np.nan, 0.03]})
    found = adjust_checks(table)["p_adjusted"]
    np.testing.assert_allclose(found[[0, 3]], false_discovery_control([0.01, 0.03]))
    assert found[1] == 0.04
    assert np.isnan(found[2])


def test_without_the_model_as_it_is_there_is_no_effect():
    _, values = made_up()
    with pytest.raises(ValueError, match="no clean run of the same pairs"):
        summarise_effects(values[values["selector"] != "none"])
    fewer = values[(values["selector"] != "none") | (values["pair"] > 0)]
    with pytest.raises(ValueError, match="no clean run of the same pairs"):
        summarise_effects(fewer)
