import numpy as np
import pandas as pd
import pytest
import xarray as xr

from utils.statements.contrasts import Contrast, find_contrasts, label_frame, restrict
from utils.statements.load import load_statements
from utils.statements.splits import split_parts


def make_frame(pairs_of, singles_of=None, *, topic="t", shuffle=0):
    """Statements of personas with pairs, and of personas with (positive, negative) single statements, shuffled."""
    rows = [
        {"persona": persona, "direction": direction, "pair": f"{persona}-{i}"}
        for persona, n_pairs in pairs_of.items()
        for i in range(n_pairs)
        for direction in ("positive", "negative")
    ]
    rows += [
        {"persona": persona, "direction": direction, "pair": None}
        for persona, counts in (singles_of or {}).items()
        for direction, count in zip(("positive", "negative"), counts, strict=True)
        for _ in range(count)
    ]
    frame = pd.DataFrame(rows).assign(topic=topic, statement="words")
    frame["id"] = [f"s{i}" for i in range(len(frame))]
    order = np.random.default_rng(shuffle).permutation(len(frame))
    return frame.astype({"pair": "string"}).iloc[order]


def as_activations(frame):
    """The same labels on an array, as activations carry them."""
    coords = {name: ("statement", frame[name].fillna("").to_numpy(dtype=str)) for name in ("persona", "topic")}
    coords |= {name: ("statement", frame[name].fillna("").to_numpy(dtype=str)) for name in ("direction", "pair")}
    coords |= {"statement": frame["id"].to_numpy(dtype=str), "layer": [0, 1]}
    return xr.DataArray(np.zeros((2, len(frame), 3)), dims=("layer", "statement", "node"), coords=coords)


def test_pairs_are_aligned_and_sides_are_right():
    frame = make_frame({"a": 12, "b": 7})
    for contrast in find_contrasts(frame):
        h0, h1 = frame.iloc[contrast.h0], frame.iloc[contrast.h1]
        assert contrast.paired
        assert len(h0) == len(h1) == {"a": 12, "b": 7}[contrast.persona]
        assert h0["pair"].tolist() == h1["pair"].tolist()
        assert h0["pair"].is_unique
        assert set(h0["direction"]) == {"negative"}
        assert set(h1["direction"]) == {"positive"}
        assert set(frame.iloc[contrast.rows]["persona"]) == {contrast.persona}


def test_rows_labels_and_units_go_together():
    frame = make_frame({"a": 9})
    (contrast,) = find_contrasts(frame)
    rows = frame.iloc[contrast.rows]
    assert (rows["direction"] == "positive").tolist() == contrast.labels.tolist()
    pair_of_unit = rows["pair"].groupby(contrast.units).agg(["nunique", "size"])
    assert (pair_of_unit["nunique"] == 1).all()
    assert (pair_of_unit["size"] == 2).all()
    assert sorted(set(contrast.units)) == list(range(9))


def test_without_pairs_every_statement_is_a_unit():
    frame = make_frame({}, {"a": (8, 5)})
    (contrast,) = find_contrasts(frame)
    assert not contrast.paired
    assert (len(contrast.h1), len(contrast.h0)) == (8, 5)
    assert contrast.labels.sum() == 8
    assert contrast.units.tolist() == list(range(13))


@pytest.mark.parametrize("singles", [(0, 3), (2, 3), (6, 6), (90, 5)])
def test_single_statements_beside_pairs_are_left_out_and_counted(singles, caplog):
    mixed = make_frame({"a": 6}, {"a": singles})
    (contrast,) = find_contrasts(mixed)
    assert contrast.paired
    h0, h1 = mixed.iloc[contrast.h0], mixed.iloc[contrast.h1]
    assert h0["pair"].tolist() == h1["pair"].tolist() == sorted(mixed["pair"].dropna().unique())
    assert f"'a': {sum(singles)} of {12 + sum(singles)} statements have no pair" in caplog.text


def test_a_few_pairs_beside_many_single_statements_are_left_out_whole(caplog):
    mixed = make_frame({"a": 2}, {"a": (9, 8)})
    (contrast,) = find_contrasts(mixed)
    assert not contrast.paired
    assert (len(contrast.h1), len(contrast.h0)) == (9, 8)
    assert mixed.iloc[contrast.rows]["pair"].isna().all()
    assert "'a': 4 of 21 statements are in pairs" in caplog.text


