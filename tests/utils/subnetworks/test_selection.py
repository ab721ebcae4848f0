import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.subnetworks.selection import check_sparsity, keep_all, keep_count, keep_rows


def best(scores, seconds, k):
    """Places of the k best by sorting: larger score, then larger second score, then first."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], -seconds[i], i))
    chosen = np.zeros(len(scores), bool)
    chosen[order[:k]] = True
    return chosen


def draw(seed, rows, columns, n_values):
    """Scores and seconds with many ties, from few values, 0 and tiny ones among them."""
    rng = np.random.default_rng(seed)
    values = np.array([0.0, -0.0, 5e-324, 1e-300, 0.1, 0.1 + 2e-17, 1.0, 3.5, 1e300])[:n_values]
    return [torch.from_numpy(rng.choice(values, size=(rows, columns))) for _ in range(2)]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.data())
def test_rows_keep_the_best_by_sorting(seed, rows, columns, n_values, data):
    scores, seconds = draw(seed, rows, columns, n_values)
    k = data.draw(st.integers(0, columns))
    kept = keep_rows(scores, seconds, k).numpy()
    expected = [best(*each, k) for each in zip(scores.tolist(), seconds.tolist(), strict=True)]
    assert np.array_equal(kept, np.stack(expected))


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 7), st.integers(1, 9), st.data())
def test_all_blocks_together_keep_the_best_by_sorting(seed, rows, columns, n_values, data):
    scores, seconds = draw(seed, rows, columns, n_values)
    k = data.draw(st.integers(0, rows * columns))
    parts = list(zip(scores.split(2), seconds.split(2), strict=True))
    kept = torch.cat(list(keep_all(lambda: iter(parts), k))).reshape(-1).numpy()
    assert np.array_equal(kept, best(scores.reshape(-1).tolist(), seconds.reshape(-1).tolist(), k))


def test_what_may_not_be_chosen_is_left_out():
    scores = torch.tensor([[-1.0, 0.0, -1.0, 0.0, 2.0]]).double()
    seconds = torch.tensor([[-1.0, 0.0, -1.0, 1.0, 0.0]]).double()
    for kept in (keep_rows(scores, seconds, 2), *keep_all(lambda: iter([(scores, seconds)]), 2)):
        assert kept.tolist() == [[False, False, False, True, True]]


@pytest.mark.parametrize(
    ("n", "sparsity", "kept"), [(10, 0.9, 1), (5, 0.6, 2), (7, 0.5, 3), (3, 0.0, 3), (10, 0.3, 7), (1, 0.5, 0)]
)
def test_counts_are_rounded_down(n, sparsity, kept):
    assert keep_count(n, sparsity) == kept


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, float("nan")])
def test_sparsity_out_of_range(sparsity):
    with pytest.raises(ValueError, match=r"in \[0, 1\)"):
        check_sparsity(sparsity)
