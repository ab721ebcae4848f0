import json
import os
import shutil
import struct

import pytest
import torch
from quantised import write_gguf
from safetensors.torch import load_file, save_file
from tiny import make_model, make_tokenizer

from utils.models.checkpoints import convert_gguf
from utils.models.load import load_model

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def edit(change):
    def edited(folder):
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return edited


def configure(**changes):
    def edited(folder):
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return edited


def replace(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def cut(name, n):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:n])


def shrink_vocabulary(folder):
    names = ("model.embed_tokens.weight", "lm_head.weight")
    edit(lambda tensors: tensors.update({name: tensors[name][:100].clone() for name in names}))(folder)
    configure(vocab_size=100)(folder)


class Touch:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def pickled(folder):
    (folder / WEIGHTS).unlink()
    torch.save({"a": Touch()}, folder / "pytorch_model.bin")


def junk(folder):
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(struct.pack("<5s", b"junk."))


UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (edit(lambda tensors: tensors.pop(UP)), rf"lacks 1 weight .*\({UP}\)"),
        (edit(lambda tensors: tensors.pop("lm_head.weight")), r"lacks 1 weight .*\(lm_head\.weight\)"),
        (configure(num_hidden_layers=5), r"lacks 18 weights .*model\.layers\.3.*and 15 more"),
        (configure(num_hidden_layers=2), r"has weights of 3 blocks and config\.json asks for 2 \(model\.layers\.2"),
        (configure(intermediate_size=64), r"9 weights of the file .*\(32, 48\), not \(32, 64\)"),
        (edit(lambda tensors: tensors[UP].fill_(float("nan"))), rf"not finite, in {UP}"),
        (shrink_vocabulary, "the tokenizer has 300 tokens and the embedding 100"),
        (cut(WEIGHTS, 5000), "cannot be read from .*cut short, damaged"),
        (cut(WEIGHTS, 50), "cannot be read from .*cut short, damaged"),
        (replace(WEIGHTS, b""), "cannot be read from .*cut short, damaged"),
        (replace(WEIGHTS, b"noise" * 1000), "cannot be read from .*cut short, damaged"),
        (replace("tokenizer.json", b""), "has no tokenizer that transformers can read"),
        (replace("tokenizer.json", b'{"a": 1}'), "has no tokenizer that transformers can read"),
        (cut("tokenizer.json", 500), "has no tokenizer that transformers can read"),
        (replace("config.json", b""), "config.json"),
        (configure(num_hidden_layers="three"), r"cannot be read from .*the values in config\.json"),
        (configure(num_attention_heads=0), r"cannot be read from .*config\.json"),
        (pickled, "cannot be read from .*code, which is not run"),
        (junk, "cannot be read from .*cut short, damaged"),
    ],
)
def test_damaged_checkpoints_get_one_sentence(copy, tmp_path, monkeypatch, damage, message):
    damage(copy)
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, OSError), match=message) as caught:
        load_model(copy, device="cpu")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_weights_of_other_parts_are_named_once(copy, caplog):
    edit(lambda tensors: tensors.update({f"vision_tower.layers.{i}.w": torch.ones(2) for i in range(9)}))(copy)
    assert load_model(copy, device="cpu").n_layers == 3
    assert [record.message for record in caplog.records] == [
        "copy: not used, as the language model has no place for them: vision_tower (9 weights)"
    ]


@pytest.mark.parametrize("kind", ["llama", "gpt-2"])
def test_tied_weights_are_not_missing(tmp_path, kind):
    make_model(kind, tie_word_embeddings=True).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    load_model(tmp_path, device="cpu")


def test_a_device_without_values(whole):
    with pytest.raises(ValueError, match="'meta' holds no values"):
        load_model(whole, device="meta")


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "tokenizer.json", "conversion.json"])
@pytest.mark.parametrize("content", ["empty", "cut", "noise", None])
def test_a_damaged_conversion_is_made_again(tmp_path, monkeypatch, name, content):
    monkeypatch.setenv("PERSONASCOPE_CACHE", str(tmp_path / "cache"))
    write_gguf(tmp_path / "tiny.gguf")
    file = convert_gguf(tmp_path / "tiny.gguf") / name
    before = file.read_bytes()
    if content is None:
        file.unlink()
    else:
        file.write_bytes({"empty": b"", "cut": before[: len(before) // 2], "noise": b"x" * len(before)}[content])
    convert_gguf(tmp_path / "tiny.gguf")
    if name == "conversion.json":  # holds times
        assert json.loads(file.read_text())["source"] == "tiny.gguf"
    else:
        assert file.read_bytes() == before
