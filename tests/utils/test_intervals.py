import numpy as np
import pytest

from utils.intervals import interval, resample_weights


def test_resamples_have_as_many_units_as_the_sample():
    weights = resample_weights(7, 500, 0)
    assert weights.shape == (500, 7)
    assert (weights.sum(axis=1) == 7).all()
    assert weights.mean() == pytest.approx(1)
    assert np.array_equal(weights, resample_weights(7, 500, np.random.default_rng(0)))


def test_interval_leaves_out_as_much_on_either_side():
    low, high = interval(np.arange(1001.0)[:, None] * [1, 2])
    np.testing.assert_allclose([low, high], [[25, 50], [975, 1950]])
