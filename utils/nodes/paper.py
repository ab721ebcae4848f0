"""The scan as Cintas et al. 2025 (arXiv 2505.24539) ran it, to be shown beside the tests: descriptive, and no test.

One fixed background, 25 clean and 25 anomalous records a run, Higher Criticism on the lower ends of left-tail p-values,
one restart, and the union of the nodes that any run chose. Its nodes need no effect: clean records alone fill such a
union, which is why their number is given, too.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float
from tqdm.auto import tqdm

from deepscan import Background, scan
from utils.statements.contrasts import Contrast

_SCANNED = 25


def paper_scans(
    values: Float[np.ndarray, "statements nodes"],
    contrasts: Sequence[Contrast],
    *,
    n_runs: int = 100,
    rng: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Scan every persona by the paper's protocol.

    Half of the H0 statements are the background of all runs, the other half the clean pool; with fewer than 50 H0 or 25 H1
    statements a run takes as many as there are.

    Returns
    -------
    DataFrame
        One row a persona: ``persona, n_background, n_clean, n_anomalous, score, precision, recall`` (means over runs; spread
        over runs is not an interval, as they share records), ``union_nodes``, nodes that any run chose, and
        ``clean_union_nodes``, the same with clean records in the place of the anomalous ones.
    """
    rows = []
    for i, contrast in enumerate(tqdm(contrasts, desc="paper's protocol", unit="persona", disable=not progress)):
        generator = np.random.default_rng([rng, i])
        order = generator.permutation(len(contrast.h0))
        background = Background(values[contrast.h0[order[: len(order) // 2]]])
        clean = values[contrast.h0[order[len(order) // 2 :]]]
        anomalous = values[contrast.h1]
        p_clean, p_anomalous = (background.pvalues(x, tail="left").lower for x in (clean, anomalous))
        n_clean, n_anomalous = min(_SCANNED, len(clean)), min(_SCANNED, len(anomalous))
        found, union, clean_union = [], set(), set()
        for _ in range(n_runs):
            drawn = [generator.permutation(len(p))[:n] for p, n in ((p_clean, n_clean), (p_anomalous, n_anomalous))]
            result = _scan(np.concatenate([p_clean[drawn[0]], p_anomalous[drawn[1]]]))
            hits = int((result.records >= n_clean).sum())
            found.append((result.score, hits / max(len(result.records), 1), hits / n_anomalous))
            union |= set(result.nodes.tolist())
            clean_union |= set(_scan(p_clean[drawn[0]]).nodes.tolist())
        score, precision, recall = np.mean(found, axis=0)
        row = {"persona": contrast.persona, "n_background": len(contrast.h0) // 2, "n_clean": n_clean}
        row |= {"n_anomalous": n_anomalous, "score": score, "precision": precision, "recall": recall}
        rows.append(row | {"union_nodes": len(union), "clean_union_nodes": len(clean_union)})
    return pd.DataFrame(rows)


def _scan(p: np.ndarray):
    return scan(p, score="hc", alpha_max=0.5, alphas=50, restarts=1, rng=0)