def test_a_pair_without_its_other_side_is_a_single_statement(caplog):
    mixed = make_frame({"a": 6})
    lone = mixed[(mixed["pair"] == "a-2") & (mixed["direction"] == "negative")].index
    (contrast,) = find_contrasts(mixed.drop(lone))
    assert contrast.paired
    assert len(contrast.h0) == len(contrast.h1) == 5
    assert "'a': 1 of 11 statements" in caplog.text


def test_names_that_no_two_statements_share_are_no_pairs(caplog):
    frame = make_frame({}, {"a": (6, 5)})
    (contrast,) = find_contrasts(frame.assign(pair=frame["id"]))
    assert not contrast.paired
    assert (len(contrast.h1), len(contrast.h0)) == (6, 5)
    assert not caplog.text


def test_whole_personas_are_not_warned_about(caplog):
    find_contrasts(make_frame({"a": 6}, {"b": (4, 3)}))
    assert not caplog.text


@pytest.mark.parametrize(
    ("direction", "counts"), [("positive", "2 positive and 1 neg"), ("negative", "1 positive and 2 neg")]
)
def test_a_pair_of_more_than_two_statements_is_refused(direction, counts):
    frame = make_frame({"a": 6}, {"a": (1, 1)})
    extra = frame["pair"].isna() & (frame["direction"] == direction)
    frame.loc[extra, "pair"] = "a-3"
    with pytest.raises(ValueError, match=f"pair 'a-3' of persona 'a' has {counts}"):
        find_contrasts(frame)


@pytest.mark.parametrize("rng", range(3))
def test_select_and_test_share_no_pair_of_a_persona_with_single_statements(rng):
    frame = make_frame({"a": 20}, {"a": (9, 5)})
    part = split_parts(frame, rng=rng)
    (contrast,) = find_contrasts(frame)
    sides = [restrict(contrast, part == name) for name in ("select", "test")]
    pairs = [frame["pair"].iloc[side.h0].tolist() for side in sides]
    assert [frame["pair"].iloc[side.h1].tolist() for side in sides] == pairs
    assert sorted(pairs[0] + pairs[1]) == sorted(frame["pair"].dropna().unique())
    assert len(pairs[0]) == 5


def test_a_persona_with_pairs_beside_one_without():
    paired = {each.persona: each.paired for each in find_contrasts(make_frame({"a": 6}, {"b": (4, 4)}))}
    assert paired == {"a": True, "b": False}


def test_one_vs_rest_takes_the_positive_statements_of_the_topic():
    frame = pd.concat(
        [make_frame({"a": 5, "b": 4}, topic="t"), make_frame({"c": 3}, topic="u"), make_frame({"d": 2}, topic="t")]
    )
    contrasts = {each.persona: each for each in find_contrasts(frame, contrast="one-vs-rest", personas=["a", "d"])}
    assert list(contrasts) == ["a", "d"]
    for persona, rest in {"a": {"b": 4, "d": 2}, "d": {"a": 5, "b": 4}}.items():
        h0, h1 = frame.iloc[contrasts[persona].h0], frame.iloc[contrasts[persona].h1]
        assert h0["persona"].value_counts().to_dict() == rest
        assert set(h1["persona"]) == {persona}
        assert set(h0["direction"]) | set(h1["direction"]) == {"positive"}
        assert not contrasts[persona].paired
        assert contrasts[persona].topic == "t"


def test_personas_keep_the_order_asked_for():
    frame = make_frame({"a": 3, "b": 3, "c": 3}, shuffle=4)
    assert [each.persona for each in find_contrasts(frame, personas=["c", "a"])] == ["c", "a"]


def test_activations_and_frames_give_the_same():
    frame = make_frame({"a": 6, "b": 5}, {"c": (4, 3)})
    acts = as_activations(frame)
    for left, right in zip(find_contrasts(frame), find_contrasts(acts), strict=True):
        assert (left.persona, left.topic, left.paired) == (right.persona, right.topic, right.paired)
        np.testing.assert_array_equal(left.rows, right.rows)
    np.testing.assert_array_equal(split_parts(frame, rng=3), split_parts(acts, rng=3))
    assert label_frame(acts)["id"].tolist() == frame["id"].tolist()


