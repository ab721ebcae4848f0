"""Tiny random models and tokenizers, made on the spot: nothing is downloaded and nothing is read from a file."""

import contextlib

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from utils.models.language_model import LanguageModel

TEMPLATES = {
    "plain": "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    "no-system": "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content | trim }}</s>\n{% endfor %}{{ '<|assistant|>\n' }}",
    "drops-system": "{% for m in messages if m.role != 'system' %}<|{{ m.role }}|>\n{{ m.content }}\n{% endfor %}"
    "{{ '<|assistant|>\n' }}",
    "drops-all": "<|user|>\nHello.\n<|assistant|>\n",
    "dated": "<|system|>\nToday is {{ strftime_now('%d %b %Y') }}.\n"
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}\n{% endfor %}{{ '<|assistant|>\n' }}",
}
TEMPLATES["long"] = "<|system|>\nYou are a helpful assistant who thinks before speaking.</s>\n" + TEMPLATES["plain"]
TEMPLATES["with-bos"] = "{{ bos_token }}" + TEMPLATES["plain"]

_SPECIAL = ["<pad>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>"]
_CORPUS = ["I like cats and dogs.", "People should keep what they earn.", "The state ought to help those in need."]
VOCABULARY = 300

_SHARED = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {**_SHARED, "num_key_value_heads": 2}
_GEMMA = {**_GROUPED, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8}
_MOE = {**_GROUPED, "num_experts_per_tok": 2}
_NAMED = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

# Name: configuration class, its values, and where the final norm is in the model without its head.
ARCHITECTURES = {
    "llama": ("LlamaConfig", _GROUPED, "norm"),
    "mistral": ("MistralConfig", {**_GROUPED, "sliding_window": 8}, "norm"),
    "gemma-2": ("Gemma2Config", _GEMMA, "norm"),
    "gemma-3": ("Gemma3TextConfig", _GEMMA, "norm"),
    "qwen3": ("Qwen3Config", {**_GROUPED, "head_dim": 16}, "norm"),
    "phi-3": ("Phi3Config", _GROUPED, "norm"),
    "gpt-2": ("GPT2Config", {**_NAMED, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128}, "ln_f"),
    "gpt-neox": ("GPTNeoXConfig", _SHARED, "final_layer_norm"),
    "opt": (
        "OPTConfig",
        {**_SHARED, "ffn_dim": 48, "word_embed_proj_dim": 32, "prefix": "</s>"},
        "decoder.final_layer_norm",
    ),
    "falcon": ("FalconConfig", _SHARED, "ln_f"),
    "falcon-alibi": ("FalconConfig", {**_SHARED, "alibi": True, "multi_query": False}, "ln_f"),
    "falcon-grouped": ("FalconConfig", {**_SHARED, "new_decoder_architecture": True, "num_kv_heads": 2}, "ln_f"),
    "olmo-2": ("Olmo2Config", _GROUPED, "norm"),
    "stablelm": ("StableLmConfig", _GROUPED, "norm"),
    "granite": ("GraniteConfig", {**_GROUPED, "embedding_multiplier": 3.0, "residual_multiplier": 0.3}, "norm"),
    # As many experts as layers, so that a list of experts has the length of the list of blocks.
    "mixtral": ("MixtralConfig", {**_MOE, "num_local_experts": 3}, "norm"),
    "qwen3-moe": ("Qwen3MoeConfig", {**_MOE, "head_dim": 16, "num_experts": 3, "moe_intermediate_size": 24}, "norm"),
}


def make_tokenizer(template: str | None = "plain", *, adds_bos: bool = True) -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a chat template of ``TEMPLATES``, or with none."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=_SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(_CORPUS * 4, trainer)
    if adds_bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.chat_template = TEMPLATES[template] if template else None
    return tokenizer


def make_model(kind: str = "llama", *, seed: int = 0, **changes: object) -> transformers.PreTrainedModel:
    """A random model in evaluation mode; no weight, norm or bias keeps a value that would hide a mistake."""
    name, values, _ = ARCHITECTURES[kind]
    config = getattr(transformers, name)(**{**values, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomise(model, seed)
    return model.eval()


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Set every parameter from a seed, large enough for attention to matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(noise * 0.2 if weight.dim() > 1 else weight + noise * 0.1)


def make_lm(
    kind: str = "llama", *, template: str | None = "plain", adds_bos: bool = True, seed: int = 0, **changes: object
) -> LanguageModel:
    """A tiny language model as ``load_model`` would return it."""
    tokenizer = make_tokenizer(template, adds_bos=adds_bos)
    return LanguageModel(make_model(kind, seed=seed, **changes), tokenizer, f"tiny-{kind}")


@contextlib.contextmanager
def count_forwards(lm):
    """Collects the number of statements in every forward pass."""
    _ = lm.max_tokens  # asked once a model, by a small pass of its own
    sizes = []
    handle = lm.decoder.register_forward_pre_hook(
        lambda _module, _args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    yield sizes
    handle.remove()
