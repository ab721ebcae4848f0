"""Activations of made-up statements, with or without an effect, labelled as ``extract`` labels them."""

import numpy as np
import xarray as xr


def make_acts(values, *, paired=True, n_h1=None, persona="a", topic="t", first_layer=0):
    """Activations (layer, statement, node) with labels: H1 (positive) statements before H0 (negative)."""
    n_layers, n, _ = values.shape
    n_h1 = n // 2 if n_h1 is None else n_h1
    pair = [f"{persona}{i}" if paired else "" for i in [*range(n_h1), *range(n - n_h1)]]
    columns = {
        "persona": [persona] * n,
        "topic": [topic] * n,
        "direction": ["positive"] * n_h1 + ["negative"] * (n - n_h1),
        "pair": pair,
    }
    coords = {name: ("statement", np.array(column)) for name, column in columns.items()}
    coords |= {"statement": [f"{persona}-{i}" for i in range(n)], "layer": np.arange(n_layers) + first_layer}
    return xr.DataArray(values, dims=("layer", "statement", "node"), coords=coords)


def draw_pairs(rng, n_pairs, d, *, effect=0.0, shared=1.0):
    """Pairs that share a subject, H1 before H0, moved apart along the first node; (1, 2 * n_pairs, d)."""
    subject = shared * rng.normal(size=(n_pairs, d))
    x = np.concatenate([subject, subject]) + rng.normal(size=(2 * n_pairs, d))
    x[:n_pairs, 0] += effect
    return x[None]


def draw_layers(rng, n_pairs, d, effects, *, kept=0.9):
    """One layer an effect, each keeping most of the one before; (layer, 2 * n_pairs, d)."""
    x = draw_pairs(rng, n_pairs, d)[0]
    layers = []
    for effect in effects:
        x = kept * x + np.sqrt(2 * (1 - kept**2)) * rng.normal(size=x.shape)
        layers.append(x.copy())
        layers[-1][:n_pairs, 0] += effect
    return np.stack(layers)
