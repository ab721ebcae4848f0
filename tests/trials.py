"""What must hold of any model that is taken, each tried against transformers' own output; see ``zoo.py`` for models."""

import contextlib
from collections.abc import Callable

import numpy as np
import torch

from utils.activations.extraction import run_batch
from utils.models.components import component_layers, hook_component
from utils.models.forward import logits_at, share_prefix
from utils.models.language_model import LanguageModel
from utils.models.load import check_causal
from utils.models.prompts import Prompt
from utils.patching.alignment import Pair
from utils.patching.runs import Cell, run_cells, run_clean
from utils.responses.measures import Readout, score_prompts
from utils.subnetworks.linears import find_linears
from utils.subnetworks.masks import PersonaMask

_OPENING = tuple(range(40, 60))
PROMPTS = [
    Prompt((*_OPENING, *tokens), len(_OPENING), len(_OPENING) + len(tokens))
    for tokens in ((70, 71, 72), (80, 81, 82, 83, 84, 85, 86, 87), (90,))
]
BASE = Prompt((*_OPENING, 100, 101, 110, 111, 112), 20, 22)
SOURCE = Prompt((*_OPENING, 104, 105, 110, 111, 112), 20, 22)


def try_residuals(lm: LanguageModel) -> None:
    """Batched, padded and behind a shared prefix, they equal hidden_states of each prompt by itself."""
    layers = list(range(lm.n_layers + 1))
    found = run_batch(lm, PROMPTS, layers, position=("last", "mean"), prefix=share_prefix(lm, PROMPTS))
    for row, prompt in enumerate(PROMPTS):
        with torch.inference_mode():
            given = torch.tensor([prompt.ids])
            states = list(lm.model(input_ids=given, output_hidden_states=True, use_cache=False).hidden_states)
        if len(states) != len(layers):
            raise AssertionError(f"transformers returns {len(states)} states of {lm.n_layers} blocks")
        with torch.inference_mode():
            # Mamba's and RWKV's lists begin behind block 1, and hold the last layer before and after the norm.
            later = torch.equal(lm.final_norm(states[-2]), states[-1])
        for layer in layers[1:] if later else layers[:-1]:
            own = states[layer - 1 if later else layer][0]
            _equal(found[0, layer, row], own[-1], f"layer {layer}")
            _equal(found[1, layer, row], own[prompt.start : prompt.stop].mean(0), f"mean at layer {layer}")
        with torch.inference_mode():
            normed = lm.final_norm(torch.tensor(found[0, -1, row])[None, None])[0, 0]
        _equal(normed, states[-1][0, -1], "the last layer, normed,")


def try_sums(lm: LanguageModel) -> None:
    """What attention and MLP add is what the residual stream gains, in every block."""
    values = run_clean(lm, PROMPTS[1], ["resid", "attn", "mlp"]).values
    for layer in range(1, lm.n_layers + 1):
        parts = [values[name].get(layer) for name in ("attn", "mlp")]
        gain = sum((part for part in parts if part is not None), values["resid"][layer - 1].clone())
        _equal(gain, values["resid"][layer], f"the sum of block {layer}")


def try_heads(lm: LanguageModel) -> None:
    """One head's values are one part of what the attention adds: taken away singly, they take it all away."""
    layers = component_layers(lm, "heads")
    attns = run_clean(lm, PROMPTS[1], ["attn"]).values["attn"]
    kept: dict[int, torch.Tensor] = {}
    for layer in layers:

        def run(heads: list[int], layer: int = layer) -> torch.Tensor:
            def cut(_layer: int, value: torch.Tensor) -> torch.Tensor:
                changed = value.clone()
                changed[..., heads, :] = 0
                return changed

            with hook_component(lm, "heads", [layer], cut), _keep(lm, layer, kept):
                _logits(lm, PROMPTS[1])
            return kept[layer][0]

        whole, nothing = run([]), run(list(range(lm.n_heads)))
        _equal(whole, attns[layer], f"attention of block {layer}")
        if torch.allclose(whole, nothing):
            raise AssertionError(f"the heads of block {layer} do nothing")
        _equal(nothing, nothing[:1].expand_as(nothing), f"block {layer} without heads")


def try_likelihood(lm: LanguageModel) -> None:
    """Log-likelihoods behind a shared prefix equal those of a plain pass of each prompt."""

    def score(logits: torch.Tensor, place: int) -> float:
        prompt = PROMPTS[place]
        chosen = torch.tensor(prompt.ids[prompt.start : prompt.stop])
        return float(logits.log_softmax(-1).gather(1, chosen[:, None]).sum())

    spans = tuple((prompt.start, prompt.stop) for prompt in PROMPTS)
    found = score_prompts(lm, Readout(tuple(PROMPTS), score, spans), progress=False)
    for place, prompt in enumerate(PROMPTS):
        with torch.inference_mode():
            logits = lm.model(input_ids=torch.tensor([prompt.ids]), use_cache=False).logits[0]
        own = score(logits[prompt.start - 1 : prompt.stop - 1], place)
        _equal(torch.tensor(found[place]), torch.tensor(own), "a likelihood")


