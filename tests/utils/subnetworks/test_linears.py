import logging

import pytest
import torch
from tiny import ARCHITECTURES
from torch import nn

from utils.subnetworks.linears import coverage, find_linears

IDS = torch.tensor([[1, 40, 50, 60, 7], [1, 45, 9, 81, 33]])
MIXTURES = {"mixtral", "qwen3-moe"}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_each_covered_matrix_makes_its_layers_output(tiny, kind):
    """Input times the (out, in) weights, plus the bias, is what the module gives out."""
    lm, seen = tiny(kind), {}
    linears = find_linears(lm)
    handles = [
        lm.model.get_submodule(linear.module).register_forward_hook(
            lambda module, args, output, linear=linear: seen.update(
                {linear: (args[0].clone(), output.clone(), module.bias)}
            )
        )
        for linear in linears
    ]
    with torch.no_grad():
        lm.model(IDS)
    for handle in handles:
        handle.remove()
    assert seen.keys() == set(linears)
    for linear, (given, output, bias) in seen.items():
        assert linear.weight(lm).shape == linear.shape
        expected = given @ linear.weight(lm).T + (0 if bias is None else bias)
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_matrix_is_covered_or_named(tiny, kind):
    lm = tiny(kind)
    table = coverage(lm)
    assert table["weights"].sum() == sum(weight.numel() for weight in lm.model.parameters() if weight.dim() > 1)
    in_blocks = table[table["part"] != ""]
    assert in_blocks["covered"].all() == (kind not in MIXTURES)
    assert not table[table["part"] == ""]["covered"].any()
    covered = sum(linear.shape[0] * linear.shape[1] for linear in find_linears(lm))
    assert table[table["covered"]]["weights"].sum() == covered


@pytest.mark.parametrize("kind", ["llama", "gpt-2", "opt", "phi-3", "falcon"])
def test_attention_and_mlp_are_parts_of_the_whole(tiny, kind):
    lm = tiny(kind)
    attention, mlp = find_linears(lm, scope="attention"), find_linears(lm, scope="mlp")
    assert {*attention, *mlp} == set(find_linears(lm))
    assert not set(attention) & set(mlp)
    assert all(linear.name.startswith(_block_path(lm, linear, lm.anatomy.attention)) for linear in attention)


def _block_path(lm, linear, path):
    target = lm.blocks[linear.layer - 1].get_submodule(path)
    return next(name for name, module in lm.model.named_modules() if module is target)


def test_chosen_layers(tiny):
    assert {linear.layer for linear in find_linears(tiny(), layers=[3, 1])} == {1, 3}
    with pytest.raises(ValueError, match="4"):
        find_linears(tiny(), layers=[4])


@pytest.mark.parametrize("kind", sorted(MIXTURES))
def test_experts_are_refused_by_name(tiny, kind, caplog):
    lm = tiny(kind)
    with caplog.at_level(logging.WARNING):
        assert {linear.part for linear in find_linears(lm)} == {"attention"}
    assert "experts.gate_up_proj" in caplog.text
    with pytest.raises(ValueError, match=r"no linear layer .*experts\.gate_up_proj"):
        find_linears(lm, scope="mlp")


def test_a_head_of_its_own_can_be_asked_for(tiny):
    head = find_linears(tiny("llama", tie_word_embeddings=False), head=True)[-1]
    assert (head.part, head.layer, head.shape) == ("head", 4, (300, 32))
    with pytest.raises(ValueError, match="tied to the embedding"):
        find_linears(tiny("llama", tie_word_embeddings=True), head=True)


def test_quantised_weights_are_refused(tiny):
    lm = tiny()
    projection = lm.blocks[1].self_attn.k_proj
    projection.weight = nn.Parameter(torch.zeros(256, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match=r"k_proj.weight of tiny-llama is uint8, a quantised weight"):
        find_linears(lm)


def test_a_quantiser_is_refused(tiny):
    lm = tiny()
    lm.model.hf_quantizer = object()
    with pytest.raises(ValueError, match="quantised"):
        find_linears(lm)


def test_weights_on_no_device_are_refused(tiny):
    lm = tiny()
    lm.blocks[0].mlp.up_proj.to("meta")
    with pytest.raises(ValueError, match="lies on no device"):
        find_linears(lm)


def test_unknown_scope(tiny, unchecked):
    with pytest.raises(ValueError, match="expected all, attention or mlp"):
        find_linears(tiny(), scope="heads")
