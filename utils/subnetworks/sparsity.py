"""Which pairs a mask is made from, chosen on and measured on; null masks; and the sweep over sparsities."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from utils.models.language_model import LanguageModel
from utils.options import MaskGroup, MaskScope, MaskScore, Side
from utils.responses.evaluation import Condition, evaluate, summarise
from utils.subnetworks.build import persona_mask
from utils.subnetworks.calibration import Calibration


def sweep_sparsity(
    lm: LanguageModel,
    calibration: Calibration,
    statements: pd.DataFrame,
    texts: Sequence[str],
    *,
    sparsities: Sequence[float] = (0.1, 0.2, 0.3, 0.5, 0.7),
    scores: Sequence[MaskScore] = ("wanda", "softplus"),
    side: Side = "positive",
    group: MaskGroup = "row",
    scope: MaskScope = "all",
    layers: Sequence[int] | None = None,
    tau: float = 1.0,
    rng: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure masks of growing sparsity on the ``select`` pairs.

    Parameters
    ----------
    statements, texts
        Select pairs, and neutral texts that the result is not reported on.
    side, group, scope, layers, tau, rng
        As of :func:`utils.subnetworks.persona_mask`.

    Returns
    -------
    DataFrame
        Rows of :func:`utils.responses.summarise` for ``likelihood`` and ``perplexity``, with ``score`` and
        ``sparsity``; sparsity 0 is the dense model.
    """
    measured = [evaluate(lm, [Condition("dense")], statements, preferences=["likelihood"], texts=texts, progress=False)]
    cells: list[tuple[MaskScore, float]] = [(score, sparsity) for score in scores for sparsity in sparsities]
    options: dict[str, Any] = {"side": side, "group": group, "scope": scope, "layers": layers, "tau": tau, "rng": rng}
    for score, sparsity in tqdm(cells, desc="sparsity", disable=not progress):
        mask = persona_mask(lm, calibration, sparsity=sparsity, score=score, progress=False, **options)
        condition = Condition(f"{score} {sparsity}", mask)
        measured.append(evaluate(lm, [condition], statements, preferences=["likelihood"], texts=texts, progress=False))
    table = summarise(pd.concat(measured, ignore_index=True), baseline="dense", rng=rng)
    table = table[table["measure"].isin(["likelihood", "perplexity"])]
    keys = pd.DataFrame(
        [("dense", score, 0.0) for score in scores] + [(f"{score} {s}", score, s) for score, s in cells],
        columns=["condition", "score", "sparsity"],
    )
    return keys.merge(table, on="condition")


def choose_sparsity(table: pd.DataFrame, *, score: MaskScore, most_perplexity: float = 1.5) -> float:
    """The sparsity of a score at which the preference is largest, of those that keep the perplexity within a limit.

    Parameters
    ----------
    table
        Of :func:`sweep_sparsity`.
    most_perplexity
        As a multiple of the dense model's.

    Raises
    ------
    ValueError
        No sparsity stays within the limit.
    """
    own = table[(table["score"] == score) & (table["sparsity"] > 0)]
    wide = own.pivot(index="sparsity", columns="measure", values=["estimate", "change"])
    allowed = wide[wide[("change", "perplexity")] <= most_perplexity]
    if not len(allowed):
        raise ValueError(
            f"no sparsity of score {score!r} keeps the perplexity within {most_perplexity} times the dense model's; "
            "try smaller sparsities or a higher limit."
        )
    best = allowed[("estimate", "likelihood")].to_numpy().argmax()
    return float(allowed.index.to_numpy()[best])