def try_patching(lm: LanguageModel) -> None:
    """Patches from the layer below, behind reused tokens, equal those put into whole passes."""
    try:
        clean = [run_clean(lm, prompt, ["resid", "mlp"]) for prompt in (BASE, SOURCE)]
    except ValueError:
        clean = [run_clean(lm, prompt, ["resid"]) for prompt in (BASE, SOURCE)]
    for row, run in enumerate(clean):
        with torch.inference_mode():
            own = lm.model(input_ids=torch.tensor([run.prompt.ids]), use_cache=False).logits[0, -1]
        _equal(run.logits, own, f"logits of run {row}")
    pair = Pair("pair", BASE, SOURCE)
    cells = [Cell("resid", layer, "persona") for layer in component_layers(lm, "resid")]
    cells += [Cell("mlp", layer, "last") for layer in clean[0].values.get("mlp", [])]
    base, source = clean
    found, _ = run_cells(lm, pair, base, source, cells, lambda logits: logits.double().numpy())
    for cell, logits in zip(cells, found, strict=True):
        to, taken = pair.places(cell.segment)

        def put(layer: int, value: torch.Tensor, cell: Cell = cell, to=to, taken=taken) -> torch.Tensor:
            changed = value.clone()
            changed[0, to] = clean[1].values[cell.component][layer][taken]
            return changed

        with hook_component(lm, cell.component, [cell.layer], put):
            _equal(logits, _logits(lm, BASE), f"patch of {cell.component} {cell.layer}")


def try_masks(lm: LanguageModel) -> None:
    """The scopes are parts of the whole; a mask does what zeros in the weights do, and leaves no trace."""
    every = find_linears(lm)
    parts = []
    for scope in ("attention", "mlp"):
        with contextlib.suppress(ValueError):
            parts += find_linears(lm, scope=scope)
    if {linear.name for linear in parts} != {linear.name for linear in every} or len(parts) != len(every):
        raise AssertionError("attention and MLP are not the parts of all")
    before = {name: weight.clone() for name, weight in lm.model.state_dict().items()}
    dense = _logits(lm, BASE)
    chosen = every[len(every) // 2]
    bits = np.packbits(np.arange(np.prod(chosen.shape)).reshape(chosen.shape) % 2 == 0, axis=1)
    mask = PersonaMask({chosen: bits.reshape(-1)}, {"fingerprint": lm.fingerprint, "model": "", "dtype": ""})
    with mask.applied(lm):
        masked = _logits(lm, BASE)
    if not all(torch.equal(weight, before[name]) for name, weight in lm.model.state_dict().items()):
        raise AssertionError("a mask left a trace")
    weight = chosen.weight(lm)
    kept = weight.clone()
    weight.mul_(torch.tensor(mask.kept(chosen)))
    _equal(masked, _logits(lm, BASE), "masked logits")
    weight.copy_(kept)
    _equal(dense, _logits(lm, BASE), "logits after the mask")


TRIALS: dict[str, Callable[[LanguageModel], None]] = {
    "residuals": try_residuals,
    "sums": try_sums,
    "heads": try_heads,
    "likelihood": try_likelihood,
    "patching": try_patching,
    "masks": try_masks,
}


def try_all(lm: LanguageModel) -> dict[str, tuple[str, str]]:
    """By trial: ``right``, ``refused`` or ``WRONG``, and why."""
    try:
        check_causal(lm)
    except ValueError as error:
        return dict.fromkeys(TRIALS, ("refused", str(error)))
    outcomes = {}
    for name, trial in TRIALS.items():
        try:
            trial(lm)
            outcomes[name] = ("right", "")
        except ValueError as error:
            outcomes[name] = ("refused", f"{name}: {error}")
        except Exception as error:  # any other error is a fault
            outcomes[name] = ("WRONG", f"{name}: {type(error).__name__}: {error}".replace("\n", " "))
    return outcomes


def _logits(lm: LanguageModel, prompt: Prompt) -> torch.Tensor:
    ids = torch.tensor([prompt.ids])
    with torch.inference_mode():
        return logits_at(lm, ids, torch.tensor([len(prompt.ids) - 1]), attention_mask=torch.ones_like(ids))[0]


def _keep(lm: LanguageModel, layer: int, kept: dict[int, torch.Tensor]) -> contextlib.AbstractContextManager[None]:
    return hook_component(lm, "attn", [layer], lambda layer, value: kept.update({layer: value.clone()}))


def _equal(found, own, what: str) -> None:
    """Within 2e-4 of the size of what it should be."""
    found, own = (torch.as_tensor(value).double() for value in (found, own))
    distance = float((found - own).norm() / own.norm().clamp_min(1e-12))
    if not distance < 2e-4:
        raise AssertionError(f"{what} is off by {distance:.2g}")
