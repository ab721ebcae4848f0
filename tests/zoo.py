"""Every causal language model that transformers can build from a small configuration, with random weights."""

import contextlib
from typing import Any, cast

import torch
import transformers
from tiny import VOCABULARY, make_tokenizer, randomise
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from utils.models.language_model import LanguageModel

_WIDTH, _HEADS, _LAYERS, _WINDOW = 32, 4, 4, 256
# What configurations call their sizes.
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    **dict.fromkeys(
        ("hidden_size", "n_embd", "d_model", "dim", "emb_dim", "embedding_size", "attention_hidden_size"), 32
    ),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "d_inner", "dim_ff", "n_inner", "decoder_ffn_dim"), 64),
    **dict.fromkeys(("ffn_hidden_size", "mlp_hidden_size", "shared_intermediate_size", "block_ff_dim", "dff"), 64),
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), _LAYERS
    ),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads"), _HEADS),
    **dict.fromkeys(("encoder_attention_heads", "num_heads"), _HEADS),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "n_head_kv", "num_query_groups"), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length"), _WINDOW),
    **dict.fromkeys(("head_dim", "kv_channels", "attention_head_dim", "qk_nope_head_dim", "v_head_dim", "d_kv"), 8),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk", "num_experts_per_token"), 2),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("n_group", "topk_group", "moe_num_shared_experts", "n_shared_experts"), 1),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "rotary_dim", "lora_rank", "o_lora_rank"), 8),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size", "linear_key_head_dim"), 8),
    **dict.fromkeys(("linear_value_head_dim", "mamba_d_head", "mamba_head_dim", "mamba_headdim"), 8),
    **dict.fromkeys(("linear_num_key_heads", "mamba_n_heads", "linear_num_value_heads", "mamba_num_heads"), 8),
    **dict.fromkeys(("mamba_dt_rank", "time_step_rank", "conv_dim", "conv_dim_out", "lru_width"), 32),
    **dict.fromkeys(("mamba_n_groups", "n_groups", "mamba_ngroups"), 1),
    **dict.fromkeys(("attn_layer_period", "expert_layer_period", "interleave_moe_layer_step"), 2),
    **dict.fromkeys(("attn_layer_offset", "expert_layer_offset", "first_k_dense_replace", "num_dense_layers"), 1),
    **dict.fromkeys(("word_embed_proj_dim", "query_pre_attn_scalar", "projection_dim"), 32),
    **dict.fromkeys(("vocab_size_per_layer_input", "char_vocab_size"), VOCABULARY),
    **dict.fromkeys(("pad_token_id",), 0),
    **dict.fromkeys(("bos_token_id",), 1),
    **dict.fromkeys(("eos_token_id",), 2),
    **dict.fromkeys(("sliding_window", "attention_window_size", "local_attention", "attention_window"), 64),
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 2,
    "is_decoder": True,
}
_FULL, _SLIDING = "full_attention", "sliding_attention"
# What single configurations ask for besides.
_OWN: dict[str, dict[str, Any]] = {
    "FalconH1Config": {"mamba_d_ssm": 64},
    "Mamba2Config": {"num_heads": 8, "head_dim": 8},
    "GPTNeoConfig": {"attention_types": [[["global", "local"], 2]], "window_size": 64},
    "Gemma4TextConfig": {"layer_types": [_SLIDING, _FULL, _SLIDING, _FULL], "global_head_dim": 16},
    "Gemma4UnifiedTextConfig": {"layer_types": [_SLIDING, _FULL, _SLIDING, _FULL], "global_head_dim": 16},
    "Gemma3nTextConfig": {"layer_types": [_SLIDING, _FULL, _SLIDING, _FULL]},
    "Lfm2Config": {"layer_types": ["conv", _FULL, "conv", _FULL]},
    "Lfm2MoeConfig": {"layer_types": ["conv", _FULL, "conv", _FULL]},
    "ZayaConfig": {"num_experts_per_tok": 1},
    "XmodConfig": {"default_language": "en_XX"},
}


def causal_configs() -> dict[str, type[transformers.PretrainedConfig]]:
    """The configuration classes with a causal class, by the name of that class."""
    found = {}
    for config in MODEL_FOR_CAUSAL_LM_MAPPING:
        with contextlib.suppress(Exception):
            classes = MODEL_FOR_CAUSAL_LM_MAPPING[config]
            cls = classes[0] if isinstance(classes, tuple) else classes
            found[cast(type, cls).__name__] = config
    return found


def make_config(cls: type[transformers.PretrainedConfig]) -> transformers.PretrainedConfig:
    """A small configuration: sizes that it has are set, under whatever name, and those of its text part."""
    known = cls().to_dict() | dict.fromkeys(getattr(cls, "attribute_map", {}))
    values = {name: value for name, value in _SIZES.items() if name in known}
    for old in getattr(cls, "attribute_map", {}):
        if cls.attribute_map[old] in values:
            values.pop(old, None)
    if "kv_lora_rank" in known and "num_key_value_heads" in known:
        values["num_key_value_heads"] = _HEADS
    for name in ("text_config", "decoder_config", "encoder_config"):
        part = getattr(cls, "sub_configs", {}).get(name)
        if part is not None:
            values[name] = make_config(part).to_dict() if hasattr(part, "attribute_map") else {}
    return cls(**(values | _OWN.get(cls.__name__, {})))


def make_any(config: transformers.PretrainedConfig, *, name: str = "", max_weights: int = 5_000_000) -> LanguageModel:
    """A random model of a configuration; ValueError where it is not small."""
    with torch.device("meta"):
        shell = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    n_weights = sum(weight.numel() for weight in shell.parameters())
    if n_weights > max_weights:
        raise ValueError(f"{n_weights:,} weights")
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomise(model, 0)
    return LanguageModel(model.eval(), make_tokenizer(), name or type(model).__name__)
