import copy

import pytest
import torch
from tiny import ARCHITECTURES
from torch import nn

from utils.models.components import component_layers, component_width, hook_component, start_at

IDS = torch.tensor([[1, 40, 50, 60, 7], [1, 45, 9, 81, 33]])
# Where transformers' own code multiplies by the attention weights, and the module that takes the result.
NORMALISES_THE_SUM = {"word_embed_proj_dim": 32, "do_layer_norm_before": False}


def run(lm, **options):
    with torch.no_grad():
        return lm.model(IDS, use_cache=False, **options).logits


def watch(lm, component, layers=None):
    """Values by layer of one forward pass."""
    seen = {}
    with hook_component(lm, component, layers or list(component_layers(lm, component)), _keep(seen)):
        run(lm)
    return seen


def _keep(seen):
    def act(layer, value):
        seen[layer] = value.clone()

    return act


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_what_attention_and_mlp_add_makes_the_next_residual_stream(tiny, kind):
    lm = tiny(kind)
    resid, attn, mlp = (watch(lm, component) for component in ("resid", "attn", "mlp"))
    assert list(attn) == list(mlp) == [1, 2, 3]
    for layer in (1, 2, 3):
        assert attn[layer].shape == mlp[layer].shape == (2, 5, 32)
        # Neither part is nothing, so that the sum says something of both.
        assert attn[layer].abs().mean() > 1e-2
        assert mlp[layer].abs().mean() > 1e-3
        torch.testing.assert_close(resid[layer - 1] + attn[layer] + mlp[layer], resid[layer], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_only_the_attention_mixes_tokens(tiny, kind):
    """What the MLP of block 1 adds at a token follows from the residual stream there; the attention's does not."""
    lm = tiny(kind)
    seen = {}
    other = IDS.clone()
    other[:, 0] = 77
    for name, ids in (("here", IDS), ("there", other)):
        for component in ("attn", "mlp"):
            kept = {}
            with hook_component(lm, component, [1], _keep(kept)), torch.no_grad():
                lm.model(ids, use_cache=False)
            seen[name, component] = kept[1][:, 1:]
    assert not torch.allclose(seen["here", "attn"], seen["there", "attn"], atol=1e-4)
    if lm.anatomy.parallel:
        torch.testing.assert_close(seen["here", "mlp"], seen["there", "mlp"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_heads_are_the_inputs_of_the_output_projection(tiny, kind):
    """The projection of the heads is what the attention module gives out, and leaving a head out changes just that."""
    lm = tiny(kind)
    heads = watch(lm, "heads")[2]
    assert heads.shape == (2, 5, 4, lm.head_dim)
    assert component_width(lm, "heads") == 4 * lm.head_dim
    block, outputs = lm.blocks[1], []
    projection = block.get_submodule(lm.anatomy.projection)
    with projection.register_forward_hook(lambda _module, _args, output: outputs.append(output.clone())):
        run(lm)
    with torch.no_grad():
        torch.testing.assert_close(projection(heads.flatten(-2)), outputs[0].view(2, 5, 32), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma-3"])
def test_heads_are_weighted_values(tiny, kind):
    """Attention weights times the value vectors, head by head, each group of query heads sharing one value head."""
    lm = tiny(kind)
    lm.model.set_attn_implementation("eager")
    values = []
    attention = lm.blocks[0].get_submodule(lm.anatomy.attention)
    with attention.v_proj.register_forward_hook(lambda _module, _args, output: values.append(output)), torch.no_grad():
        weights = lm.model(IDS, output_attentions=True).attentions[0]  # (B, H, T, T)
    value = values[0].view(2, 5, lm.n_kv_heads, lm.head_dim).repeat_interleave(4 // lm.n_kv_heads, dim=2)
    expected = torch.einsum("bhts,bshd->bthd", weights, value)
    torch.testing.assert_close(watch(lm, "heads", [1])[1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("component", ["resid", "attn", "mlp", "heads"])
@pytest.mark.parametrize("kind", ["llama", "gemma-2", "granite", "opt", "falcon", "gpt-2", "mixtral"])
def test_a_changed_value_takes_effect(tiny, kind, component):
    """Given back as it is, nothing changes; changed, the sum of the block changes by as much."""
    lm = tiny(kind)
    before, resid = run(lm), watch(lm, "resid")
    with hook_component(lm, component, [2], lambda _layer, value: value.clone()):
        torch.testing.assert_close(run(lm), before, rtol=1e-5, atol=1e-5)
    added, seen = torch.randn(2, 5, 32), {}
    if component == "heads":
        with hook_component(lm, "heads", [2], lambda _layer, value: torch.zeros_like(value)):
            assert not torch.allclose(run(lm), before, atol=1e-3)
        return
    with (
        hook_component(lm, component, [2], lambda _layer, value: value + added),
        hook_component(lm, "resid", [2], _keep(seen)),
    ):
        assert not torch.allclose(run(lm), before, atol=1e-3)
    if component in ("resid", "mlp") or lm.anatomy.parallel:
        torch.testing.assert_close(seen[2], resid[2] + added, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(run(lm), before, rtol=0, atol=0)


@pytest.mark.parametrize("layer", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_pass_that_starts_at_a_layer_ends_like_the_whole_one(tiny, kind, layer):
    lm = tiny(kind)
    before, hidden = run(lm), watch(lm, "resid")[layer]
    n_run = []
    handles = [
        block.get_submodule(lm.anatomy.projection).register_forward_hook(lambda *_: n_run.append(1))
        for block in lm.blocks
    ]
    with start_at(lm, layer, hidden):
        torch.testing.assert_close(run(lm), before, rtol=0, atol=0)
    for handle in handles:
        handle.remove()
    assert len(n_run) == 3 - layer
    assert all("forward" not in block.__dict__ for block in lm.blocks)
    assert torch.equal(run(lm), before)


def test_a_pass_that_starts_elsewhere_goes_on_from_there(tiny):
    lm = tiny()
    hidden = torch.randn(2, 5, 32)
    with start_at(lm, 3, hidden), torch.no_grad():
        logits = run(lm)
        expected = lm.head(lm.final_norm(hidden))
    torch.testing.assert_close(logits, expected)


def test_blocks_run_again_after_an_error(tiny):
    lm = tiny()
    before = run(lm)
    with pytest.raises(KeyboardInterrupt), start_at(lm, 2, torch.zeros(2, 5, 32)):
        raise KeyboardInterrupt
    assert torch.equal(run(lm), before)


@pytest.mark.parametrize(("component", "layers"), [("resid", [4]), ("attn", [0]), ("heads", [-1]), ("mlp", [])])
def test_layers_that_a_component_does_not_have(tiny, component, layers):
    with pytest.raises(ValueError, match=f"of component {component}"), hook_component(tiny(), component, layers, print):
        pass


def test_unknown_component(tiny, unchecked):
    with pytest.raises(ValueError, match="expected resid, attn, mlp or heads"), hook_component(tiny(), "q", [1], print):
        pass


def test_block_that_normalises_the_sum_has_no_added_parts(tiny):
    lm = tiny("opt", **NORMALISES_THE_SUM)
    with pytest.raises(ValueError, match="has no component attn"), hook_component(lm, "attn", [1], print):
        pass
    assert watch(lm, "heads")[1].shape == (2, 5, 4, 8)


def test_start_out_of_range(tiny):
    with pytest.raises(ValueError, match="layer 4 is out of range"), start_at(tiny(), 4, torch.zeros(2, 5, 32)):
        pass


def test_hooks_of_all_components_are_gone_afterwards(tiny):
    lm = tiny("falcon")
    state = copy.deepcopy(lm.model.state_dict())
    for component in ("resid", "attn", "mlp", "heads"):
        watch(lm, component)
    assert not any(
        len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules() if isinstance(m, nn.Module)
    )
    assert all(torch.equal(weight, state[name]) for name, weight in lm.model.state_dict().items())
