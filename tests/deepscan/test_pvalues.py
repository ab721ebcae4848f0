import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepscan import Background, tails
from deepscan.ranks import rank_records
from deepscan.thresholds import bin_counts, bin_pvalues, given_alphas

TAILS = ("right", "left", "two-sided")


def defined_pvalues(h0, x, tail):
    """The definitions, read off cell by cell."""
    b, v = h0[None].astype(np.float64), x[:, None].astype(np.float64)
    n = h0.shape[0]
    right_upper, right_lower = ((b >= v).sum(1) + 1) / (n + 1), (b > v).sum(1) / (n + 1)
    left_upper, left_lower = ((b <= v).sum(1) + 1) / (n + 1), (b < v).sum(1) / (n + 1)
    if tail == "right":
        return right_lower, right_upper
    if tail == "left":
        return left_lower, left_upper
    lower, upper = np.minimum(right_lower, left_lower), np.minimum(right_upper, left_upper)
    return np.minimum(2 * lower, 1), np.minimum(2 * upper, 1)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("dtypes", [("f8", "f8"), ("f4", "f4"), ("f2", "f2"), ("f4", "f8"), ("f2", "f4"), ("f8", "f2")])
def test_ranges_follow_their_definition(tail, dtypes):
    rng = np.random.default_rng(1)
    # Rounding makes ties within the background and with it.
    h0 = rng.normal(size=(23, 40)).round(1).astype(dtypes[0])
    x = rng.normal(size=(9, 40)).round(1).astype(dtypes[1])
    h0[:, 3] = 0.5
    x[:4, 3] = 0.5
    lower, upper = defined_pvalues(h0, x, tail)
    p = Background(h0).pvalues(x, tail=tail)
    np.testing.assert_array_equal(p.upper, upper)
    np.testing.assert_array_equal(p.lower, lower)
    assert p.upper.min() > 0
    assert p.shape == x.shape


def test_constant_node_is_no_evidence():
    bg = Background(np.full((9, 2), 3.0))
    same, above = np.full((1, 2), 3.0), np.full((1, 2), 4.0)
    for tail in TAILS:
        assert (bg.pvalues(same, tail=tail).upper == 1).all()
        assert (bg.pvalues(same, tail=tail).lower == 0).all()
    assert (bg.pvalues(above, tail="right").upper == 0.1).all()
    assert (bg.pvalues(above, tail="left").upper == 1).all()
    assert (bg.pvalues(above, tail="two-sided").upper == 0.2).all()


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("ties", [False, True])
def test_super_uniform_under_h0_at_every_level(tail, ties):
    n, cells = 19, 200_000
    rng = np.random.default_rng(2)
    values = rng.normal(size=(n + 1, cells))
    if ties:
        values = values.round(0)
    upper = Background(values[:n]).pvalues(values[n:], tail=tail).upper
    for level in np.arange(1, n + 2) / (n + 1):
        share = np.mean(upper <= level + 1e-12)
        noise = 4 * np.sqrt(level * (1 - level) / cells)
        assert share <= level + noise
        if not ties and tail != "two-sided":
            assert share >= level - noise
    if not ties and tail == "two-sided":
        assert abs(np.mean(upper <= 0.2 + 1e-12) - 0.2) < 4 * np.sqrt(0.16 / cells)


@given(st.integers(0, 10_000), st.sampled_from(TAILS))
@settings(max_examples=40, deadline=None)
def test_monotone_transform_changes_nothing(seed, tail):
    rng = np.random.default_rng(seed)
    h0, x = rng.normal(size=(11, 6)).round(1), rng.normal(size=(5, 6)).round(1)
    plain = Background(h0).pvalues(x, tail=tail)
    bent = Background(np.exp(h0 / 2)).pvalues(np.exp(x / 2), tail=tail)
    np.testing.assert_array_equal(plain.upper, bent.upper)
    np.testing.assert_array_equal(plain.lower, bent.lower)
    mirrored = Background(-h0).pvalues(-x, tail={"right": "left", "left": "right"}.get(tail, tail))
    np.testing.assert_array_equal(plain.upper, mirrored.upper)


def test_groups_compare_with_their_own_background():
    rng = np.random.default_rng(3)
    h0, x = rng.normal(size=(30, 8)), rng.normal(size=(12, 8))
    g0, gx = np.repeat(["a", "b", "c"], [5, 10, 15]), np.tile(["c", "a"], 6)
    bg = Background(h0, groups=g0)
    p = bg.pvalues(x, tail="two-sided", groups=gx)
    sides = bg.sides(x, groups=gx)
    assert bg.sizes == {"a": 5, "b": 10, "c": 15}
    for label in ("a", "c"):
        own = Background(h0[g0 == label])
        np.testing.assert_array_equal(p.upper[gx == label], own.pvalues(x[gx == label], tail="two-sided").upper)
        np.testing.assert_array_equal(p.lower[gx == label], own.pvalues(x[gx == label], tail="two-sided").lower)
        np.testing.assert_array_equal(sides[gx == label], own.sides(x[gx == label]))


