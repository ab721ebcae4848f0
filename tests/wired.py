"""A tiny model with a persona wired into known nodes: one word puts it there, attention spreads it, the head reads it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

import utils.study.run
from utils.layers.maps import map_statements
from utils.models.language_model import LanguageModel
from utils.models.load import load_model
from utils.study.results import Study
from utils.study.settings import StudyConfig

PERSONA, OTHER = "warm", "cold"
NODES = {7: 1, 20: -1, 33: 1, 41: 1, 50: -1}
_FILLERS = [f"word{i}" for i in range(40)]
_SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<|system|>", "<|user|>", "<|assistant|>"]
_SPOKEN = (
    "Tell me something about yourself . You are someone who is Speak as that person Do you agree with the following "
    'statement ? Answer with " Agree or Disagree : the A B C D'
).split()
_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|> {{ m.content }} </s> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def save_wired_model(folder: Path) -> Path:
    """Save the model and its tokenizer, of one token a word."""
    words = [*_SPECIAL, PERSONA, OTHER, *dict.fromkeys(_SPOKEN), *_FILLERS]
    vocabulary = {word: i for i, word in enumerate(words)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": _SPECIAL[4:]})
    tokenizer.chat_template = _TEMPLATE
    config = transformers.LlamaConfig(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=False,
    )
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    nodes, signs = torch.tensor(list(NODES)), torch.tensor([float(sign) for sign in NODES.values()])
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                scale = 0.4 if "embed_tokens" in name else 0.3 if "layers.0.self_attn" in name else 0.05
                weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
            if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.weight", "up_proj.weight")):
                weight[:, nodes] = 0  # nothing reads the persona but what is wired below
        embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        embedding[:, nodes] *= 0.1
        head[:, nodes] = 0
        attention = model.model.layers[0].self_attn
        attention.q_proj.weight.zero_()  # every token attends to all before it alike
        attention.v_proj.weight[: len(nodes)] = 0
        attention.v_proj.weight[torch.arange(len(nodes)), nodes] = 1
        attention.o_proj.weight[nodes] *= 0.2
        attention.o_proj.weight[:, : len(nodes)] = 0
        attention.o_proj.weight[nodes, torch.arange(len(nodes))] = 6
        embedding[vocabulary[OTHER]] = embedding[vocabulary[PERSONA]]
        for word, side in ((PERSONA, 1), (OTHER, -1)):
            embedding[vocabulary[word], nodes] = side * signs
            head[vocabulary[word], nodes] = side * signs
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_wired_statements(path: Path, n_pairs: int = 80) -> Path:
    """Pairs that differ in the one word, in this project's CSV format."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(n_pairs):
        fillers = rng.choice(_FILLERS, size=6)
        for direction, word in (("positive", PERSONA), ("negative", OTHER)):
            text = " ".join([*fillers, word])  # last, so that what it does to later words plays no part
            row = {"id": f"{direction}-{i}", "persona": PERSONA, "topic": "wired", "direction": direction}
            rows.append({**row, "statement": text, "pair": f"pair-{i}"})
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def make_wired_study(folder: Path) -> tuple[LanguageModel, Study]:
    """The wired model, and a study of it without pictures and without UMAP, which compiles for longer than all the rest."""
    model = save_wired_model(folder / "model")
    statements = write_wired_statements(folder / "statements.csv")
    options = {"runs": 10, "permutations": 19, "n_clean": 10, "n_anomalous": 10, "jobs": 1}
    config = StudyConfig(model=str(model), device="cpu", statements=str(statements), **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils.study.run, "draw_figures", lambda study: (study.folder / "figures").mkdir())
        patch.setattr(utils.study.run, "write_report", lambda study: None)
        patch.setattr(utils.study.run, "map_statements", lambda acts, rng, **_: map_statements(acts, rng=rng))
        study = utils.study.run.run_study(folder / "study", config, progress=False)
    return load_model(str(model), device="cpu"), study
