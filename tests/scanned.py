"""Activations with a planted effect, and a first setting of the explorer for them."""

import numpy as np
import xarray as xr

from utils.explorer import Setting

N_PAIRS, N_NODES, PLANTED = 40, 60, [3, 7, 11, 20]
SMALL = {"n_clean": 6, "n_anomalous": 6, "n_runs": 4, "n_permutations": 3}
START = Setting("openness", 2, part="test", **SMALL)


def make_acts(*, n_pairs=N_PAIRS, paired=True, n_nodes=N_NODES, personas=("openness", "a <b> & 'c'"), shift=4.0):
    """Noise; in the positive statements of the first persona, four nodes move at layer 2. Layer 0 is constant."""
    rng = np.random.default_rng(0)
    n = 2 * n_pairs * len(personas)
    persona = np.repeat(personas, 2 * n_pairs)
    positive = np.tile([True, False], n // 2)
    values = rng.normal(size=(4, n, n_nodes)).astype(np.float32)
    values[0] = 1.0
    moved = np.flatnonzero(positive & (persona == personas[0]))
    values[2][np.ix_(moved, PLANTED)] += shift * np.array([1, 1, -1, -1])
    labels = {
        "persona": persona,
        "topic": np.full(n, "personality"),
        "direction": np.where(positive, "positive", "negative"),
        "pair": [f"{name}-{i // 2:03d}" if paired else "" for i, name in enumerate(persona)],
    }
    coords = {name: ("statement", label) for name, label in labels.items()}
    coords |= {"layer": np.arange(4), "statement": [f"s{i}" for i in range(n)]}
    return xr.DataArray(values, dims=("layer", "statement", "node"), coords=coords)
