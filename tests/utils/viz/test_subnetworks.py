import numpy as np
import pandas as pd
import pytest

from utils.viz.subnetworks import plot_conditions, plot_mask_overlap, plot_overlap_and_divergence, plot_sweep


@pytest.fixture
def sweep():
    rows = [
        (score, sparsity, measure, 1 + sparsity, 0.9, 2.0)
        for score in ("wanda", "softplus")
        for sparsity in (0.0, 0.3, 0.1)
        for measure in ("likelihood", "perplexity")
    ]
    return pd.DataFrame(rows, columns=["score", "sparsity", "measure", "estimate", "low", "high"])


@pytest.mark.parametrize("measure", ["likelihood", "perplexity"])
def test_sweep_draws_one_line_a_score_in_order_of_sparsity(sweep, measure):
    ax = plot_sweep(sweep, measure=measure)
    lines = {line.get_label(): line.get_xydata() for line in ax.get_lines()}
    assert set(lines) == {"wanda", "softplus", "dense"}
    np.testing.assert_allclose(lines["wanda"], [[0, 1], [0.1, 1.1], [0.3, 1.3]])
    assert ax.get_yscale() == ("log" if measure == "perplexity" else "linear")


def test_conditions_are_in_order_from_the_top():
    table = pd.DataFrame({"condition": ["dense", "mask"], "measure": "likelihood", "estimate": [0.1, 0.4]})
    ax = plot_conditions(table.assign(low=0.0, high=0.5), measure="likelihood")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["dense", "mask"]
    assert ax.yaxis_inverted()
    bars = ax.collections[0].get_segments()
    np.testing.assert_allclose(bars[1], [[0.0, 1], [0.5, 1]])


def test_nulls_share_a_row_and_unmeasured_conditions_keep_theirs():
    rows = [("dense", "likelihood", 0.1), ("mask", "likelihood", 0.4), ("n1", "likelihood", -0.2)]
    rows += [("n2", "likelihood", 0.3), ("dense", "accuracy", 0.5), ("n1", "accuracy", 0.6)]
    table = pd.DataFrame(rows, columns=["condition", "measure", "estimate"]).assign(low=-0.5, high=0.9)
    for measure, shown, null in (("likelihood", [0.1, 0.4], [-0.2, 0.3]), ("accuracy", [0.5, np.nan], [0.6])):
        ax = plot_conditions(table, measure=measure, nulls=["n1", "n2"])
        assert [label.get_text() for label in ax.get_yticklabels()] == ["dense", "mask", "n (2)"]
        points = [line.get_xydata() for line in ax.get_lines() if line.get_marker() == "o"]
        found = {tuple(each[:, 1]): list(each[:, 0]) for each in points}
        np.testing.assert_allclose(found[(0, 1)], shown)
        assert found[(2,) * len(null)] == null
        band = ax.patches[0].get_extents().transformed(ax.transData.inverted())
        np.testing.assert_allclose([band.x0, band.x1], [min(null), max(null)], atol=1e-9)


@pytest.mark.parametrize("measure", ["likelihood", "perplexity"])
def test_changes_are_drawn_with_their_own_intervals(measure):
    table = pd.DataFrame(
        {"condition": ["dense", "mask"], "measure": measure, "estimate": 9.0, "low": 8.0, "high": 10.0}
    )
    table = table.assign(change=[0.0, 0.4], change_low=[0.0, 0.3], change_high=[0.0, 0.6])
    ax = plot_conditions(table, measure=measure, change=True)
    np.testing.assert_allclose(ax.collections[0].get_segments()[1], [[0.3, 1], [0.6, 1]])
    assert ("times the baseline" in ax.get_xlabel()) == (measure == "perplexity")


def test_overlap_stands_beside_divergence_over_the_same_layers():
    overlap = pd.DataFrame({"layer": [1, 2], "jaccard": [0.2, 0.4], "expected_jaccard": [0.3, 0.3]})
    curve = pd.DataFrame({"layer": [0, 1, 2], "mmd": [np.nan, 0.1, 0.5], "mmd_low": 0.0, "mmd_high": 1.0})
    left, right = plot_overlap_and_divergence({"relu": overlap}, curve, metric="mmd")
    np.testing.assert_allclose(left.get_lines()[0].get_xydata(), [[1, 0.2], [2, 0.4]])
    np.testing.assert_allclose(right.get_lines()[0].get_xydata(), curve[["layer", "mmd"]])
    assert left.get_xlim() == right.get_xlim()


def test_overlap_draws_each_comparison_and_what_chance_gives():
    table = pd.DataFrame({"layer": [1, 2], "jaccard": [0.2, 0.4], "expected_jaccard": [0.3, 0.3]})
    ax = plot_mask_overlap({"relu": table, "mine": table.assign(jaccard=0.9)})
    lines = {line.get_label(): line.get_ydata() for line in ax.get_lines()}
    assert set(lines) == {"relu", "mine", "independent"}
    np.testing.assert_allclose(lines["relu"], [0.2, 0.4])
    np.testing.assert_allclose(lines["independent"], [0.3, 0.3])
