import pytest
import torch
import transformers
from tiny import ARCHITECTURES, make_lm, make_model, randomise

from utils.models.anatomy import find_anatomy, find_blocks

# Of each architecture, by reading its code: attention, output projection, MLP, what each adds, parallel or not.
LLAMA = ("self_attn", "self_attn.o_proj", "mlp", "self_attn", "mlp", False)
SANDWICH = (*LLAMA[:3], "post_attention_layernorm", "post_feedforward_layernorm", False)
FALCON = ("self_attention", "self_attention.dense", "mlp", "self_attention", "mlp", True)
PARTS = {
    "gemma-2": SANDWICH,
    "gemma-3": SANDWICH,
    "olmo-2": SANDWICH,
    "gpt-2": ("attn", "attn.c_proj", "mlp", "attn", "mlp", False),
    "gpt-neox": ("attention", "attention.dense", "mlp", "attention", "mlp", True),
    "opt": ("self_attn", "self_attn.out_proj", None, "self_attn", "fc2", False),
    "falcon": FALCON,
    "falcon-alibi": FALCON,
    "falcon-grouped": FALCON,
}


def parts_of(anatomy):
    added = [part and part.path for part in (anatomy.attn_added, anatomy.mlp_added)]
    return (anatomy.attention, anatomy.projection, anatomy.mlp, *added, anatomy.parallel)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_parts_of_every_architecture(kind):
    lm = make_lm(kind)
    assert parts_of(lm.anatomy) == PARTS.get(kind, LLAMA)
    assert lm.final_norm is lm.decoder.get_submodule(ARCHITECTURES[kind][2])
    assert lm.head is lm.model.get_output_embeddings()
    scale = 0.3 if kind == "granite" else 1.0
    assert (lm.anatomy.attn_added.scale, lm.anatomy.mlp_added.scale) == (scale, scale)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["llama", "gemma-2", "granite", "falcon", "olmo-2"])
def test_parts_do_not_depend_on_the_weights_or_their_dtype(kind, dtype, seed):
    found = find_anatomy(make_model(kind, seed=seed).to(dtype))
    assert parts_of(found) == PARTS.get(kind, LLAMA)
    assert found.attn_added.scale == (0.3 if kind == "granite" else 1.0)


@pytest.mark.parametrize(
    ("name", "config", "attention", "added"),
    [
        # These add the residual stream inside of attention and MLP; what is added comes from the last matrix.
        ("Bloom", {"n_layer": 2, "n_head": 4}, "self_attention", ("self_attention.dense", "mlp.dense_4h_to_h")),
        ("Mpt", {"n_layers": 2, "n_heads": 4, "d_model": 32}, "attn", ("attn", "ffn.down_proj")),
        ("Cohere", {"num_hidden_layers": 2, "num_attention_heads": 4}, "self_attn", ("self_attn", "mlp")),
        (
            "Glm4",
            {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
            "self_attn",
            ("post_self_attn_layernorm", "post_mlp_layernorm"),
        ),
    ],
)
def test_architectures_that_the_code_does_not_name(name, config, attention, added):
    sizes = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "pad_token_id": 0}
    model = transformers.AutoModelForCausalLM.from_config(
        getattr(transformers, f"{name}Config")(**sizes, **config), dtype=torch.float32
    )
    randomise(model, 0)
    found = find_anatomy(model.eval())
    assert found.attention == attention
    assert (found.attn_added.path, found.mlp_added.path) == added


def test_the_default_model(lm):
    assert parts_of(lm.anatomy) == LLAMA
    assert lm.final_norm is lm.model.model.norm


def test_a_model_without_attention_is_refused():
    config = transformers.MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ValueError, match="unknown layout: looked for an MLP"):
        find_anatomy(model)


def test_a_model_without_blocks_is_refused():
    model = make_model()
    model.config.num_hidden_layers = 5
    with pytest.raises(ValueError, match="looked for a ModuleList of 5 modules"):
        find_blocks(model)


def test_heads_that_the_config_gets_wrong(caplog):
    lm = make_lm()
    lm.model.config.num_key_value_heads = 4
    assert lm.n_kv_heads == 4
    assert "not those of 4 key-value heads" in caplog.text
    lm = make_lm()
    lm.model.config.num_attention_heads = 5
    with pytest.raises(ValueError, match="5 heads, which do not divide the 32 inputs"):
        _ = lm.head_dim


def test_looking_leaves_nothing_behind():
    lm = make_lm("gemma-3")
    ids = torch.tensor([[4, 5, 6]])
    with torch.no_grad():
        before = lm.model(ids).logits
        find_anatomy(lm.model)
        assert torch.equal(lm.model(ids).logits, before)
    assert not any(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules())
    assert torch.is_grad_enabled()
