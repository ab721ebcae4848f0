"""LongRoPE turns all tokens of an input otherwise when the input is longer than the original window."""

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import make_lm

from utils.activations.extraction import extract
from utils.causal.interventions import Intervention
from utils.causal.scoring import score_interventions
from utils.models.forward import run_prefix, share_prefix
from utils.models.prompts import encode_prompts, find_template
from utils.patching.attention import persona_attention
from utils.responses.measures import score_prompts, text_readout
from utils.subnetworks.calibration import calibrate

SWITCH = 24
SCALING = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [8.0] * 4}
WORDS = "cats and dogs and the state and people keep what they earn ".split()


def make_long(switch):
    scaling = {**SCALING, "original_max_position_embeddings": switch}
    return make_lm("phi-3", rope_parameters=scaling, original_max_position_embeddings=switch, template="long")


@pytest.fixture
def lm():
    return make_long(SWITCH)


def texts(first, last, step):
    return [" ".join(WORDS * 3)[:n] for n in range(first, last, step)]


@pytest.fixture
def mixed(lm):
    """Statements whose prompts lie on both sides."""
    made = texts(2, 60, 7)
    lengths = [len(prompt.ids) for prompt in encode_prompts(lm.tokenizer, made, find_template(lm.tokenizer, "raw"))]
    assert min(lengths) < SWITCH < max(lengths)
    return made


def hidden(lm, text, role):
    (prompt,) = encode_prompts(lm.tokenizer, [text], find_template(lm.tokenizer, role))
    with torch.inference_mode():
        states = lm.model(torch.tensor([prompt.ids]), output_hidden_states=True).hidden_states
    return torch.stack(states[:-1])[:, 0, -1]


def test_the_switch_is_that_of_the_config(lm):
    assert lm.window_switch == SWITCH
    assert make_lm("phi-3").window_switch is None
    assert lm.split_sides([5, SWITCH + 1, SWITCH]) == [[0, 2], [1]]


@pytest.mark.parametrize("batch_size", ["auto", 3])
@pytest.mark.parametrize("stored", [False, True])
def test_activations_do_not_depend_on_batch_mates(lm, mixed, batch_size, stored, tmp_path):
    store = tmp_path / "a.zarr" if stored else None
    found = extract(lm, mixed, role="raw", batch_size=batch_size, store=store, progress=False).transpose(
        "statement", ...
    )
    for text, own in zip(mixed, found, strict=True):
        np.testing.assert_allclose(own[:-1], hidden(lm, text, "raw"), atol=1e-5)


@pytest.mark.parametrize("switch", [40, 64, 200])
def test_a_beginning_is_shared_where_nothing_changes_by_it(switch):
    """The template has about 55 tokens before a statement, and prompts have 60 to 95."""
    lm = make_long(switch)
    made = texts(2, 60, 7)
    prompts = encode_prompts(lm.tokenizer, made, find_template(lm.tokenizer))
    assert bool(share_prefix(lm, prompts).ids) == (switch != 64)
    found = extract(lm, made, progress=False).transpose("statement", ...)
    for text, own in zip(made, found, strict=True):
        np.testing.assert_allclose(own[:-1], hidden(lm, text, "system"), atol=1e-5)


def test_a_prefix_is_run_for_prompts_on_its_own_side(lm):
    opening = tuple(range(3, 13))
    assert run_prefix(lm, opening, [SWITCH]).ids == opening
    assert run_prefix(lm, opening, [SWITCH, SWITCH + 1]).ids == ()


def test_likelihoods_and_interventions_do_not_depend_on_batch_mates(lm, mixed):
    whole = score_prompts(lm, text_readout(lm.tokenizer, mixed), progress=False)
    none = Intervention(2, added=np.zeros(lm.d_model))
    changed = score_interventions(lm, text_readout(lm.tokenizer, mixed), [none], progress=False)
    alone = [float(score_prompts(lm, text_readout(lm.tokenizer, [text]), progress=False)[0]) for text in mixed]
    np.testing.assert_allclose(whole, alone, rtol=1e-5)
    np.testing.assert_allclose(changed[0], alone, rtol=1e-5)


def test_inputs_that_are_summed_do_not_depend_on_batch_mates(lm, mixed):
    together = calibrate(lm, mixed, mixed[:1], role="raw", progress=False)
    one_by_one = calibrate(lm, mixed, mixed[:1], role="raw", batch_size=1, progress=False)
    for name, sums in together.sums["positive"].items():
        np.testing.assert_allclose(sums, one_by_one.sums["positive"][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("max_tokens", [4, 40])
def test_answers_do_not_depend_on_batch_mates(lm, max_tokens):
    lm.tokenizer.chat_template = None
    asked = texts(2, 60, 7)
    alone = [lm.generate(text, max_tokens=max_tokens)[0] for text in asked]
    assert lm.generate(asked, max_tokens=max_tokens) == alone


def test_attention_does_not_depend_on_batch_mates(lm):
    asked = pd.DataFrame(
        [{"id": n, "question": text, **dict.fromkeys("ABCD", "x")} for n, text in enumerate(texts(2, 30, 9))]
    )
    lm.tokenizer.chat_template = "{% for m in messages %}{{ m.content[:40] }}\n{% endfor %}"
    identities = pd.DataFrame({"identity": ["cat"], "group": ["a"]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("utils.responses.wording.question_text", lambda row: row["question"])
        whole = persona_attention(lm, asked, identities, progress=False)
        parts = [persona_attention(lm, asked.iloc[[n]], identities, progress=False) for n in range(len(asked))]
    for column in ("attention", "weighted"):
        np.testing.assert_allclose(whole[column], np.mean([part[column] for part in parts], axis=0), rtol=1e-4)