@pytest.mark.parametrize(
    ("frame", "options", "message"),
    [
        (make_frame({"a": 3}), {"personas": ["b"]}, "unknown persona 'b'"),
        (make_frame({}, {"a": (3, 0)}), {}, "no negative"),
        (make_frame({}, {"a": (0, 3)}), {}, "no positive"),
        (make_frame({}, {"a": (0, 3), "b": (2, 2)}), {"contrast": "one-vs-rest"}, "'a' has no positive"),
        (make_frame({"a": 3}), {"contrast": "one-vs-rest"}, "no other persona"),
    ],
)
def test_errors_say_what_is_missing(frame, options, message):
    with pytest.raises(ValueError, match=message):
        find_contrasts(frame, **options)


@pytest.mark.parametrize("share", [0.25, 0.5])
@pytest.mark.parametrize("rng", range(5))
def test_parts_have_their_share_and_keep_pairs_whole(share, rng):
    frame = make_frame({"a": 40, "b": 21}, {"c": (20, 12)})
    part = split_parts(frame, share=share, rng=rng)
    labelled = frame.assign(part=part)
    assert set(part) == {"select", "test"}
    assert (labelled.dropna(subset="pair").groupby("pair")["part"].nunique() == 1).all()
    selected = labelled[labelled["part"] == "select"].groupby(["persona", "direction"]).size()
    expected = {"a": (40, 40), "b": (21, 21), "c": (20, 12)}
    for persona, sizes in expected.items():
        for direction, size in zip(("positive", "negative"), sizes, strict=True):
            assert abs(selected[persona, direction] - share * size) <= 0.5


def test_parts_follow_the_seed_alone():
    frame = make_frame({"a": 40})
    first = split_parts(frame, rng=1)
    np.testing.assert_array_equal(first, split_parts(frame, rng=1))
    assert (first != split_parts(frame, rng=2)).any()


def test_parts_are_drawn_evenly():
    """Over many seeds every pair is as often in the smaller part as any other."""
    frame = make_frame({"a": 20})
    chosen = np.mean([split_parts(frame, rng=seed) == "select" for seed in range(200)], axis=0)
    # Standard error sqrt(.25 * .75 / 200) = 0.031; 4.5 of them.
    assert np.abs(chosen - 0.25).max() < 0.14


@pytest.mark.parametrize("contrast", ["direction", "one-vs-rest"])
def test_select_and_test_share_no_pair_on_the_shipped_statements(contrast):
    frame = load_statements()
    part = split_parts(frame)
    for each in find_contrasts(frame, contrast=contrast):
        sides = {name: restrict(each, part == name) for name in ("select", "test")}
        pairs = {name: set(frame["pair"].iloc[side.rows]) for name, side in sides.items()}
        assert not pairs["select"] & pairs["test"]
        assert sorted([*sides["select"].rows, *sides["test"].rows]) == sorted(each.rows)
        assert abs(len(sides["select"].h1) / len(each.h1) - 0.25) < 0.01


def test_restrict_keeps_pairs_aligned():
    frame = make_frame({"a": 30})
    (contrast,) = find_contrasts(frame)
    kept = restrict(contrast, split_parts(frame) == "select")
    assert frame["pair"].iloc[kept.h0].tolist() == frame["pair"].iloc[kept.h1].tolist()
    assert 0 < len(kept.h0) < 30
    assert isinstance(kept, Contrast)
    assert kept.units.max() == len(kept.h0) - 1


def test_restrict_leaves_out_a_pair_of_which_one_side_is_left_out():
    frame = make_frame({"a": 10})
    (contrast,) = find_contrasts(frame)
    keep = np.ones(len(frame), bool)
    keep[[contrast.h0[2], contrast.h1[5], contrast.h0[7], contrast.h1[7]]] = False
    kept = restrict(contrast, keep)
    assert frame["pair"].iloc[kept.h0].tolist() == frame["pair"].iloc[kept.h1].tolist()
    assert set(contrast.rows) - set(kept.rows) == {*contrast.h0[[2, 5, 7]], *contrast.h1[[2, 5, 7]]}
