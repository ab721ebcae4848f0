import numpy as np
import pytest

from utils.intervals import describe, describe_nothing, jackknife_error
from utils.layers.clusters import draw_halves, flip_sides, stack_members

PAIRS = np.repeat([False, True], 30), np.tile(np.arange(30), 2)
SINGLES = np.repeat([False, True], [20, 30]), np.arange(50)
MIXED = np.r_[np.repeat([False, True], 10), np.repeat([False, True], [6, 9])], np.r_[np.tile(np.arange(10), 2), 10:25]


def test_flips_of_pairs_swap_whole_pairs_about_half_of_the_time():
    labels, units = PAIRS
    flips = flip_sides(labels, units, 400, np.random.default_rng(0))
    assert flips.shape == (60, 400)
    assert (flips[:30] != flips[30:]).all()
    swapped = (flips != labels[:, None])[:30].mean(axis=1)
    assert np.abs(swapped - 0.5).max() < 0.12  # standard error 0.025


def test_flips_of_single_statements_keep_the_sizes_of_the_sides():
    labels, units = SINGLES
    flips = flip_sides(labels, units, 400, np.random.default_rng(0))
    assert (flips.sum(axis=0) == 30).all()
    assert np.abs(flips.mean(axis=1) - 0.6).max() < 0.12


def test_pairs_beside_single_statements_stay_whole():
    labels, units = MIXED
    flips = flip_sides(labels, units, 100, np.random.default_rng(0))
    assert (flips[:10] != flips[10:20]).all()
    assert (flips[20:].sum(axis=0) == 9).all()
    assert 0 < (flips[:10] == labels[:10, None]).mean() < 1
    assert 0 < (flips[20:] == labels[20:, None]).mean() < 1


def test_columns_are_the_truth_then_each_unit_left_out_then_the_shuffled():
    labels, units = np.array([0, 2, 1, 0, 2, 1]), np.array([0, 1, 2, 2, 1, 0])
    shuffled = np.array([[1, 1, 0, 2, 0, 2]]).T
    members = stack_members(labels, units, shuffled)
    assert members.shape == (3, 6, 1 + 3 + 1)
    assert (members[:, :, 0].argmax(axis=0) == labels).all()
    assert (members[:, :, 0].sum(axis=0) == 1).all()
    for unit in range(3):
        left = units != unit
        assert (members[:, left, 1 + unit] == members[:, left, 0]).all()
        assert not members[:, ~left, 1 + unit].any()
    assert (members[:, :, 4].argmax(axis=0) == shuffled[:, 0]).all()


@pytest.mark.parametrize(("labels", "units", "sizes"), [(*PAIRS, (15, 15)), (*SINGLES, (10, 15)), (*MIXED, (8, 10))])
def test_halves_hold_half_of_the_units_and_both_of_a_pair(labels, units, sizes):
    halves = draw_halves(labels, units, 200, np.random.default_rng(0))
    assert halves.shape == (2, len(labels), 200)
    assert halves.sum(axis=1).T.tolist() == [list(sizes)] * 200
    present = halves.sum(axis=0)
    for unit in np.unique(units):
        assert (present[units == unit] == present[units == unit][0]).all()
    assert (halves[1][~labels] == 0).all()
    assert (halves[0][labels] == 0).all()
    assert np.abs(present.mean(axis=1) - present.mean()).max() < 0.2


def test_jackknife_of_a_mean_is_its_standard_error():
    x = np.random.default_rng(0).normal(size=25)
    left_out = (x.sum() - x) / 24
    error = x.std(ddof=1) / np.sqrt(25)
    assert jackknife_error(left_out) == pytest.approx(error)
    shuffled = np.arange(101.0)
    row = describe("m", np.r_[x.mean(), left_out, shuffled], 25)
    assert row["m"] == x.mean()
    assert (row["m_high"] - row["m"], row["m"] - row["m_low"]) == pytest.approx((1.959964 * error, 1.959964 * error))
    assert (row["m_null_low"], row["m_null_high"]) == (5, 95)


def test_infinite_values_have_no_interval_and_raise_no_warning():
    row = describe("m", np.r_[1.0, 2.0, np.inf, np.full(20, np.inf)], 2)
    assert np.isnan([row["m_low"], row["m_high"]]).all()
    assert (row["m"], row["m_null_low"], row["m_null_high"]) == (1, np.inf, np.inf)


@pytest.mark.parametrize("n_shuffled", [0, 20])
def test_nothing_has_the_columns_of_something(n_shuffled):
    row = describe("m", np.ones(1 + 3 + n_shuffled), 3)
    nothing = describe_nothing(["m"], shuffled=n_shuffled > 0)
    assert list(nothing) == list(row)
    assert np.isnan(list(nothing.values())).all()
