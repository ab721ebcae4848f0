import numpy as np
import pandas as pd
import pytest
import xarray as xr
from planted import draw_layers, make_acts
from sklearn.metrics import silhouette_score

from deepscan import separation_test
from utils.layers.thirds import early_separation, judge_interval, layer_thirds, model_thirds
from utils.statements.contrasts import find_contrasts

QUANTITIES = ("first", "middle", "last", "d")


def thirds_of(values, labels, bounds):
    """Definition: mean silhouettes of the layers up to each bound, and d."""
    curve = [silhouette_score(x, labels) for x in values]
    first, middle, last = (np.mean(part) for part in np.split(np.array(curve), bounds))
    return np.array([first, middle, last, last - max(first, middle)])


@pytest.mark.parametrize(
    ("n_layers", "bounds"), [(3, [1, 2]), (4, [1, 2]), (5, [1, 3]), (6, [2, 4]), (7, [2, 4]), (8, [2, 5])]
)
def test_values_and_jackknife_are_those_of_the_definition(n_layers, bounds):
    """Layer k is in the first third where k/L is up to 1/3, in the middle up to 2/3."""
    values = draw_layers(np.random.default_rng(n_layers), 8, 5, np.linspace(2, 1, n_layers + 1))
    row = layer_thirds(make_acts(values), metric="silhouette").iloc[0]
    labels, units = np.arange(16) < 8, np.r_[0:8, 0:8]
    expected = thirds_of(values[1:], labels, bounds)  # layer 0 takes no part
    left_out = [thirds_of(values[1:, units != unit], labels[units != unit], bounds) for unit in range(8)]
    error = 1.959964 * np.sqrt(7 * np.var(left_out, axis=0))
    np.testing.assert_allclose(row[[*QUANTITIES]].astype(float), expected, atol=1e-9)
    for name, value, margin in zip(QUANTITIES, expected, error, strict=True):
        assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx((value - margin, value + margin), rel=1e-6)
    assert row["verdict"] == judge_interval(row["d_low"], row["d_high"])


@pytest.mark.parametrize(
    ("effects", "verdict"),
    [([0, 0, 3], "supported"), ([3, 3, 0], "not supported"), ([0, 3, 0], "not supported"), ([3, 0, 3], "mixed")],
)
def test_verdicts_on_planted_effects(effects, verdict):
    acts = make_acts(draw_layers(np.random.default_rng(0), 50, 10, np.repeat(effects, 3)), first_layer=1)
    # An effect of 3 leaves few wrong answers, so that thirds with the same effect differ by chance.
    for metric in ("accuracy", "silhouette") if verdict != "mixed" else ("silhouette",):
        assert layer_thirds(acts, metric=metric)["verdict"].tolist() == [verdict]
        assert model_thirds(acts, metric=metric)["verdict"].tolist() == [verdict]


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.1, 0.2, "supported"), (-2, -1, "not supported"), (-1, 1, "mixed")]
)
def test_rule(low, high, verdict):
    assert judge_interval(low, high) == verdict


@pytest.mark.parametrize("effect", [0.0, 2.0])
def test_without_a_difference_between_the_thirds_hardly_anything_is_claimed(effect):
    """Also the interval holds the mean of d over the simulated data."""
    rows = []
    for seed in range(100):
        values = draw_layers(np.random.default_rng(seed), 30, 10, [effect] * 6)
        rows.append(layer_thirds(make_acts(values, first_layer=1), metric="silhouette").iloc[0])
    table = pd.DataFrame(rows)
    assert (table["verdict"] != "mixed").mean() <= 0.1
    assert table["d_low"].le(table["d"].mean()).mul(table["d_high"].ge(table["d"].mean())).mean() >= 0.9


def test_intervals_cover_a_rise():
    values = [draw_layers(np.random.default_rng(seed), 30, 10, [1, 1, 3]) for seed in range(100)]
    table = pd.concat([layer_thirds(make_acts(each, first_layer=1), metric="silhouette") for each in values])
    assert table["d_low"].le(table["d"].mean()).mul(table["d_high"].ge(table["d"].mean())).mean() >= 0.9


def test_the_model_is_the_mean_of_its_personas_with_errors_that_add_up():
    rng = np.random.default_rng(0)
    parts = [make_acts(draw_layers(rng, n, 6, [0, 1, 2, 3]), persona=name) for n, name in ((10, "a"), (15, "b"))]
    acts = xr.concat(parts, dim="statement")
    personas, model = layer_thirds(acts), model_thirds(acts).iloc[0]
    assert model["n_personas"] == 2
    for name in QUANTITIES:
        assert model[name] == pytest.approx(personas[name].mean())
        margins = personas[f"{name}_high"] - personas[name]
        assert model[f"{name}_high"] - model[name] == pytest.approx(np.hypot(*margins) / 2)


