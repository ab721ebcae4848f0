"""How far the personas of a topic lie apart from each other at each layer."""

import numpy as np
import pandas as pd
import xarray as xr
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from utils.intervals import describe, describe_nothing
from utils.layers.clusters import CLASS_METRICS, class_metrics, gram_matrix, stack_members
from utils.layers.probes import ProbePlan, class_probe_scores, plan_probes
from utils.layers.separation import SMALLEST_SIDE
from utils.statements.names import find_names


def topic_divergence(
    acts: xr.DataArray,
    *,
    topic: str | None = None,
    probe: bool = True,
    n_permutations: int = 100,
    probe_permutations: int = 20,
    rng: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure, per topic and layer, how far the positive statements of its personas lie apart.

    Parameters
    ----------
    acts
        (layer, statement, node), as :func:`utils.activations.extract` returns it.
    topic
        Only this one; by default every topic of at least two personas.
    probe
        Also fit a multinomial linear probe, cross-validated by statement.
    n_permutations
        Permutations of the personas over the statements for the baseline of the cluster metrics; at least 20.
    probe_permutations
        The same for the probe, each a cross-validation of its own, which takes nearly all of the time (minutes a topic); 0
        leaves its columns out.

    Returns
    -------
    DataFrame
        One row a topic and layer: ``topic, layer, n_personas, n_statements, chance`` (one over the number of personas)
        and ``silhouette, calinski_harabasz, davies_bouldin, probe_accuracy`` (balanced over the personas), each
        with the columns that :func:`utils.layers.divergence` gives it. Every statement is a unit of its own in
        jackknife, folds, resamples and permutations: positive statements have no counterpart among those of
        another persona. A layer where all statements have the same activation is NaN.

    Raises
    ------
    ValueError
        An unknown topic, one of a single persona, a persona with fewer than 5 positive statements, too few permutations.
    """
    if n_permutations < 20 or probe_permutations < 0 or 0 < probe_permutations < 20:
        raise ValueError(
            f"a 5th and 95th percentile need at least 20 permutations (or 0 for the probe), not {n_permutations} and "
            f"{probe_permutations}."
        )
    sides = _select_topics(acts, topic)
    rows = []
    with (
        threadpool_limits(1, user_api="blas"),
        tqdm(total=len(sides) * acts.sizes["layer"], desc="topics", unit="layer", disable=not progress) as bar,
    ):
        for name, positions in sides.items():
            personas, classes = np.unique(acts["persona"].to_numpy()[positions], return_inverse=True)
            units, generator = np.arange(len(classes)), np.random.default_rng(rng)
            n_shuffled = max(n_permutations, probe_permutations)
            shuffled = np.stack([generator.permutation(classes) for _ in range(n_shuffled)], axis=1)
            members = stack_members(classes, units, shuffled[:, :n_permutations])
            plan = plan_probes(classes, units, shuffled=shuffled[:, :probe_permutations], rng=rng) if probe else None
            for layer, x in zip(acts["layer"].to_numpy(), acts.isel(statement=positions).to_numpy(), strict=True):
                row = {"topic": name, "layer": int(layer), "n_personas": len(personas), "n_statements": len(classes)}
                row["chance"] = 1 / len(personas)
                rows.append(row | _measure(x.astype(np.float64), members, plan))
                bar.update()
    return pd.DataFrame(rows)


def _measure(x: np.ndarray, members: np.ndarray, plan: ProbePlan | None) -> dict[str, float]:
    if not np.ptp(x, axis=0).max() > 0:
        nothing = describe_nothing(CLASS_METRICS, shuffled=True)
        return nothing | (describe_nothing(["probe_accuracy"], shuffled=plan.labels.shape[1] > 1) if plan else {})
    row = {}
    for name, values in class_metrics(gram_matrix(x), members).items():
        row |= describe(name, values, len(x))
    return row | (class_probe_scores(x, plan) if plan else {})


def _select_topics(acts: xr.DataArray, topic: str | None) -> dict[str, np.ndarray]:
    """Positions of the positive statements of each topic asked for."""
    labels = pd.DataFrame({name: acts[name].to_numpy() for name in ("persona", "topic", "direction")})
    positive = labels[labels["direction"] == "positive"]
    if topic is not None:
        (topic,) = find_names("topic", [topic], labels["topic"].unique())
        positive = positive[positive["topic"] == topic]
    sides = {}
    for name, own in positive.groupby("topic", sort=False):
        counts = own["persona"].value_counts()
        if len(counts) < 2 and topic is None:
            continue
        if len(counts) < 2:
            raise ValueError(f"topic {name!r} has positive statements of one persona only; at least two are compared.")
        if counts.min() < SMALLEST_SIDE:
            raise ValueError(
                f"persona {counts.idxmin()!r} has {counts.min()} positive statements; at least {SMALLEST_SIDE} are needed."
            )
        sides[str(name)] = own.index.to_numpy()
    if not sides:
        raise ValueError("no topic has positive statements of at least two personas; there is nothing to compare.")
    return sides
