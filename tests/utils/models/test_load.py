import json
import shutil
import socket

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub.errors import GatedRepoError
from tiny import ARCHITECTURES, VOCABULARY, make_lm, make_model, make_tokenizer, randomise

import utils.models.checkpoints
from utils.activations.extraction import extract
from utils.models.anatomy import find_blocks
from utils.models.checkpoints import convert_gguf, default_gguf
from utils.models.components import start_at
from utils.models.language_model import LanguageModel
from utils.models.load import load_model, load_tokenizer, quiet_loading, resolve_device

ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


def save(folder, model, **changes):
    """Write a checkpoint as save_pretrained does, and change its configuration."""
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A tiny checkpoint; copy it before changing it."""
    return save(tmp_path_factory.mktemp("models") / "tiny-llama", make_model())


@pytest.fixture
def copy(llama, tmp_path):
    return shutil.copytree(llama, tmp_path / "copy")


def test_default_model(lm):
    assert lm.name == "SmolLM2-135M-Instruct"
    assert lm.revision is None
    assert (lm.n_layers, lm.d_model, lm.n_heads, lm.n_kv_heads, lm.head_dim) == (30, 576, 9, 3, 64)
    assert (lm.max_tokens, lm.dtype, lm.device) == (8192, torch.float32, torch.device("cpu"))
    assert not any(module.training for module in lm.model.modules())
    assert lm.blocks is lm.model.model.layers
    assert lm.decoder is lm.model.model
    assert "assistant" in lm.tokenizer.chat_template


def test_default_model_loads_offline_from_the_converted_file(lm, monkeypatch):
    folder = convert_gguf(default_gguf())
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}

    def refuse(*_args, **_options):
        raise AssertionError("went to the network")

    asked, load = [], transformers.AutoModelForCausalLM.from_pretrained

    def watch(source, **options):
        asked.append((source, options.get("gguf_file")))
        return load(source, **options)

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", watch)
    again = load_model(device="cpu")
    assert asked == [(str(folder), None)]
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    assert again.fingerprint == lm.fingerprint


def test_local_folder(llama):
    loaded, made = load_model(llama, device="cpu", revision="some-branch"), make_model()
    assert (loaded.name, loaded.revision) == ("tiny-llama", "some-branch")
    assert not loaded.model.training
    for name, weight in made.state_dict().items():
        assert torch.equal(weight, loaded.model.state_dict()[name])
    assert loaded.tokenizer("I like cats")["input_ids"] == make_tokenizer()("I like cats")["input_ids"]
    assert load_model(str(llama), device="cpu").name == "tiny-llama"


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_architecture_is_taken_from_its_folder(tmp_path, kind):
    """None of them is mistaken for an encoder."""
    loaded = load_model(save(tmp_path / kind, make_model(kind)), device="cpu")
    assert loaded.fingerprint == load_model(tmp_path / kind, device="cpu").fingerprint
    assert loaded.n_layers == 3


@pytest.mark.parametrize(
    ("kind", "head_dim", "n_kv_heads"),
    [
        ("llama", 8, 2),
        ("gemma-2", 16, 2),
        ("qwen3", 16, 2),
        ("gpt-2", 8, 4),
        ("gpt-neox", 8, 4),
        ("opt", 8, 4),
        ("falcon", 8, 1),
        ("falcon-alibi", 8, 4),
        ("falcon-grouped", 8, 2),
        ("mixtral", 8, 2),
    ],
)
def test_sizes(kind, head_dim, n_kv_heads):
    lm = make_lm(kind)
    assert (lm.n_layers, lm.d_model, lm.n_heads) == (3, 32, 4)
    assert (lm.head_dim, lm.n_kv_heads) == (head_dim, n_kv_heads)
    # The weights agree: all queries, keys and values, in one matrix or in three.
    shapes = {
        name.split(".")[-2]: weight.shape
        for name, weight in lm.blocks[0].named_parameters()
        if name.endswith("weight") and weight.dim() == 2
    }
    queries = {"q_proj": 4}
    fused = dict.fromkeys(["c_attn", "query_key_value"], 4 + 2 * n_kv_heads)
    for name, n_parts in {**queries, **fused, "k_proj": n_kv_heads}.items():
        if name in shapes:
            assert n_parts * head_dim in shapes[name]
    assert shapes.keys() & {"q_proj", "c_attn", "query_key_value"}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_blocks_are_the_decoder_blocks(kind):
    """A mixture of experts has lists of as many experts, which lie deeper."""
    blocks = make_lm(kind).blocks
    assert len(blocks) == 3
    assert len({type(block) for block in blocks}) == 1
    assert any("Layer" in type(block).__name__ or "Block" in type(block).__name__ for block in blocks)
    assert all(any("att" in name for name, _ in block.named_modules()) for block in blocks)


def test_blocks_are_the_outermost_list():
    """Also where each block comes after, and holds, lists of as many modules of one class."""

    class Nested(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.config = transformers.LlamaConfig(num_hidden_layers=2)
            self.body = torch.nn.Module()
            self.body.adapters = torch.nn.Module()
            self.body.adapters.items = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(2))
            self.body.blocks = torch.nn.ModuleList(torch.nn.Module() for _ in range(2))
            for block in self.body.blocks:
                block.experts = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(2))

    model = Nested()
    assert find_blocks(model) is model.body.blocks


def test_layout_that_is_unknown():
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.config = transformers.LlamaConfig(num_hidden_layers=2)
            self.two_kinds = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.LayerNorm(2)])
            self.too_many = torch.nn.ModuleList([torch.nn.Linear(2, 2) for _ in range(3)])
            self.empty = torch.nn.ModuleList([torch.nn.ReLU(), torch.nn.ReLU()])

    with pytest.raises(ValueError, match="Odd has an unknown layout: looked for a ModuleList of 2 modules with parts"):
        find_blocks(Odd())


def encoder(config, cls, std):
    model = getattr(transformers, cls)(getattr(transformers, config)(**ENCODER, initializer_range=std))
    return model, {"architectures": [cls]}


def t5():
    config = transformers.T5Config(vocab_size=VOCABULARY, d_model=32, d_ff=48, num_layers=2, num_heads=4, d_kv=8)
    return transformers.T5ForConditionalGeneration(config), {}


def bart():
    config = transformers.BartConfig(
        vocab_size=VOCABULARY, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64,
    )  # fmt: skip
    return transformers.BartForConditionalGeneration(config), {}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: encoder("BertConfig", "BertForMaskedLM", 0.02),
            r"m \(bert\) is an encoder-only .*decoder-only causal",
        ),
        (lambda: encoder("BertConfig", "BertLMHeadModel", 0.02), r"attends to later tokens; a decoder-only"),
        (lambda: encoder("BertConfig", "BertLMHeadModel", 0.5), r"attends to later tokens; a decoder-only"),
        (lambda: encoder("RobertaConfig", "RobertaForCausalLM", 0.02), r"attends to later tokens; a decoder-only"),
        (lambda: encoder("XLMRobertaConfig", "XLMRobertaForCausalLM", 0.5), r"attends to later tokens; a decoder-only"),
        (lambda: encoder("ElectraConfig", "ElectraForCausalLM", 0.02), r"attends to later tokens; a decoder-only"),
        (lambda: encoder("BertConfig", "BertModel", 0.02), r"decoder-only"),
        (t5, r"m \(t5\) is an encoder–decoder model; a decoder-only causal"),
        (bart, r"m \(bart\) is an encoder–decoder model; a decoder-only causal"),
    ],
    ids=["masked", "bert", "bert with large weights", "roberta", "large roberta", "electra", "no head", "t5", "bart"],
)
def test_what_is_not_decoder_only_is_refused(tmp_path, make, message):
    torch.manual_seed(0)
    model, changes = make()
    with pytest.raises(ValueError, match=message):
        load_model(save(tmp_path / "m", model, **changes), device="cpu")


def test_bert_made_a_decoder_is_taken(tmp_path):
    """Refused is what attends to later tokens, whatever its class is called; this one does not."""
    torch.manual_seed(0)
    model = transformers.BertLMHeadModel(transformers.BertConfig(**ENCODER, is_decoder=True))
    assert load_model(save(tmp_path / "m", model), device="cpu").n_layers == 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_is_not_mistaken_for_attention_to_later_tokens(tmp_path, dtype):
    folder = save(tmp_path / "m", make_model("mixtral"))
    assert load_model(folder, device="cpu", dtype=dtype).dtype == getattr(torch, dtype)


def test_rounding_of_large_activations_is_not_mistaken_for_attention_to_later_tokens(tmp_path, monkeypatch):
    """As in Qwen2.5, where activations of 1,000 leave rounding of some 0.0003 of a state in float32."""
    folder, run = save(tmp_path / "m", make_model()), transformers.LlamaModel.forward
    generator = torch.Generator().manual_seed(0)

    def round_anew(self, *args, **options):
        output = run(self, *args, **options)
        noise = torch.randn(output.last_hidden_state.shape, generator=generator)
        output.last_hidden_state += 3e-4 * noise * output.last_hidden_state.abs().max()
        return output

    monkeypatch.setattr(transformers.LlamaModel, "forward", round_anew)
    assert load_model(folder, device="cpu").n_layers == 3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("std", [0.02, 0.5])
def test_an_encoder_is_refused_in_every_dtype(tmp_path, dtype, std):
    torch.manual_seed(0)
    model, changes = encoder("BertConfig", "BertLMHeadModel", std)
    with pytest.raises(ValueError, match="attends to later tokens"):
        load_model(save(tmp_path / "m", model, **changes), device="cpu", dtype=dtype)


@pytest.mark.parametrize(
    "name", ["./nowhere", "/nowhere/model", "~/nowhere", "a/b/c", "nowhere.gguf", "org/nowhere.gguf", "notes.txt"]
)
def test_path_that_is_not_there(name):
    with pytest.raises(FileNotFoundError, match="no model at") as caught:
        load_model(name)
    assert name in str(caught.value)
    assert "a local folder, a .gguf file or a hub id" in str(caught.value)


@pytest.mark.parametrize("name", ["nobody/nothing", "nothing"])
def test_hub_model_that_is_not_there(name):
    for load in (load_model, load_tokenizer):
        with pytest.raises(FileNotFoundError, match=f"no model '{name}': it is not a local folder, and the hub"):
            load(name)


@pytest.mark.parametrize("name", ["nobody/model-401", "nobody/gated"])
def test_name_that_looks_like_an_error_does_not_make_a_model_gated(monkeypatch, name):
    def missing(source, **_options):
        raise OSError(f"{source} is not a local folder and is not a valid model identifier.")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", missing)
    with pytest.raises(FileNotFoundError, match=f"no model '{name}'"):
        load_model(name)


def test_folder_without_a_configuration(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json; give a folder that save_pretrained wrote"):
        load_model(tmp_path)


def test_folder_without_weights(copy):
    (copy / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"the model folder .*copy is not complete: .*model\.safetensors"):
        load_model(copy)


def test_folder_without_a_tokenizer(copy):
    for file in copy.glob("tokenizer*"):
        file.unlink()
    for load in (load_model, load_tokenizer):
        with pytest.raises(ValueError, match="copy has no tokenizer that transformers can read"):
            load(copy)


def test_code_of_a_model_is_not_run_unasked(copy, tmp_path):
    ran = tmp_path / "ran"
    (copy / "configuration_mine.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "configuration_mine.Mine"}}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_model(copy)
    assert not ran.exists()


@pytest.mark.parametrize("source", ["AutoConfig", "AutoTokenizer", "AutoModelForCausalLM"])
def test_gated_model_says_what_to_do(monkeypatch, llama, source):
    """Where transformers notices it: at the first file, or at the weights only."""
    parts = {name: getattr(transformers, name) for name in ("AutoConfig", "AutoTokenizer", "AutoModelForCausalLM")}

    def gated(name, **_options):
        cause = GatedRepoError.__new__(GatedRepoError)
        text = f"You are trying to access a gated repo.\nMake sure to have access to it at the page of {name}.\n"
        raise OSError(text + "401 Client Error.") from cause

    monkeypatch.setattr(utils.models.checkpoints, "_check_reachable", lambda _name: None)
    for name, part in parts.items():
        load = part.from_pretrained
        local = gated if name == source else lambda _name, load=load, **options: load(str(llama), **options)
        monkeypatch.setattr(part, "from_pretrained", local)
    with pytest.raises(
        PermissionError, match=r"org/model is gated: accept its licence .*`hf auth login` or set HF_TOKEN"
    ):
        load_model("org/model", device="cpu")


@pytest.mark.parametrize("device", ["gpu", "cpu:x", "", "nonsense:1"])
def test_unknown_device(device, llama):
    with pytest.raises(ValueError, match=rf"unknown device '{device}'; expected auto, cpu, cuda, cuda:N or mps"):
        load_model(llama, device=device)


@pytest.mark.parametrize(("device", "module"), [("cuda", "cuda"), ("cuda:3", "cuda"), ("mps", "backends.mps")])
def test_device_that_is_not_there(monkeypatch, llama, device, module):
    monkeypatch.setattr(f"torch.{module}.is_available", lambda: False)
    with pytest.raises(ValueError, match=f"device '{device}' is not available on this machine"):
        load_model(llama, device=device)


@pytest.mark.parametrize("asked", [None, "auto"])
@pytest.mark.parametrize(
    ("cuda", "mps", "chosen"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_device_that_is_chosen(monkeypatch, asked, cuda, mps, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert resolve_device(asked) == torch.device(chosen)


@pytest.mark.parametrize("dtype", ["int8", "float", "Float32", "fp16"])
def test_unknown_dtype(dtype, llama):
    with pytest.raises(ValueError, match=f"unknown dtype '{dtype}'; expected one of float32, float16, bfloat16"):
        load_model(llama, device="cpu", dtype=dtype)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(None, torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16), (torch.float64, torch.float64)],
)
def test_dtype(tmp_path, dtype, expected):
    """On a CPU float32, also where the checkpoint is in half precision."""
    folder = save(tmp_path / "m", make_model().to(torch.bfloat16))
    lm = load_model(folder, device="cpu", dtype=dtype)
    assert lm.dtype == expected
    assert {weight.dtype for weight in lm.model.parameters()} == {expected}


def test_fingerprint_is_that_of_the_weights(llama, copy):
    lm = load_model(llama, device="cpu")
    assert lm.fingerprint == load_model(llama, device="cpu").fingerprint
    moved = load_model(copy, device="cpu")
    assert (moved.name, moved.fingerprint) == ("copy", lm.fingerprint)
    assert len(lm.fingerprint) == 16


def fresh(**options):
    model = make_model(**options)
    return LanguageModel(model, make_tokenizer(), "m")


@pytest.mark.parametrize(
    "name",
    ["model.embed_tokens.weight", "model.layers.2.self_attn.k_proj.weight", "model.layers.0.input_layernorm.weight"],
)
def test_fingerprint_changes_with_every_matrix(name):
    one, other = fresh(), fresh()
    assert one.fingerprint == fresh().fingerprint
    with torch.no_grad():
        other.model.get_parameter(name).mul_(1.001)
    assert other.fingerprint != one.fingerprint


@pytest.mark.parametrize(
    "options",
    [{"seed": 1}, {"kind": "mistral"}, {"rms_norm_eps": 1e-3}, {"rope_theta": 500.0}, {"num_hidden_layers": 2}],
)
def test_fingerprint_changes_with_the_architecture(options):
    """Also where the weights are the same and only a number of the configuration is not."""
    assert fresh(**options).fingerprint != fresh().fingerprint


def test_fingerprint_changes_with_the_dtype():
    other = fresh()
    other.model.to(torch.bfloat16)
    assert other.fingerprint != fresh().fingerprint


def test_fingerprint_changes_when_two_matrices_change_places():
    one, other = fresh(), fresh()
    first, second = (other.model.get_parameter(f"model.layers.0.mlp.{name}_proj.weight") for name in ("gate", "up"))
    with torch.no_grad():
        first.data, second.data = second.data.clone(), first.data.clone()
    assert other.fingerprint != one.fingerprint


def test_tokenizer_alone(lm, llama, monkeypatch):
    def refuse(*_args, **_options):
        raise AssertionError("loaded the weights")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuse)
    text = "I like cats."
    assert load_tokenizer()(text)["input_ids"] == lm.tokenizer(text)["input_ids"]
    assert load_tokenizer(llama)(text)["input_ids"] == make_tokenizer()(text)["input_ids"]
    with pytest.raises(FileNotFoundError, match="no model at"):
        load_tokenizer("./nowhere")


@pytest.mark.parametrize("shown", [True, False])
def test_loading_bars_are_put_back(shown):
    bars = transformers.utils.logging
    before = bars.is_progress_bar_enabled()

    def load():
        with quiet_loading():
            assert not bars.is_progress_bar_enabled()
            raise RuntimeError

    try:
        (bars.enable_progress_bar if shown else bars.disable_progress_bar)()
        with pytest.raises(RuntimeError):
            load()
        assert bars.is_progress_bar_enabled() == shown
    finally:
        (bars.enable_progress_bar if before else bars.disable_progress_bar)()


def test_randomise_leaves_nothing_alike():
    """Of the fixture: two seeds share no parameter."""
    one, other = make_model("gemma-2"), make_model("gemma-2")
    randomise(other, 1)
    assert not any(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_model_placed_by_accelerate_gives_the_same_activations(copy, tmp_path):
    """One part is kept on disk until it is needed, as with a model that is larger than the memory."""
    whole = load_model(copy, device="cpu")
    place = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "cpu"}
    place |= {"model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    spread = load_model(copy, device="cpu", device_map=place)
    assert any(weight.is_meta for weight in spread.model.parameters())
    assert spread.device == torch.device("cpu")
    for component in ("resid", "attn", "heads"):
        expected = extract(whole, ["I like cats.", "No."], component=component, progress=False)
        found = extract(spread, ["I like cats.", "No."], component=component, progress=False)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    ids, hidden = torch.tensor([[4, 5, 6]]), torch.randn(1, 3, 32)
    with torch.no_grad():
        before = spread.model(ids).logits
        with start_at(whole, 2, hidden), start_at(spread, 2, hidden):
            torch.testing.assert_close(spread.model(ids).logits, whole.model(ids).logits)
        torch.testing.assert_close(spread.model(ids).logits, before, rtol=0, atol=0)
