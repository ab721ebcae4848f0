import numpy as np
import pytest
import xarray as xr
from planted import make_acts
from sklearn.metrics import calinski_harabasz_score, davies_bouldin_score, silhouette_score

from utils.layers.topics import topic_divergence

SIZES = (12, 15, 9)


def make_topic(rng, sizes=SIZES, *, d=6, n_layers=2, effect=0.0, topic="t"):
    """Personas of a topic; ``effect`` moves the positive statements of persona i along node i."""
    parts = []
    for i, n in enumerate(sizes):
        values = rng.normal(size=(n_layers, 2 * n, d)) + 10
        values[:, :n, i] += effect
        parts.append(make_acts(values, persona=f"{topic}-{i}", topic=topic))
    return xr.concat(parts, dim="statement")


def test_values_and_jackknife_are_those_of_scikit_learn_on_the_positive_statements():
    acts = make_topic(np.random.default_rng(0), effect=1.0)
    table = topic_divergence(acts, probe=False, progress=False)
    assert table["layer"].tolist() == [0, 1]
    assert table.loc[0, ["topic", "n_personas", "n_statements"]].tolist() == ["t", 3, sum(SIZES)]
    assert table["chance"].tolist() == [1 / 3, 1 / 3]
    classes = np.repeat([0, 1, 2], SIZES)
    for layer, row in table.iterrows():
        x = acts.isel(layer=layer, statement=acts["direction"] == "positive").to_numpy()
        for name, score in (
            ("silhouette", silhouette_score),
            ("calinski_harabasz", calinski_harabasz_score),
            ("davies_bouldin", davies_bouldin_score),
        ):
            left_out = [score(np.delete(x, i, 0), np.delete(classes, i)) for i in range(len(x))]
            error = 1.959964 * np.sqrt((len(x) - 1) * np.var(left_out))
            assert row[name] == pytest.approx(score(x, classes))
            assert row[f"{name}_low"] == pytest.approx(row[name] - error, rel=1e-5)
            assert row[f"{name}_high"] == pytest.approx(row[name] + error, rel=1e-5)


def test_the_probe_reads_what_was_planted_and_the_band_lies_about_chance():
    acts = make_topic(np.random.default_rng(1), (30, 30, 30), effect=4.0, n_layers=1)
    row = topic_divergence(acts, progress=False).iloc[0]
    assert row["probe_accuracy_low"] > 0.8
    assert row["probe_accuracy_null_low"] < row["chance"] < row["probe_accuracy_null_high"] < 0.6
    assert row["silhouette_low"] > row["silhouette_null_high"]


def test_bands_and_intervals_hold_what_topics_without_effect_give():
    names = ("silhouette", "calinski_harabasz", "davies_bouldin")
    rows = []
    for seed in range(100):
        acts = make_topic(np.random.default_rng(seed), n_layers=1)
        rows.append(topic_divergence(acts, probe=False, rng=seed, progress=False).iloc[0])
    for name in names:
        mean = np.mean([row[name] for row in rows])
        inside = np.mean([row[f"{name}_null_low"] <= row[name] <= row[f"{name}_null_high"] for row in rows])
        covered = np.mean([row[f"{name}_low"] <= mean <= row[f"{name}_high"] for row in rows])
        assert 0.79 <= inside <= 0.98, name  # 0.9 expected, standard error 0.03
        assert covered >= 0.9, name


def test_negative_statements_take_no_part():
    acts = make_topic(np.random.default_rng(0))
    moved = acts.copy()
    moved[:, moved["direction"] == "negative"] += 100
    one, other = (topic_divergence(each, probe=False, progress=False) for each in (acts, moved))
    assert one.equals(other)


def test_topics_are_measured_apart_and_those_of_one_persona_left_out():
    rng = np.random.default_rng(0)
    acts = xr.concat(
        [make_topic(rng), make_topic(rng, (8, 9), topic="u"), make_topic(rng, (7,), topic="v")], "statement"
    )
    table = topic_divergence(acts, probe=False, progress=False)
    assert table["topic"].tolist() == ["t", "t", "u", "u"]
    alone = topic_divergence(acts, topic="u", probe=False, progress=False)
    assert alone.equals(table[table["topic"] == "u"].reset_index(drop=True))
    with pytest.raises(ValueError, match="topic 'v' has positive statements of one persona only"):
        topic_divergence(acts, topic="v")


@pytest.mark.parametrize("permutations", [0, 20])
def test_a_constant_layer_is_nan_in_every_column(permutations):
    acts = make_topic(np.random.default_rng(0))
    acts[0] = 3.0
    table = topic_divergence(acts, probe_permutations=permutations, progress=False)
    names = list(table)[5:]
    assert len(names) == 3 * 5 + (5 if permutations else 3)
    assert table.loc[0, names].isna().all()
    assert table.loc[1, names].notna().all()
    assert list(topic_divergence(acts[:1], probe_permutations=permutations, progress=False)) == list(table)


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        (SIZES, {"topic": "politics"}, "unknown topic 'politics'"),
        ((8,), {}, "no topic has positive statements of at least two"),
        ((8, 4), {}, "persona 't-1' has 4 positive statements"),
        (SIZES, {"n_permutations": 19}, "at least 20 permutations"),
        (SIZES, {"probe_permutations": 3}, "at least 20 permutations"),
    ],
)
def test_refusals(sizes, options, message):
    with pytest.raises(ValueError, match=message):
        topic_divergence(make_topic(np.random.default_rng(0), sizes), progress=False, **options)
