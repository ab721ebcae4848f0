"""Architectures that differ from a plain decoder in one way each; ``benchmarks/bench_architectures.py`` tries all there are."""

import pytest
import torch
from tiny import make_lm, make_model, make_tokenizer
from trials import PROMPTS, TRIALS, try_all
from zoo import causal_configs, make_any, make_config

from utils.cli.main import info
from utils.models.components import component_layers, hook_component
from utils.models.forward import run_prefix, share_prefix
from utils.models.language_model import LanguageModel
from utils.models.prompts import Prompt
from utils.patching.logit_terms import logit_terms
from utils.patching.runs import run_clean
from utils.subnetworks.linears import find_linears

# What each is refused, beside what it is right in.
KINDS = {
    "Lfm2ForCausalLM": set(),  # convolutions and attentions in turn
    "Llama4ForCausalLM": set(),  # experts in every second block
    "Gemma4ForCausalLM": {"sums", "heads"},  # upper blocks take keys and values of lower ones, widths by layer
    "Qwen3_5ForCausalLM": set(),  # linear and full attention in turn
    "BambaForCausalLM": {"heads"},  # recurrent blocks
    "MptForCausalLM": set(),  # its own names, no embedding of positions
}


def build(name, **changes):
    config = make_config(causal_configs()[name])
    for key, value in changes.items():
        setattr(config, key, value)
    return make_any(config, name=name)


@pytest.mark.parametrize("name", KINDS)
def test_everything_is_right_or_refused(name):
    outcomes = try_all(build(name))
    assert outcomes.keys() == TRIALS.keys()
    assert {trial: said for trial, (kind, said) in outcomes.items() if kind == "WRONG"} == {}
    assert {trial for trial, (kind, _) in outcomes.items() if kind == "refused"} == KINDS[name]


def test_blocks_that_are_no_attention_have_no_heads():
    lm = build("Lfm2ForCausalLM")
    assert list(component_layers(lm, "heads")) == [2, 4]
    with (
        pytest.raises(ValueError, match=r"layers \[1\] are out of range.* has layers 2, 4"),
        hook_component(lm, "heads", [1], lambda *_: None),
    ):
        pass


def test_scopes_of_linear_layers_follow_each_block():
    lm = build("Lfm2ForCausalLM")
    mixers, mlps = ({linear.module for linear in find_linears(lm, scope=scope)} for scope in ("attention", "mlp"))
    assert all("feed_forward" in module for module in mlps)
    assert any("self_attn" in module for module in mixers)
    assert any("conv" in module for module in mixers)
    assert not any("feed_forward" in module for module in mixers)


@pytest.mark.parametrize(
    ("name", "shares"),
    [
        ("LlamaForCausalLM", True),
        ("Qwen3_5ForCausalLM", False),
        ("BambaForCausalLM", False),
        ("Lfm2ForCausalLM", False),
        ("GraniteMoeHybridForCausalLM", False),
        ("Gemma4ForCausalLM", False),
    ],
)
def test_a_beginning_is_shared_where_each_layers_cache_holds_keys_alone(name, shares):
    lm = build(name)
    assert bool(run_prefix(lm, PROMPTS[0].ids[:18], [20]).ids) == shares
    assert bool(share_prefix(lm, PROMPTS).ids) == shares


@pytest.mark.parametrize(
    ("make", "limit"),
    [
        (lambda: build("MptForCausalLM", max_seq_len=77), 77),
        (lambda: make_lm("gpt-2", n_positions=50), 50),
        (lambda: make_lm("opt", max_position_embeddings=40), 40),
        (lambda: make_lm("llama", max_position_embeddings=60), 60),
    ],
)
def test_the_context_window_is_found_under_every_name(make, limit):
    lm = make()
    assert lm.max_tokens == limit
    lm.model(torch.zeros((1, limit), dtype=torch.long))


def test_a_window_that_no_config_names_is_that_of_the_position_embedding():
    lm = make_lm("gpt-2", n_positions=50)
    lm.model.config.n_positions = 1000
    assert lm.max_tokens == 50


@pytest.mark.parametrize("name", KINDS)
def test_info_of_every_kind(name, tmp_path, capsys):
    lm = build(name)
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    info(str(tmp_path))
    shown = capsys.readouterr().out
    assert f"{lm.max_tokens} tokens" in shown
    assert lm.d_model == 32
    assert "d_model  32" in shown


def test_terms_are_refused_where_something_lies_between_norm_and_head():
    lm, prompt = make_lm(), Prompt(tuple(range(40, 60)), 3, 5)
    run = run_clean(lm, prompt, ["resid", "attn", "mlp"])
    own = float(run.logits[44] - run.logits[45])
    assert logit_terms(lm, run, (44, 45))["term"].sum() == pytest.approx(own, abs=1e-4)
    with lm.model.lm_head.register_forward_pre_hook(lambda _module, given: (-given[0],)):
        turned = run_clean(lm, prompt, ["resid", "attn", "mlp"])
    with pytest.raises(ValueError, match="something lies between them"):
        logit_terms(lm, turned, (44, 45))


@pytest.mark.parametrize("row", [0, 7, 299])
def test_one_changed_row_of_an_embedding_changes_the_fingerprint(row):
    one = LanguageModel(make_model(), make_tokenizer(), "m")
    before = one.fingerprint
    with torch.no_grad():
        one.embedding.weight[row] *= 1.01
    assert one.fingerprint != before
    with torch.no_grad():
        one.embedding.weight[row, 3] += 1e-6
    assert one.fingerprint != before
