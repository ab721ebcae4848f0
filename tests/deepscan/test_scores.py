import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import rel_entr

from deepscan import scan, scan_individual, scores
from deepscan.candidates import phi

NAMES = ("bj", "hc", "ks")


def closed_form(name, n_alpha, n, alpha):
    """One score from its definition; the relative entropy is scipy's."""
    if n_alpha <= n * alpha:
        return 0.0
    if name == "bj":
        share = n_alpha / n
        return n * (rel_entr(share, alpha) + rel_entr(1 - share, 1 - alpha))
    return (n_alpha - n * alpha) / math.sqrt(n * alpha * (1 - alpha) if name == "hc" else n)


@pytest.mark.parametrize("name", NAMES)
@given(n=st.integers(1, 10**7), share=st.floats(0, 1), alpha=st.floats(1e-9, 1 - 1e-9))
@settings(deadline=None)
def test_scores_equal_their_closed_forms(name, n, share, alpha):
    n_alpha = round(n * share)
    expected = closed_form(name, n_alpha, n, alpha)
    array = scores.SCORES[name](np.array([n_alpha]), np.array([n]), np.array([alpha]))
    kernel = phi(scores.KINDS[name], n_alpha, n, alpha)
    assert array[0] == pytest.approx(expected, rel=1e-7, abs=1e-7 + 1e-13 * n)
    assert kernel == pytest.approx(array[0], rel=1e-9, abs=1e-9 + 1e-14 * n)


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_safe_at_the_edges(name):
    n = np.array([1, 1, 10, 10, 10**9, 10**9])
    n_alpha = np.array([0, 1, 0, 10, 0, 10**9])
    for alpha in (1e-300, 1e-12, 0.5, 1 - 1e-12):
        values = scores.SCORES[name](n_alpha, n, alpha)
        assert np.isfinite(values).all()
        assert (values[n_alpha == 0] == 0).all()
        assert (values[n_alpha > 0] > 0).all()
        for a, b, value in zip(n_alpha, n, values, strict=True):
            assert phi(scores.KINDS[name], int(a), int(b), alpha) == pytest.approx(value, rel=1e-12)
    assert scores.berk_jones(np.array([10]), np.array([10]), 0.01)[0] == pytest.approx(10 * math.log(100))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("alphas", [50, "exact"])
def test_a_callable_finds_what_the_kernels_find(name, alphas):
    rng = np.random.default_rng(0)
    p = rng.integers(1, 41, size=(15, 60)) / 40
    p[:6, :20] = np.maximum(p[:6, :20] ** 3, 1 / 40)
    ours = scan(p, score=name, alphas=alphas, restarts=4)
    called = scan(p, score=scores.SCORES[name], alphas=alphas, restarts=4)
    assert called.score == pytest.approx(ours.score, rel=1e-12)
    assert called.alpha == ours.alpha
    np.testing.assert_array_equal(called.records, ours.records)
    np.testing.assert_array_equal(called.nodes, ours.nodes)
    for one, other in zip(scan_individual(p, score=name), scan_individual(p, score=scores.SCORES[name]), strict=True):
        assert one.score == pytest.approx(other.score, rel=1e-12)
        np.testing.assert_array_equal(one.nodes, other.nodes)


def test_a_callable_gets_arrays_of_distinct_counts():
    calls = []

    def excess(n_alpha, n, alpha):
        calls.append(len(n_alpha))
        assert n_alpha.shape == n.shape == alpha.shape
        assert ((n_alpha >= 0) & (n_alpha <= n) & (alpha > 0) & (alpha <= 0.5)).all()
        return n_alpha - n * alpha

    p = np.random.default_rng(0).uniform(size=(8, 5000))
    found = scan(p, score=excess, alphas=10)
    cells = p[np.ix_(found.records, found.nodes)]
    assert found.score == pytest.approx((cells <= found.alpha).sum() - cells.size * found.alpha)
    assert max(calls) <= 10 * 9


@pytest.mark.parametrize("bad", [lambda a, n, alpha: np.full(a.shape, np.nan), lambda a, n, alpha: 1.0])
def test_a_callable_that_returns_nonsense_is_refused(bad):
    with pytest.raises(ValueError, match="score must return one number"):
        scan(np.full((2, 2), 0.1), score=bad)


def test_unknown_score_is_named(unchecked):
    for search in (scan, scan_individual):
        with pytest.raises(ValueError, match="score is 'zz'; expected one of 'bj', 'hc', 'ks', or a function"):
            search(np.full((2, 2), 0.1), score="zz")
