"""Node sets by simpler methods than the scan, on the same statements, and how far they agree with it."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Shaped
from scipy.stats import false_discovery_control, ttest_ind, ttest_rel

from deepscan import Labels, ScanRuns, label_records, permute_labels
from utils.layers.probes import fit_probe, principal_rows
from utils.nodes.sets import NodeSet, compare_sets, node_sets, null_sets, top_nodes
from utils.options import SelectorName
from utils.statements.contrasts import Contrast

SELECTORS: tuple[SelectorName, ...] = ("mean-difference", "t-test", "probe")


def select_nodes(
    h0: Float[np.ndarray, "h0 nodes"],
    h1: Float[np.ndarray, "h1 nodes"],
    *,
    method: SelectorName,
    n: int | None = None,
    pairs: Shaped[np.ndarray, " records"] | Sequence | None = None,
    level: float = 0.05,
) -> NodeSet:
    """Select nodes in which two sets of activations differ, one node at a time or by a linear probe.

    Parameters
    ----------
    h0, h1
        Activations under H0 and under the alternative.
    method
        ``mean-difference``: largest ``|mean(h1) - mean(h0)|`` in units of the pooled within-side standard deviation
        (Cohen's d, also with pairs). ``t-test``: smallest p-value of a two-sided t-test, paired with pairs and Welch's
        without, of those that pass ``level``. ``probe``: largest ``|weight|`` of the L2-penalised logistic regression of
        :mod:`utils.layers.probes`, fitted on all statements; the nodes are standardised, so that weights are comparable.
    n
        How many nodes at most; ties go to the lower node. Only the t-test does without.
    pairs
        As of :func:`deepscan.detect`.
    level
        Of the t-test: share of false nodes that is accepted among those selected (Benjamini–Hochberg over the nodes);
        1 for no limit.

    Returns
    -------
    NodeSet
        ``(node, sign)``, the sign +1 where H1 lies above H0. A node without any difference is never selected.

    Raises
    ------
    ValueError
        An unknown method, no ``n`` where one is needed, different nodes, fewer than two statements a side, or
        incomplete pairs.
    """
    _check(h0, h1, method, n, level)
    labels = label_records(len(h0), len(h1), pairs)
    strength = _score(np.concatenate([h0, h1]).astype(np.float64), labels, method, level)
    return top_nodes(np.abs(strength), np.sign(strength).astype(int), h0.shape[1] if n is None else n)


def compare_selectors(
    runs: Mapping[str, ScanRuns],
    values: Float[np.ndarray, "statements nodes"],
    contrasts: Sequence[Contrast],
    *,
    threshold: float = 0.5,
    level: float = 0.05,
    n_flips: int = 50,
) -> pd.DataFrame:
    """Compare the scan's node set of every persona with equally large sets by simpler methods.

    All methods read the same statements and so the same accidents of them, and may agree beyond chance where there is
    no effect. Agreement says how alike the methods are, not that the nodes are right; ``expected_jaccard`` is what it
    amounts to without an effect.

    Parameters
    ----------
    runs
        Scans by persona.
    values
        Activations at the layer that was scanned.
    contrasts
        What was scanned.
    threshold, level
        Of the scan's node sets, as of :func:`utils.nodes.node_sets`; ``level`` also of ``n_significant``.
    n_flips
        How many of the scans' permutations to repeat with the simple methods.

    Returns
    -------
    DataFrame
        One row a persona and method: ``persona, method, size, shared, jaccard, overlap_coefficient`` over (node, sign);
        ``same_sign``, the share of the nodes in both sets that have the same side in both; ``hypergeometric``
        (expected ``shared`` were both sets drawn at random; a reference, not a test); ``expected_jaccard``, the mean over
        permutations that gave a node set, with sides flipped alike for scan and method, NaN without permutations; and
        ``n_significant``, how many nodes a t-test at each node finds at ``level`` (Benjamini–Hochberg), for comparison
        with ``size``. Ratios of empty sets are NaN.

    Raises
    ------
    ValueError
        A persona without its contrast, or runs of other statements.
    """
    by_persona = {contrast.persona: contrast for contrast in contrasts}
    for persona, scanned in runs.items():
        _check_scanned(persona, scanned, by_persona.get(persona))
    rows = []
    for persona, held in node_sets(runs, threshold=threshold, level=level).items():
        contrast = by_persona[persona]
        x, labels = values[contrast.rows].astype(np.float64), _label(contrast)
        null = _flip(labels, runs[persona], threshold, level, n_flips)
        n_significant = int((_score(x, labels, "t-test", level) != 0).sum())
        for method in SELECTORS:
            expected = [compare_sets(other, _select(x, each, method, len(other)))["jaccard"] for each, other in null]
            rows.append(
                {
                    "persona": persona,
                    "method": method,
                    **_agree(held, _select(x, labels, method, len(held)), x.shape[1]),
                    "expected_jaccard": float(np.mean(expected)) if expected else float("nan"),
                    "n_significant": n_significant,
                }
            )
    return pd.DataFrame(rows)


def _check(h0: np.ndarray, h1: np.ndarray, method: SelectorName, n: int | None, level: float) -> None:
    if method not in SELECTORS:
        raise ValueError(f"unknown method {method!r}; expected {', '.join(SELECTORS[:-1])} or {SELECTORS[-1]}.")
    if n is None and method != "t-test":
        raise ValueError(f"method {method!r} ranks all nodes; say with n how many to take.")
    if n is not None and n < 0:
        raise ValueError(f"n must be at least 0, not {n}.")
    if not 0 < level <= 1:
        raise ValueError(f"level must be in (0, 1], not {level}: it is a share of the nodes selected.")
    if h0.shape[1] != h1.shape[1]:
        raise ValueError(f"h1 has {h1.shape[1]} nodes and h0 {h0.shape[1]}; expected the same nodes in both.")
    if min(len(h0), len(h1)) < 2:
        raise ValueError(f"h0 has {len(h0)} and h1 {len(h1)} statements; at least 2 of each are needed for a spread.")


def _label(contrast: Contrast) -> Labels:
    n0, n1 = len(contrast.h0), len(contrast.h1)
    return label_records(n0, n1, np.arange(n0) if contrast.paired else None)


def _select(x: np.ndarray, labels: Labels, method: SelectorName, n: int) -> NodeSet:
    strength = _score(x, labels, method, 1.0)
    return top_nodes(np.abs(strength), np.sign(strength).astype(int), n)


def _score(x: np.ndarray, labels: Labels, method: SelectorName, level: float) -> np.ndarray:
    """How strongly each node differs, positive where H1 lies above; 0 where it does not, or does not pass a test."""
    h0, h1 = x[labels.h0], x[labels.h1]
    if method == "probe":
        score = _probe_weights(np.concatenate([h0, h1]), np.repeat([False, True], [len(h0), len(h1)]))
    elif method == "t-test":
        score = _rank_tests(h0, h1, labels.paired, level)
    else:
        score = _standardise(h0, h1)
    return np.where(np.ptp(x, axis=0) > 0, score, 0.0)


def _standardise(h0: np.ndarray, h1: np.ndarray) -> np.ndarray:
    difference = h1.mean(axis=0) - h0.mean(axis=0)
    squares = len(h0) * h0.var(axis=0) + len(h1) * h1.var(axis=0)
    spread = np.sqrt(squares / (len(h0) + len(h1) - 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        # Without spread inside the sides, a node that differs tells them apart completely.
        return np.where(difference != 0, difference / spread, 0.0)


def _rank_tests(h0: np.ndarray, h1: np.ndarray, paired: bool, level: float) -> np.ndarray:
    """Signed ranks, the largest for the smallest p-value; p-values themselves reach 0 and would tie."""
    # Nodes that differ by the same in all pairs make SciPy warn; they come out right, as infinite.
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        test: Any = ttest_rel(h1, h0) if paired else ttest_ind(h1, h0, equal_var=False)
    t, p = np.nan_to_num(test.statistic, nan=0.0, posinf=np.inf, neginf=-np.inf), np.nan_to_num(test.pvalue, nan=1.0)
    rank = np.empty(len(t))
    rank[np.lexsort((-np.abs(t), p))] = np.arange(len(t), 0, -1)
    return np.sign(t) * rank * (false_discovery_control(p) <= level)


def _probe_weights(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Weights over the standardised nodes of the probe of :mod:`utils.layers.probes`, fitted on principal axes as there."""
    rows, axes = principal_rows(x)
    return fit_probe(rows, labels).coef_[0] @ axes


def _check_scanned(persona: str, runs: ScanRuns, contrast: Contrast | None) -> None:
    if contrast is None:
        raise ValueError(f"there is no contrast of {persona!r}; give the contrasts that were scanned.")
    sizes = [len(contrast.h0), len(contrast.h1)]
    if runs.config["sizes"] != sizes or runs.config["paired"] != contrast.paired:
        raise ValueError(
            f"the runs of {persona!r} scanned {runs.config['sizes']} H0 and H1 statements and its contrast has {sizes}; "
            "give the contrasts that were scanned."
        )


def _flip(labels: Labels, runs: ScanRuns, threshold: float, level: float, n_flips: int) -> list[tuple[Labels, NodeSet]]:
    """The labels of a scan's first permutations and its node sets under them, empty sets left out."""
    if not runs.config["n_permutations"]:
        return []
    sets = null_sets(runs, threshold=threshold, level=level)[:n_flips]
    return [(permute_labels(labels, runs.config["seed"], k), held) for k, held in enumerate(sets) if held]


def _agree(scanned: NodeSet, other: NodeSet, n_nodes: int) -> dict[str, float]:
    both = {node for node, _ in scanned} & {node for node, _ in other}
    compared = compare_sets(scanned, other)
    return {
        "size": len(scanned),
        **{name: compared[name] for name in ("shared", "jaccard", "overlap_coefficient")},
        "same_sign": compared["shared"] / len(both) if both else float("nan"),
        "hypergeometric": len(scanned) * len(other) / (2 * n_nodes),
    }
