"""Personality subnetworks: which weights a persona's statements lean on, without any training (arXiv 2602.07164).

From the moments of a calibration, masks keep the best (1 − sparsity) of the weights; what they are worth is measured in
:mod:`utils.responses.evaluation`.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from tqdm.auto import tqdm

from utils.models.components import check_layers
from utils.models.language_model import LanguageModel
from utils.options import MaskGroup, MaskScope, MaskScore, Side
from utils.subnetworks.calibration import SIDES, Calibration, calibrate, calibrate_labellings
from utils.subnetworks.linears import Linear
from utils.subnetworks.masks import PersonaMask
from utils.subnetworks.pruning import pack, unpack
from utils.subnetworks.selection import Block, ScoreRule, check_sparsity, input_weights, keep_all, keep_count, keep_rows

__all__ = ["Calibration", "PersonaMask", "calibrate", "calibrate_labellings", "contrastive_masks", "persona_mask"]

_BLOCK = 1 << 18  # weights


def persona_mask(
    lm: LanguageModel,
    calibration: Calibration,
    *,
    sparsity: float = 0.5,
    score: MaskScore = "wanda",
    side: Side = "positive",
    group: MaskGroup = "row",
    scope: MaskScope = "all",
    layers: Sequence[int] | None = None,
    tau: float = 1.0,
    length_normalised: bool = True,
    rng: int = 0,
    progress: bool = True,
) -> PersonaMask:
    """Keep the weights that count most for one side.

    Parameters
    ----------
    lm, calibration
        The model, unmasked, and :func:`utils.subnetworks.calibrate` of it.
    sparsity
        Share of the weights that is cut, in [0, 1). (1 − sparsity)·n, rounded down, are kept.
    score
        ``magnitude``, ``random``, ``wanda``, ``relu``, ``softplus`` or ``disjoint``, see
        :mod:`utils.subnetworks.selection`. Ties, scores of 0 among them, go by |W| times the root mean square of the input on
        the side's own tokens, and then to the first.
    group
        Among which weights the best are kept: each output ``row``, each linear ``layer``, or all of them (``global``).
    scope, layers
        As of :func:`utils.subnetworks.linears.find_linears`: other layers stay whole. A calibrated head belongs to ``all``.
    tau, length_normalised
        As of :class:`utils.subnetworks.selection.ScoreRule`.
    rng
        Seed of ``random``.

    Raises
    ------
    ValueError
        Sparsity out of range, unknown names, or a calibration of another model.
    """
    rule = ScoreRule(score, side, tau, length_normalised)
    return _build(lm, calibration, rule, sparsity, group, scope, layers, rng, progress)


def contrastive_masks(
    lm: LanguageModel,
    calibration: Calibration,
    *,
    sparsity: float = 0.5,
    score: MaskScore = "softplus",
    group: MaskGroup = "row",
    scope: MaskScope = "all",
    layers: Sequence[int] | None = None,
    tau: float = 1.0,
    length_normalised: bool = True,
    rng: int = 0,
    progress: bool = True,
) -> tuple[PersonaMask, PersonaMask]:
    """Masks of the positive and of the negative side that are pulled apart.

    ``relu`` and ``softplus`` weigh inputs by the contrast of the sides, with opposite signs. With ``disjoint`` the
    negative side chooses, by the same score, among what the positive side left: no weight is kept by both. Arguments
    and errors as of :func:`persona_mask`; ``disjoint`` needs a sparsity of 0.5 or more.
    """
    if score == "disjoint" and 0 <= sparsity < 0.5:
        raise ValueError(f"masks that each keep {1 - sparsity:.0%} cannot be disjoint; use a sparsity of 0.5 or more.")
    rules = [ScoreRule(score, side, tau, length_normalised) for side in SIDES]
    first = _build(lm, calibration, rules[0], sparsity, group, scope, layers, rng, progress)
    taken = first.bits if score == "disjoint" else {}
    return first, _build(lm, calibration, rules[1], sparsity, group, scope, layers, rng, progress, taken)


def _build(
    lm: LanguageModel,
    calibration: Calibration,
    rule: ScoreRule,
    sparsity: float,
    group: MaskGroup,
    scope: MaskScope,
    layers: Sequence[int] | None,
    rng: int,
    progress: bool,
    taken: Mapping[Linear, np.ndarray] | None = None,
) -> PersonaMask:
    check_sparsity(sparsity)
    if group not in ("row", "layer", "global"):
        raise ValueError(f"unknown group {group!r}; expected row, layer or global.")
    if lm.fingerprint != calibration.config["fingerprint"]:
        raise ValueError(
            f"the calibration is of {calibration.config['model']} in {calibration.config['dtype']}, and not of {lm.name} in "
            f"{str(lm.dtype).removeprefix('torch.')} as it is now; load the model as it was then, or calibrate anew."
        )
    linears = _choose(lm, calibration, scope, layers)
    sources = {linear: _Scores(lm, calibration, linear, rule, rng, (taken or {}).get(linear)) for linear in linears}
    with tqdm(total=len(linears), desc=f"{rule.score} mask", unit="layer", disable=not progress) as bar:
        bits = {}
        for linear, kept in _select(sources, sparsity, group):
            bits[linear] = pack(iter(kept))
            bar.update()
    config = {
        **calibration.config,
        "score": rule.score,
        "side": rule.side,
        "sparsity": sparsity,
        "group": group,
        "scope": scope,
        "layers": sorted({linear.layer for linear in linears}),
        "tau": rule.tau,
        "length_normalised": rule.length_normalised,
        "seed": rng,
        "n_statements": dict(calibration.n_statements),
        "n_tokens": dict(calibration.n_tokens),
    }
    return PersonaMask(bits, config, calibration.seen)


def _select(
    sources: Mapping[Linear, "_Scores"], sparsity: float, group: MaskGroup
) -> Iterator[tuple[Linear, list[torch.Tensor]]]:
    """The kept weights of every layer, as blocks of rows."""
    if group == "global":
        n = sum(linear.shape[0] * linear.shape[1] for linear in sources)
        chosen = keep_all(lambda: (block for source in sources.values() for block in source()), keep_count(n, sparsity))
        for linear, source in sources.items():
            yield linear, [next(chosen) for _ in range(source.n_blocks)]
        return
    for linear, source in sources.items():
        if group == "row":
            yield linear, [keep_rows(*block, keep_count(linear.shape[1], sparsity)) for block in source()]
        else:
            scores, seconds = (torch.cat(parts).reshape(1, -1) for parts in zip(*source(), strict=True))
            yield linear, [keep_rows(scores, seconds, keep_count(scores.shape[1], sparsity))]


class _Scores:
    """The scores of a layer's weights and what breaks their ties, some rows at a time."""

    def __init__(
        self,
        lm: LanguageModel,
        calibration: Calibration,
        linear: Linear,
        rule: ScoreRule,
        rng: int,
        taken: np.ndarray | None,
    ):
        self.lm, self.linear, self.taken = lm, linear, taken
        self.seed = [rng, zlib.crc32(linear.name.encode())] if rule.score == "random" else None
        self.weights = torch.from_numpy(input_weights(calibration, linear.name, rule))
        self.rms = torch.from_numpy(calibration.rms(rule.side, linear.name))
        self.n_rows = max(1, _BLOCK // linear.shape[1])

    @property
    def n_blocks(self) -> int:
        return -(-self.linear.shape[0] // self.n_rows)

    def __call__(self) -> Iterator[Block]:
        weight = self.linear.weight(self.lm)
        generator = np.random.default_rng(self.seed) if self.seed is not None else None
        free = None if self.taken is None else ~unpack(self.taken, self.linear.shape)
        # MPS has no float64.
        device = torch.device("cpu") if weight.device.type == "mps" else weight.device
        for first in range(0, len(weight), self.n_rows):
            size = weight[first : first + self.n_rows].to(device).double().abs()
            seconds = size * self.rms.to(device)
            scores = size * self.weights.to(device)
            if generator is not None:
                scores = torch.from_numpy(generator.random(tuple(size.shape))).to(device)
            if free is not None:
                allowed = free[first : first + self.n_rows].to(device)
                scores, seconds = scores.where(allowed, -1.0), seconds.where(allowed, -1.0)
            yield scores, seconds


def _choose(
    lm: LanguageModel, calibration: Calibration, scope: MaskScope, layers: Sequence[int] | None
) -> list[Linear]:
    if scope not in ("all", "attention", "mlp"):
        raise ValueError(f"unknown scope {scope!r}; expected all, attention or mlp.")
    chosen = None if layers is None else check_layers(lm, "mlp", layers)
    linears = [
        linear
        for linear in calibration.linears
        if scope in ("all", linear.part) and (chosen is None or linear.layer in chosen)
    ]
    if not linears:
        raise ValueError(
            f"the calibration has no linear layer of scope {scope!r} in layers {chosen or 'of the model'}."
        )
    return linears
