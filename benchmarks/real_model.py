"""A real model read, patched and masked by this library, each compared with plain transformers; ratios of the error to the state.

Run ``uv run python benchmarks/real_model.py [--model PATH]``, a few minutes on two cores. The other side uses nothing of
the library but the prompts' tokens: hooks on ``model.model.layers[i]``, one prompt a pass and no padding, and weights zeroed
by hand. Prints a line a check and ends with the number of those that failed.
"""

import argparse
import contextlib
import sys
from collections.abc import Iterator

import numpy as np
import torch

from utils.activations.extraction import extract
from utils.models.language_model import LanguageModel
from utils.models.load import load_model
from utils.models.prompts import encode_prompts, find_template
from utils.patching.alignment import pair_prompts
from utils.patching.grid import list_cells, patch_questions
from utils.responses.wording import letter_tokens, render_questions
from utils.statements.load import load_statements
from utils.statements.questions import load_questions
from utils.subnetworks.build import calibrate, persona_mask

STATES, PATCHES, MASKS = 1e-4, 1e-3, 1e-4  # of a state's norm, in logits, of the logits' norm


def main(model: str | None, n_questions: int) -> int:
    lm = load_model(model, device="cpu", dtype="float32")
    print(f"{lm.name}: {lm.n_layers} layers of {lm.d_model}")
    missed = sum([compare_states(lm), compare_patches(lm, n_questions), compare_masks(lm)])
    print("all hold" if not missed else f"{missed} do not hold")
    return missed


def compare_states(lm: LanguageModel) -> int:
    """Hidden states, batched, padded and behind a shared prefix, against one pass a statement."""
    statements = load_statements(personas=["openness", "neuroticism"]).groupby("persona").head(20)
    found = extract(lm, statements, position=("last", "mean"), progress=False).to_numpy()
    prompts = encode_prompts(lm.tokenizer, statements["statement"].tolist(), find_template(lm.tokenizer))
    worst, lengths = 0.0, {len(prompt.ids) for prompt in prompts}
    kept: dict[int, torch.Tensor] = {}
    for row, prompt in enumerate(prompts):
        with torch.inference_mode(), _kept_last(lm, kept):
            states = lm.model(input_ids=torch.tensor([prompt.ids]), output_hidden_states=True).hidden_states
        # The last of transformers' states lies behind the final norm.
        for layer, state in enumerate([*states[:-1], kept[lm.n_layers]]):
            for own, read in ((state[0, -1], found[0]), (state[0, prompt.start : prompt.stop].mean(0), found[1])):
                distance = np.linalg.norm(read[layer, row] - own.numpy()) / np.linalg.norm(own.numpy())
                worst = max(worst, float(distance))
    what = f"hidden states of {len(prompts)} statements of {len(lengths)} lengths, every layer, last token and mean"
    return _say(what, worst, STATES)


