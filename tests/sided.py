"""Activations of pairs whose sides lie apart along known nodes, and random vectors for a model."""

import numpy as np
import xarray as xr

from utils.vectors.fit import PersonaVectors


def make_acts(n=30, width=12, layers=(0, 1, 2), personas=("a", "b"), effect=2.0, seed=0, paired=True):
    """Pairs whose sides differ along one node a persona, at layers above 0."""
    generator = np.random.default_rng(seed)
    rows = [(p, s, i) for p in personas for s in ("positive", "negative") for i in range(n)]
    subject = {(p, i): generator.normal(size=width) for p in personas for i in range(n)}
    values = np.stack([[subject[p, i] + 0.5 * generator.normal(size=width) for p, s, i in rows] for _ in layers])
    for place, (p, s, _) in enumerate(rows):
        side = 1 if s == "positive" else -1
        values[1:, place, personas.index(p)] += side * effect / 2
    names = np.array([f"{p}-{i}-{s[0]}" for p, s, i in rows])
    coords = {
        "layer": list(layers),
        "statement": names,
        "persona": ("statement", np.array([p for p, _, _ in rows])),
        "topic": ("statement", np.array(["t" for _ in rows])),
        "direction": ("statement", np.array([s for _, s, _ in rows])),
        "pair": ("statement", np.array([f"{p}-{i}" if paired else "" for p, _, i in rows])),
        "text": ("statement", names),
    }
    attrs = {"model": "made up", "fingerprint": "f00", "component": "resid"}
    return xr.DataArray(values.astype(np.float32), coords, ("layer", "statement", "node"), attrs=attrs)


def make_vectors(lm, personas=("warm", "terse"), seed=0):
    generator = np.random.default_rng(seed)
    layers = tuple(range(lm.n_layers + 1))
    values = generator.normal(size=(len(layers), len(personas), lm.d_model)).astype(np.float32)
    norms = np.full(len(layers), 3.0, np.float32)
    return PersonaVectors(values, layers, personas, norms, {"fingerprint": lm.fingerprint, "model": lm.name})
