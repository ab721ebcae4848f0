import numpy as np
import pytest

from deepscan import detect
from utils.nodes.controls import matched_sets, random_sets, scanned_nodes, simple_sets

SIGNS = np.where(np.arange(200) % 3 == 0, 1, -1)


def scan_pairs(effect, n=40, d=30):
    rng = np.random.default_rng(0)
    h0, h1 = rng.normal(size=(2, n, d))
    h1[:, :4] += effect
    return h0, h1, detect(h0, h1, n_runs=8, n_permutations=19, n_clean=8, n_anomalous=8)


def test_random_sets_have_the_size_the_signs_and_no_node_twice():
    sets = random_sets(12, SIGNS, 300, rng=0)
    assert len(sets) == 300
    for held in sets:
        assert len({node for node, _ in held}) == 12
        assert all(sign == SIGNS[node] for node, sign in held)
    counts = np.bincount([node for held in sets for node, _ in held], minlength=200)
    # Every node has the same chance: 300 * 12 / 200 = 18 expected, binomial spread about 4.1.
    assert abs(counts.mean() - 18) < 1e-9
    assert counts.std() < 6
    assert sets == random_sets(12, SIGNS, 300, rng=0)
    assert sets != random_sets(12, SIGNS, 300, rng=1)


def test_matched_sets_vary_as_the_given_one_does():
    rng = np.random.default_rng(0)
    spread = rng.lognormal(size=200)
    loud = frozenset((int(node), 1) for node in np.argsort(spread)[-30::3])
    chosen, drawn = spread[[node for node, _ in loud]], matched_sets(loud, spread, SIGNS, 200, rng=0)
    means = [spread[[node for node, _ in held]].mean() for held in drawn]
    plain = [spread[[node for node, _ in held]].mean() for held in random_sets(len(loud), SIGNS, 200, rng=0)]
    assert all(len({node for node, _ in held}) == len(loud) for held in drawn)
    assert np.mean(means) == pytest.approx(chosen.mean(), rel=0.1)
    assert np.mean(plain) < 0.6 * chosen.mean()
    assert len(set(drawn)) > 100
    assert all(sign == SIGNS[node] for held in drawn for node, sign in held)


def test_a_set_of_all_nodes_is_matched_by_itself():
    everything = frozenset((node, 1) for node in range(20))
    for held in matched_sets(everything, np.arange(20.0), SIGNS[:20], 3, rng=0):
        assert {node for node, _ in held} == set(range(20))


def test_scanned_nodes_are_those_with_an_effect_and_all_have_a_side():
    _, _, runs = scan_pairs(3.0)
    assert scanned_nodes(runs, SIGNS[:30], size=4) == frozenset((node, 1) for node in range(4))
    most = int((runs.node_frequency() > 0).sum())
    for node, sign in scanned_nodes(runs, SIGNS[:30], size=most):
        assert sign == (runs.node_sign()[node] or SIGNS[node])


def test_simple_sets_have_one_size():
    h0, h1, _ = scan_pairs(2.0)
    sets = simple_sets(h0, h1, 4, pairs=np.arange(40))
    assert set(sets) == {"mean-difference", "t-test", "probe"}
    assert all(len(held) == 4 for held in sets.values())
    assert sets["t-test"] == frozenset((node, 1) for node in range(4))


def test_bad_sizes_are_named():
    _, _, runs = scan_pairs(0.0)
    with pytest.raises(ValueError, match="node set is empty"):
        scanned_nodes(runs, SIGNS[:30], threshold=1.0)
    with pytest.raises(ValueError, match="31 nodes were asked for"):
        scanned_nodes(runs, SIGNS[:30], size=31)
    with pytest.raises(ValueError, match="0 nodes"):
        random_sets(0, SIGNS, 3)
    with pytest.raises(ValueError, match="201 nodes"):
        random_sets(201, SIGNS, 3)
