import numpy as np
import pandas as pd
import pytest

from utils.mask_plots import plot_conditions, plot_mask_overlap, plot_sweep


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


def test_overlap_draws_each_comparison_and_what_chance_gives():
    table = pd.DataFrame({"layer": [1, 2], "jaccard": [0.2, 0.4], "expected_jaccard": [0.3, 0.3]})
    ax = plot_mask_overlap({"relu": table, "mine": table.assign(jaccard=0.9)})
    lines = {line.get_label(): line.get_ydata() for line in ax.get_lines()}
    assert set(lines) == {"relu", "mine", "independent"}
    np.testing.assert_allclose(lines["relu"], [0.2, 0.4])
    np.testing.assert_allclose(lines["independent"], [0.3, 0.3])
