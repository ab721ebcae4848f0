"""What an intervention costs: how well the model still predicts neutral text and answers questions under it."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from utils.causal.effects import CLEAN
from utils.causal.interventions import Intervention
from utils.causal.plan import Cell, Replacements, first_checks, make_intervention
from utils.causal.scoring import score_interventions
from utils.causal.settings import CausalConfig, Check
from utils.intervals import interval, resample_weights
from utils.models.load import LanguageModel
from utils.nodes.scans import LayerNodes
from utils.responses.evaluation import neutral_texts
from utils.responses.measures import question_readout, text_readout
from utils.statements.questions import draw_questions, load_questions


def measure_costs(
    lm: LanguageModel,
    cells: Sequence[Cell],
    found: LayerNodes,
    replacements: Callable[[Check], Replacements],
    config: CausalConfig,
    *,
    n_bootstrap: int = 2000,
    progress: bool = True,
) -> pd.DataFrame:
    """Perplexity on neutral texts and accuracy on questions under every cell of the first check of each mode.

    All tokens but the first are changed, whatever the scope of the check.

    Parameters
    ----------
    cells
        At one layer; those of other checks are left out.
    replacements
        What nodes are overwritten with under a check; only means can be used on other texts, so that ``resample`` and
        ``patch`` are left out.

    Returns
    -------
    DataFrame
        One row a mode and selector, random sets together: ``mode, strength, selector, n_sets``; ``perplexity`` and
        ``perplexity_ratio`` to the model as it is, ``accuracy`` and ``accuracy_change``, both changes with ``_low`` and
        ``_high`` (95 %, bootstrap over texts and questions). The model as it is has a row of selector ``none``.
    """
    questions = draw_questions(load_questions(), config.n_cost, rng=config.seed)
    texts = text_readout(lm.tokenizer, neutral_texts(questions))
    asked = question_readout(lm.tokenizer, questions)
    kept = [cell for cell in cells if cell.check in first_checks(config) and cell.check.mode in ("steer", "ablate")]
    changes = [Intervention(found.layer)]
    changes += [make_intervention(cell, found, lambda: replacements(cell.check)) for cell in kept]  # noqa: B023
    options = {"scope": "all", "progress": progress}
    likelihood = score_interventions(lm, texts, changes, name="neutral texts", **options)
    correct = score_interventions(lm, asked, changes, name="questions", **options)
    labels = pd.DataFrame(
        [("", 0.0, CLEAN), *((cell.check.mode, cell.strength, cell.selector) for cell in kept)],
        columns=["mode", "strength", "selector"],
    )
    weights = resample_weights(len(questions), n_bootstrap, config.seed)
    rows = []
    for (mode, strength, selector), group in labels.groupby(["mode", "strength", "selector"], sort=False):
        at = group.index.to_numpy()
        change, low, high = _compare(correct[at].mean(0) - correct[0], np.ones(len(questions)), weights)
        loss, loss_low, loss_high = _compare(likelihood[0] - likelihood[at].mean(0), texts.n_read, weights)
        rows.append(
            {
                "mode": mode,
                "strength": strength,
                "selector": selector,
                "n_sets": len(at),
                "perplexity": np.exp(-likelihood[at].mean(0).sum() / texts.n_read.sum()),
                "perplexity_ratio": np.exp(loss),
                "perplexity_ratio_low": np.exp(loss_low),
                "perplexity_ratio_high": np.exp(loss_high),
                "accuracy": correct[at].mean(),
                "accuracy_change": change,
                "accuracy_change_low": low,
                "accuracy_change_high": high,
            }
        )
    return pd.DataFrame(rows)


def _compare(values: np.ndarray, sizes: np.ndarray, weights: np.ndarray) -> tuple[float, float, float]:
    """Sum of values over sum of sizes, with its interval."""
    low, high = interval(weights @ values / (weights @ sizes))
    return float(values.sum() / sizes.sum()), float(low), float(high)