def compare_patches(lm: LanguageModel, n_questions: int) -> int:
    """Patches of blocks, attentions and MLPs against whole passes with the values put in by hand."""
    base, source = "person", "weak student"
    questions = load_questions().groupby("subject").head(1).head(n_questions)
    layers = range(1, lm.n_layers + 1, max(1, lm.n_layers // 5))
    cells = list_cells(lm, ("resid", "attn", "mlp"), list(layers), ("persona", "question", "last"))
    table = patch_questions(lm, base, source, questions, cells, progress=False)
    letters = letter_tokens(
        lm.tokenizer, render_questions(lm.tokenizer, questions.iloc[:1], system=f"You are a {base}.")[0]
    )
    worst, largest, count = 0.0, 0.0, 0
    for pair in pair_prompts(lm.tokenizer, base, source, questions):
        with _kept_parts(lm) as values:
            source_logits = _last_logits(lm, pair.source.ids)
        base_logits = _last_logits(lm, pair.base.ids)
        rose, fell = _letters(base_logits[letters], source_logits[letters])
        own = table[table["question"] == pair.id]
        for cell in own.itertuples():
            to, taken = pair.places(cell.segment)
            with _put(_module(lm, cell.component, cell.layer), values[cell.component, cell.layer][0, taken], to):
                logits = _last_logits(lm, pair.base.ids)
            m = float(logits[letters[rose]] - logits[letters[fell]])
            worst, count = max(worst, abs(m - cell.m_patched)), count + 1
            largest = max(largest, abs(cell.m_patched - cell.m_base))
    print(f"    largest change of m by a patch: {largest:.3f} logits")
    return _say(f"m of {count} patches of {n_questions} questions, in logits", worst, PATCHES)


def compare_masks(lm: LanguageModel) -> int:
    """A mask against weights zeroed by hand; and the weights after it against those before, bit for bit."""
    frame = load_statements(personas=["extraversion"])
    sides = [frame.loc[frame["direction"] == side, "statement"].head(16).tolist() for side in ("positive", "negative")]
    mask = persona_mask(lm, calibrate(lm, *sides, progress=False), sparsity=0.5, progress=False)
    ids = encode_prompts(lm.tokenizer, sides[0][:1], find_template(lm.tokenizer))[0].ids
    before = {name: weight.clone() for name, weight in lm.model.state_dict().items()}
    dense = _last_logits(lm, ids)
    with mask.applied(lm):
        masked = _last_logits(lm, ids)
    changed = sum(not torch.equal(weight, before[name]) for name, weight in lm.model.state_dict().items())
    cut = 0
    with torch.no_grad():
        for linear in mask.bits:
            weight = linear.weight(lm)
            weight.mul_(torch.tensor(mask.kept(linear)))
            cut += int((weight == 0).sum())
        plainly = _last_logits(lm, ids)
        lm.model.load_state_dict(before)
    print(f"    {cut:,} weights are 0; the mask moves the logits by {_distance(masked, dense):.2f} of their norm")
    missed = _say("masked logits", _distance(masked, plainly), MASKS)
    return missed + _say("tensors that a mask leaves changed", changed, 0)


def _say(what: str, value: float, bound: float) -> int:
    missed = not value <= bound
    print(f"{what}: {value:.2g} (at most {bound:g}): {'MISSED' if missed else 'holds'}", flush=True)
    return int(missed)


def _distance(found: torch.Tensor, own: torch.Tensor) -> float:
    return float((found - own).norm() / own.norm())


def _letters(base: torch.Tensor, source: torch.Tensor) -> tuple[int, int]:
    """The answers of source and base; where they are one, the letters that rise and fall most from base to source."""
    change, rose, fell = source - base, int(source.argmax()), int(base.argmax())
    return (rose, fell) if rose != fell else (int(change.argmax()), int(change.argmin()))


def _module(lm: LanguageModel, component: str, layer: int) -> torch.nn.Module:
    block = lm.model.model.layers[layer - 1]
    return {"resid": block, "attn": block.self_attn, "mlp": block.mlp}[component]


def _last_logits(lm: LanguageModel, ids: tuple[int, ...]) -> torch.Tensor:
    with torch.inference_mode():
        return lm.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].clone()


@contextlib.contextmanager
def _hooked(*hooks: tuple[torch.nn.Module, object]) -> Iterator[None]:
    handles = [module.register_forward_hook(act) for module, act in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _first(output: torch.Tensor | tuple) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


def _kept_last(lm: LanguageModel, kept: dict[int, torch.Tensor]) -> contextlib.AbstractContextManager[None]:
    block = lm.model.model.layers[-1]
    return _hooked((block, lambda module, args, output: kept.update({lm.n_layers: _first(output).clone()})))


@contextlib.contextmanager
def _kept_parts(lm: LanguageModel) -> Iterator[dict[tuple[str, int], torch.Tensor]]:
    values: dict[tuple[str, int], torch.Tensor] = {}

    def keep(key):
        return lambda module, args, output: values.update({key: _first(output).clone()})

    keys = [(component, layer) for component in ("resid", "attn", "mlp") for layer in range(1, lm.n_layers + 1)]
    with _hooked(*((_module(lm, *key), keep(key)) for key in keys)):
        yield values


def _put(module: torch.nn.Module, values: torch.Tensor, to: list[int]) -> contextlib.AbstractContextManager[None]:
    def put(module, args, output):
        changed = _first(output).clone()
        changed[0, to] = values
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return _hooked((module, put))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--questions", type=int, default=5)
    arguments = parser.parse_args()
    sys.exit(main(arguments.model, arguments.questions))
