"""Time the divergence of one persona at all layers of the embedded model, beside a loop over scikit-learn's functions.

Run ``uv run python benchmarks/bench_layers.py [--persona NAME] [--pairs N]``. The budgets are for two cores and 100
pairs. The loop does at one layer what ``divergence`` does at each: the three cluster metrics that scikit-learn has, for
every left-out pair and every flip, and a cross-validated probe for the true sides and every flip.
"""

import argparse
import time
from dataclasses import replace

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import calinski_harabasz_score, davies_bouldin_score, silhouette_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from utils.activations.extraction import extract
from utils.layers.clusters import flip_sides
from utils.layers.separation import divergence
from utils.models.load import load_model
from utils.statements.contrasts import Contrast, find_contrasts
from utils.statements.load import load_statements

BUDGET = 8.0
PROBE_BUDGET = 30.0
N_FLIPS = 100
PROBE_FLIPS = 20


def seconds(call) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def loop_metrics(x: np.ndarray, contrast: Contrast, flips: np.ndarray) -> None:
    labels, units = contrast.labels, contrast.units
    left_out = [(x[units != unit], labels[units != unit]) for unit in np.unique(units)]
    for rows, sides in [(x, labels), *left_out, *((x, sides) for sides in flips.T)]:
        for score in (silhouette_score, calinski_harabasz_score, davies_bouldin_score):
            score(rows, sides)


def loop_probe(x: np.ndarray, contrast: Contrast, flips: np.ndarray) -> None:
    # The same penalty on the nodes as in utils.layers.probes, which divides them by the root of their number.
    model = LogisticRegression(C=10.0 / x.shape[1], class_weight="balanced", max_iter=1000)
    for sides in (contrast.labels, *flips.T):
        folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
        probe = make_pipeline(StandardScaler(), model)
        cross_val_predict(probe, x, sides, groups=contrast.units, cv=folds, method="decision_function")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--persona", default="openness")
    parser.add_argument("--pairs", type=int, default=100)
    options = parser.parse_args()
    acts = extract(load_model(), load_statements(personas=[options.persona]))
    whole = find_contrasts(acts)[0]
    contrast = replace(whole, h0=whole.h0[: options.pairs], h1=whole.h1[: options.pairs])
    without, probed = (
        seconds(lambda probe=probe: divergence(acts, [contrast], probe=probe, progress=False))
        for probe in (False, True)
    )
    flips = flip_sides(contrast.labels, contrast.units, N_FLIPS, np.random.default_rng(0))
    x = acts.isel(layer=-1, statement=contrast.rows).to_numpy().astype(np.float64)
    with threadpool_limits(1, user_api="blas"):
        metrics_loop = seconds(lambda: loop_metrics(x, contrast, flips)) * acts.sizes["layer"]
        probe_loop = seconds(lambda: loop_probe(x, contrast, flips[:, :PROBE_FLIPS])) * acts.sizes["layer"]
    layers, nodes = acts.sizes["layer"], acts.sizes["node"]
    print(
        f"{options.persona}, {len(contrast.h1)} pairs, {layers} layers of {nodes} nodes; the loop is timed at one layer"
    )
    print(f"{'':24} {'divergence':>10} {'budget':>7} {'loop':>8} {'ratio':>6}")
    print(f"{'without the probe':24} {without:9.1f}s {BUDGET:6.0f}s {metrics_loop:7.0f}s {metrics_loop / without:6.1f}")
    loop = metrics_loop + probe_loop
    print(f"{'with probe and 20 flips':24} {probed:9.1f}s {PROBE_BUDGET:6.0f}s {loop:7.0f}s {loop / probed:6.1f}")


if __name__ == "__main__":
    main()