@pytest.mark.parametrize("n", [7, 8])
def test_sides_of_the_median(n):
    rng = np.random.default_rng(4)
    h0, x = rng.normal(size=(n, 30)).round(1), rng.normal(size=(10, 30)).round(1)
    ordered = np.sort(h0, axis=0)
    low, high = ordered[(n - 1) // 2], ordered[n // 2]
    expected = np.where(x > high, 1, np.where(x < low, -1, 0))
    np.testing.assert_array_equal(Background(h0).sides(x), expected)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_blocks_of_nodes_change_nothing(monkeypatch, dtype):
    rng = np.random.default_rng(5)
    h0, x = rng.normal(size=(13, 100)).astype(dtype), rng.normal(size=(4, 100)).astype(dtype)
    whole = Background(h0).pvalues(np.asfortranarray(x)).upper
    monkeypatch.setattr(tails, "_BLOCK_BYTES", 500)
    np.testing.assert_array_equal(Background(h0).pvalues(np.asfortranarray(x)).upper, whole)
    np.testing.assert_array_equal(Background(h0).pvalues(x).upper, whole)


def test_memory_stays_near_the_result():
    n_nodes = 1_000_000
    h0, x = np.zeros((6, n_nodes), np.float16), np.ones((2, n_nodes), np.float16)
    x.flags.writeable = False
    tracemalloc.start()
    try:
        bg = Background(h0)
        assert tracemalloc.get_traced_memory()[1] < h0.nbytes + (1 << 26)
        tracemalloc.reset_peak()
        held = tracemalloc.get_traced_memory()[0]
        p = bg.pvalues(x)
        assert tracemalloc.get_traced_memory()[1] - held < 2 * p.upper.nbytes + 3 * (1 << 25)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("decimals", [0, 1, 8])
def test_many_records_and_nodes_follow_the_definition(tail, decimals):
    """More than the kernel takes at once on either axis, and more ties than it compares without a search."""
    rng = np.random.default_rng(7)
    h0, x = rng.normal(size=(31, 67)).round(decimals), rng.normal(size=(520, 67)).round(decimals)
    lower, upper = defined_pvalues(h0, x, tail)
    p = Background(h0).pvalues(x, tail=tail)
    np.testing.assert_array_equal(p.upper, upper)
    np.testing.assert_array_equal(p.lower, lower)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("alphas", [[0.03, 0.1, 0.4], np.arange(1, 300) / 600], ids=["few", "many"])
def test_bins_are_those_of_the_pvalues(tail, alphas):
    rng = np.random.default_rng(8)
    h0, x = rng.normal(size=(30, 70)).round(1).astype("f4"), rng.normal(size=(12, 70)).round(1).astype("f4")
    labels, groups = np.repeat(["a", "b"], [10, 20]), np.tile(["b", "a"], 6)
    alphas = np.asarray(alphas)
    for bg, own in ((Background(h0), None), (Background(h0, groups=labels), groups)):
        bins = bg.bins(x, alphas, tail=tail, groups=own)
        upper = bg.pvalues(x, tail=tail, groups=own).upper
        np.testing.assert_array_equal(bins, (upper[..., None] > alphas + 1e-12).sum(-1))
        assert bins.dtype == bin_pvalues(upper, alphas).dtype


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("n_alphas", [50, 300])
def test_ranks_give_the_bins_of_the_values(tail, n_alphas):
    rng = np.random.default_rng(6)
    h0, h1 = rng.normal(size=(20, 30)).round(1), rng.normal(size=(15, 30)).round(1)
    background, scanned = np.arange(3, 17), np.array([0, 20, 1, 33, 34, 25])
    alphas = given_alphas(n_alphas, 0.5)
    assert alphas is not None
    values = np.concatenate([h0, h1])
    direct = bin_pvalues(Background(values[background]).pvalues(values[scanned], tail=tail).upper, alphas)
    ranks = rank_records(h0, h1)
    bins = ranks.bins(background, scanned, bin_counts(alphas, background.size, tail), tail)
    np.testing.assert_array_equal(bins, direct)
    assert bins.dtype == direct.dtype == (np.uint8 if n_alphas == 50 else np.uint16)
    chosen, nodes = scanned[[1, 3, 4, 5]], np.array([0, 7, 8, 29])
    sides = Background(values[background]).sides(values[chosen])[:, nodes]
    np.testing.assert_array_equal(ranks.signs(background, chosen, nodes), np.sign(sides.sum(0)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Background(np.zeros(3)), "h0 has shape"),
        (lambda: Background(np.zeros((0, 3))), "h0 is an empty background"),
        (lambda: Background(np.zeros((3, 0))), "h0 has no nodes"),
        (lambda: Background(np.array([[1.0, np.nan]])), "h0 holds NaN or inf, first at record 0, node 1"),
        (lambda: Background(np.array([[1.0, np.inf]])), "h0 holds NaN or inf"),
        (lambda: Background(np.zeros((2, 2), complex)), "h0 has dtype complex"),
        (lambda: Background(np.zeros((2, 2)), groups=["a"]), "groups has shape"),
        (lambda: Background(np.zeros((2, 2))).pvalues(np.zeros((1, 3))), "x has 3 nodes; expected 2"),
        (lambda: Background(np.zeros((2, 2))).pvalues(np.full((1, 2), -np.inf)), "x holds NaN or inf"),
        (lambda: Background(np.zeros((2, 2))).pvalues(np.zeros((1, 2)), groups=["a"]), "groups was given"),
        (lambda: Background(np.zeros((2, 2)), groups=["a", "b"]).pvalues(np.zeros((1, 2))), "groups is missing"),
        (
            lambda: Background(np.zeros((2, 2)), groups=["a", "b"]).pvalues(np.zeros((1, 2)), groups=["c"]),
            "groups holds 'c'",
        ),
    ],
)
def test_bad_input_is_named(call, message, unchecked):
    with pytest.raises(ValueError, match=message):
        call()


def test_unknown_tail_is_named(unchecked):
    with pytest.raises(ValueError, match="tail is 'both'; expected one of 'right', 'left', 'two-sided'"):
        Background(np.zeros((2, 2))).pvalues(np.zeros((1, 2)), tail="both")  # pyright: ignore[reportArgumentType]
