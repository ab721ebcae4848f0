import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from utils.causal.effects import adjust_checks, summarise_effects
from utils.viz.causal import plot_controls, plot_costs, plot_dose, plot_effect_layers

SELECTORS = ("scan", "mean-difference", "dense direction")


@pytest.fixture(scope="module")
def values():
    """Six pairs; the scan's effect is the strength times the layer, whatever the size."""
    rng, rows = np.random.default_rng(0), []
    for layer in (2, 4):
        where = {"layer": layer, "mode": "steer", "measure": "likelihood", "prompt": "neutral"}
        clean = rng.normal(size=6)
        rows += [{**where, "strength": 0.0, "size": 0, "selector": "none", "draw": -1, "n_nodes": 0, "pair": i, "value": x}
                 for i, x in enumerate(clean)]  # fmt: skip
        for strength, size in ((0.1, 5), (0.2, 5), (0.1, 20)):
            sets = [(name, -1, 64 if name == SELECTORS[2] else size, strength * layer) for name in SELECTORS]
            sets += [("random", draw, size, rng.normal() * 0.05) for draw in range(9)]
            for selector, draw, n_nodes, effect in sets:
                at = {
                    **where,
                    "strength": strength,
                    "size": size,
                    "selector": selector,
                    "draw": draw,
                    "n_nodes": n_nodes,
                }
                rows += [{**at, "pair": i, "value": x + effect} for i, x in enumerate(clean)]
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def effects(values):
    return adjust_checks(summarise_effects(values))


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_controls_show_every_set_and_every_draw(effects, values):
    own = effects[(effects["layer"] == 2) & (effects["strength"] == 0.1) & (effects["size"] == 5)]
    ax = plot_controls(own, values)
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert [label.split("  ")[0] for label in labels] == [*SELECTORS, "random (9 sets)"]
    dots = ax.lines[-1].get_xdata()
    drawn = values.query("layer == 2 and strength == 0.1 and size == 5 and selector == 'random'")
    clean = values.query("layer == 2 and selector == 'none'")["value"].mean()
    np.testing.assert_allclose(sorted(dots), sorted(drawn.groupby("draw")["value"].mean() - clean))


def test_dose_curves_go_through_the_effects(effects):
    own = effects[(effects["layer"] == 2) & (effects["size"] == 5)]
    lines = {line.get_label(): line for line in plot_dose(own).lines}
    np.testing.assert_allclose(lines["scan"].get_xydata(), [[0, 0], [0.1, 0.2], [0.2, 0.4]])
    over_size = plot_dose(effects[(effects["layer"] == 2) & (effects["strength"] == 0.1)], over="size")
    lines = {line.get_label(): line for line in over_size.lines}
    np.testing.assert_allclose(lines["scan"].get_xydata(), [[5, 0.2], [20, 0.2]])
    assert "dense direction" not in lines  # of no size


def test_layers_stand_below_the_divergence(effects):
    own = effects[(effects["size"] == 5) & (effects["strength"] == 0.1)]
    divergence = pd.DataFrame({"layer": range(6), "silhouette": [np.nan, *np.arange(5) / 10]})
    divergence = divergence.assign(silhouette_low=0.0, silhouette_high=0.5)
    axes = plot_effect_layers(own, divergence, mark=4)
    assert len(axes) == 2
    np.testing.assert_allclose(axes[0].lines[0].get_xydata()[:, 1], np.arange(5) / 10)
    lines = {line.get_label(): line for line in axes[1].lines}
    np.testing.assert_allclose(lines["scan"].get_xydata(), [[2, 0.2], [4, 0.4]])


def test_costs_leave_out_the_model_as_it_is():
    row = {"mode": "steer", "strength": 0.2, "selector": "scan", "n_sets": 1}
    for name, value in (("perplexity_ratio", 1.2), ("accuracy_change", -0.1)):
        row |= {name: value, f"{name}_low": value - 0.05, f"{name}_high": value + 0.05}
    costs = pd.DataFrame([{**row, "mode": "", "selector": "none"}, row, {**row, "selector": "random", "n_sets": 9}])
    axes = plot_costs(costs)
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["steered: scan", "steered: random (mean of 9)"]
    assert axes[0].lines[2].get_xdata()[0] == 1.2
    assert axes[1].lines[2].get_xdata()[0] == -0.1