def test_personas_that_share_all_statements_are_no_more_certain_than_one():
    """One against the rest with two personas: each is the other's H0, and both ask the same question."""
    rng = np.random.default_rng(0)
    values = draw_layers(rng, 24, 6, [0, 0, 0, 1])
    acts = xr.concat([make_acts(values[:, half::2], persona=f"p{half}") for half in (0, 1)], dim="statement")
    contrasts = find_contrasts(acts, contrast="one-vs-rest")
    personas, model = layer_thirds(acts, contrasts), model_thirds(acts, contrasts).iloc[0]
    assert personas["d"][0] == pytest.approx(personas["d"][1])
    assert model["d_high"] - model["d"] == pytest.approx(personas["d_high"][0] - personas["d"][0])


def test_constant_layers_leave_no_verdict():
    values = draw_layers(np.random.default_rng(0), 10, 5, [0, 1, 2, 3])
    values[2] = 1
    row = layer_thirds(make_acts(values), metric="silhouette").iloc[0]
    assert np.isnan(row[["middle", "d", "d_low", "d_high"]].astype(float)).all()
    assert np.isfinite(row[["first", "last"]].astype(float)).all()
    assert row["verdict"] == "mixed"


@pytest.mark.parametrize(
    ("layers", "options", "message"),
    [
        ([0, 1, 2, 4], {}, r"layers \[3\] are missing"),
        ([0, 1, 2, 3], {"n_layers": 5}, r"layers \[4, 5\] are missing"),
        ([0, 1, 2], {}, "there are 2 layers"),
    ],
)
def test_layers_that_are_not_all_there(layers, options, message):
    acts = make_acts(draw_layers(np.random.default_rng(0), 10, 5, [0.0] * len(layers)))
    with pytest.raises(ValueError, match=message):
        layer_thirds(acts.assign_coords(layer=layers), **options)


def test_too_few_statements():
    with pytest.raises(ValueError, match="at least 5 on each side"):
        layer_thirds(make_acts(draw_layers(np.random.default_rng(0), 4, 5, [0, 0, 0, 0])))


@pytest.mark.parametrize("paired", [True, False])
def test_accuracies_and_their_jackknife_are_those_of_the_answers(paired):
    values = draw_layers(np.random.default_rng(2), 12, 4, [0, 1, 1, 2])
    acts = make_acts(values[:, : 24 if paired else 21], paired=paired, n_h1=12)
    row = layer_thirds(acts).iloc[0]
    n_h1, n_h0 = 12, 12 if paired else 9
    hits = []
    for x in acts.to_numpy()[1:]:
        test = separation_test(x[n_h1:], x[:n_h1], pairs=np.arange(12) if paired else None, n_permutations=0)
        right = test.predictions * (1 if paired else np.where(np.arange(n_h0 + n_h1) < n_h0, -1, 1))
        hits.append(right > 0)
    hits = np.array(hits)
    sides = [np.arange(12)] if paired else [np.arange(n_h0), np.arange(n_h0, n_h0 + n_h1)]

    def quantities(kept):
        first, middle, last = np.mean([hits[:, np.intersect1d(side, kept)].mean(axis=1) for side in sides], axis=0)
        return np.array([first, middle, last, last - max(first, middle)])

    everyone = np.arange(hits.shape[1])
    np.testing.assert_allclose(row[[*QUANTITIES]].astype(float), quantities(everyone))
    left_out = [quantities(np.delete(everyone, i)) for i in everyone]
    error = 1.959964 * np.sqrt((len(everyone) - 1) * np.var(left_out, axis=0))
    for name, value, margin in zip(QUANTITIES, quantities(everyone), error, strict=True):
        assert row[f"{name}_high"] == pytest.approx(value + margin, rel=1e-6)


@pytest.mark.parametrize(("effects", "early"), [([0, 0, 0, 0, 4, 4], False), ([0, 4, 0, 0, 4, 4], True)])
def test_what_is_there_before_the_last_third(effects, early):
    acts = make_acts(draw_layers(np.random.default_rng(0), 40, 8, effects, kept=0), first_layer=1)
    row = early_separation(acts, n_permutations=99).iloc[0]
    assert (row["early_p_adjusted"] <= 0.05) == early
    assert row["first_layer"] == 2 if early else np.isnan(row["first_layer"])
