import numpy as np
import pytest

from deepscan.relabellings import centre_and_scale, read_layers, relabel, share_reaching, standardise, sums_by_labelling
from deepscan.splits import label_records, permute_labels


def test_flips_are_those_of_detect():
    """Column k of the signs is the k-th relabelling of detect, whatever the order of the rows."""
    names = np.array(["c", "a", "b"])
    sides, _ = read_layers(np.ones((3, 1)), np.ones((3, 1)), smallest=1)
    for pairs in (names, None):
        relabellings = relabel(sides, pairs, 8, 11)
        labels = label_records(3, 3, pairs)
        for k in range(8):
            permuted = permute_labels(labels, 11, k)
            if pairs is None:
                assert set(np.flatnonzero(relabellings.signs[:, 1 + k] < 0)) == set(permuted.h0)
            else:
                np.testing.assert_array_equal(relabellings.signs[:, 1 + k] > 0, permuted.h0 < 3)
    assert relabel(sides, names, 0, 0).align(np.array([1.0, 2.0, 3.0])).tolist() == [3, 1, 2]


def test_columns_have_unit_length_and_change_sign_with_their_pair():
    rng = np.random.default_rng(0)
    h0, h1 = (1e4 * rng.normal(size=(2, 9, 6))).astype(np.float32)
    labels = label_records(9, 9, rng.permutation(9))
    z = standardise(h0, h1, labels)
    np.testing.assert_allclose((z**2).sum(axis=0), 1)
    d = h1.astype(float)[labels.h1 - 9] - h0.astype(float)[labels.h0]
    np.testing.assert_allclose(z, d / np.linalg.norm(d, axis=0))
    flip = rng.integers(2, size=9).astype(bool)
    rows = np.isin(np.arange(9), labels.h0[flip])[:, None]
    flipped = standardise(np.where(rows, h1, h0), np.where(rows, h0, h1), labels)
    np.testing.assert_array_equal(flipped, np.where(flip[:, None], -z, z))


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e300])
def test_the_unit_of_a_node_does_not_matter(scale):
    rng = np.random.default_rng(1)
    h0, h1 = rng.normal(size=(2, 9, 6))
    for pairs in (np.arange(9), None):
        labels = label_records(9, 9, pairs)
        np.testing.assert_allclose(standardise(scale * h0, scale * h1, labels), standardise(h0, h1, labels), atol=1e-12)


def test_labels_do_not_enter_the_nodes_of_single_records():
    rng = np.random.default_rng(2)
    values = rng.normal(size=(11, 4))
    values[:, 2] = 0.1
    one = standardise(values[:5], values[5:], label_records(5, 6, None))
    other = standardise(values[:8], values[8:], label_records(8, 3, None))
    np.testing.assert_array_equal(one, other)
    assert not one[:, 2].any()
    np.testing.assert_allclose(one.sum(axis=0), 0, atol=1e-12)


def test_sums_come_in_blocks(monkeypatch):
    rng = np.random.default_rng(3)
    z, signs = rng.normal(size=(7, 10)), rng.normal(size=(7, 23))
    monkeypatch.setattr("deepscan.relabellings._BLOCK_CELLS", 45)
    blocks = list(sums_by_labelling(z, signs))
    assert [block.stop - block.start for block, _ in blocks] == [4] * 5 + [3]
    np.testing.assert_allclose(np.vstack([sums for _, sums in blocks]), signs.T @ z)


def test_shares_count_ties_that_differ_in_the_last_bits():
    values = np.array([[1.0, 1.0 - 1e-13, 0.5, 2.0], [0.0, 0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(share_reaching(values, values[:, 0]), [0.75, 1.0])


def test_values_that_do_not_vary_are_scaled_to_nothing():
    values = np.array([[3.0, 3.0 + 1e-14, 3.0], [1.0, 2.0, 3.0]])
    scaled = centre_and_scale(values)
    assert not scaled[0].any()
    np.testing.assert_allclose(scaled[1], [-np.sqrt(1.5), 0, np.sqrt(1.5)])


def test_layers_are_told_from_records():
    one, two = np.ones((4, 3)), np.ones((2, 4, 3))
    assert [len(read_layers(x, x, smallest=1)[0]) for x in (one, two, [one], (one, one))] == [1, 2, 1, 2]
    assert [read_layers(x, x, smallest=1)[1] for x in (one, two, [one], (one, one))] == [False, True, True, True]
