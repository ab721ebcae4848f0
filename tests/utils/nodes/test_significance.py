import numpy as np
import pytest
from planted import draw_pairs, make_acts
from scipy.stats import false_discovery_control, ttest_rel

from utils.nodes.significance import NODE_RULES, compare_sides, rule_sets
from utils.statements.contrasts import find_contrasts

QUICK = {"n_permutations": 99, "progress": False}


@pytest.fixture(scope="module")
def tested():
    """A persona whose first node moves, and one in which nothing does."""
    rng = np.random.default_rng(0)
    moved, still = draw_pairs(rng, 30, 12, effect=2.0), draw_pairs(rng, 30, 12)
    acts = [make_acts(values, persona=name) for name, values in (("moved", moved), ("still", still))]
    values = np.concatenate([moved[0], still[0]])
    contrasts = [find_contrasts(each)[0] for each in acts]
    shifted = contrasts[1].__class__("still", "t", contrasts[1].h0 + 60, contrasts[1].h1 + 60, True)
    return values, [contrasts[0], shifted], *compare_sides(values, [contrasts[0], shifted], **QUICK)


def test_the_planted_persona_and_node_are_found_and_nothing_else(tested):
    _, _, personas, nodes = tested
    table = personas.set_index("persona")
    assert table.loc["moved", "calibrated_p_adjusted"] <= 0.05 < table.loc["still", "calibrated_p_adjusted"]
    assert rule_sets(nodes, "family") == {"moved": frozenset({(0, 1)}), "still": frozenset()}
    assert (0, 1) in rule_sets(nodes, "bh")["moved"]
    assert rule_sets(nodes, "calibrated")["moved"] == frozenset({(0, 1)})
    np.testing.assert_allclose(personas["separation_p_adjusted"], false_discovery_control(personas["separation_p"]))
    assert table.loc["moved", "n_family"] == 1


def test_nodes_are_those_of_paired_t_tests(tested):
    values, contrasts, _, nodes = tested
    for contrast in contrasts:
        own = nodes[nodes["persona"] == contrast.persona].sort_values("node")
        expected = ttest_rel(values[contrast.h1], values[contrast.h0])
        np.testing.assert_allclose(own["t"], expected.statistic)
        np.testing.assert_allclose(own["p_bh"], false_discovery_control(expected.pvalue))


def test_sets_hold_no_node_without_a_side(tested, unchecked):
    nodes = tested[3].assign(p_bh=0.0, p_family=0.0, calibrated=True)
    nodes.loc[nodes["node"] == 3, "sign"] = 0
    for rule in NODE_RULES:
        assert {node for held in rule_sets(nodes, rule).values() for node, _ in held} == {*range(12)} - {3}
    with pytest.raises(ValueError, match="unknown rule"):
        rule_sets(nodes, "scan")
