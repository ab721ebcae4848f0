"""Runs in the text format of the original DeepScan, with a planted part of the nodes."""

from pathlib import Path

import numpy as np


def write_runs(
    path: Path, *, n_runs: int = 20, n_nodes: int = 200, size: int = 30, planted=(), seed: int = 0, clean: bool = False,
    n: int = 8, shift: float = 0.0,
) -> Path:  # fmt: skip
    """``n`` clean and ``n`` anomalous records a run, the clean first; ``planted`` nodes are in every run's ``size``."""
    rng = np.random.default_rng(seed)
    others = np.setdiff1d(np.arange(n_nodes), planted)
    lines = []
    for _ in range(n_runs):
        nodes = [*planted, *rng.choice(others, size - len(planted), replace=False).tolist()]
        records = rng.permutation(2 * n)[: rng.integers(2, 2 * n)]
        hits = int((records >= n).sum())
        shares = "None None" if clean else f"{hits / records.size} {hits / n}"
        listed = [",".join(map(str, rng.permutation(values))) for values in (nodes, records)]
        lines.append(f"{rng.normal(10 + shift)} {shares} {records.size} {len(nodes)} 0.05 {' '.join(listed)}\n")
    path.write_text("".join(lines))
    return path
