import errno

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import ARCHITECTURES, count_forwards

from utils.activations.extraction import extract, plan_work, run_batch
from utils.activations.store import ActivationStore
from utils.models.components import hook_component
from utils.models.forward import share_prefix
from utils.models.prompts import encode_prompts, find_template
from utils.statements.load import load_statements

TEXTS = [
    "I like cats and dogs.",
    "No.",
    "People should keep what they earn, and the state ought to help those in need; both can be true at once.",
    "Rain again today",
    "Être libre, c'est vouloir – ça suffit 🙂",
]
QUIET = {"progress": False}


def run_alone(lm, ids, final_norm):
    """(layer, token, node) of one sequence by itself: the hidden states of transformers, the last before the norm."""
    caught = []
    norm = lm.decoder.get_submodule(final_norm)
    handle = norm.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    with torch.no_grad():
        states = lm.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    handle.remove()
    assert len(caught) == 1
    assert len(states) == lm.n_layers + 1
    return torch.stack([*states[:-1], caught[0]])[:, 0].numpy()


@pytest.fixture
def frame():
    """Two personas that take turns, lengths that do not go with the order."""
    rows = [
        {"id": f"s{i}", "persona": "ab"[i % 2], "topic": "t", "direction": d, "statement": f"{text} {i}", "pair": None}
        for i, (text, d) in enumerate(zip(TEXTS * 2, ["positive", "negative"] * 5, strict=True))
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_layers_are_the_hidden_states_of_transformers(tiny, kind, batch_size):
    """Alone and among longer and shorter ones; 3 puts a statement with three times its tokens beside a short one."""
    lm = tiny(kind)
    acts = extract(lm, TEXTS, role="raw", batch_size=batch_size, **QUIET)
    assert acts.dims == ("layer", "statement", "node")
    assert acts.shape == (4, len(TEXTS), 32)
    assert acts["layer"].values.tolist() == [0, 1, 2, 3]
    for i, text in enumerate(TEXTS):
        expected = run_alone(lm, lm.tokenizer(text)["input_ids"], ARCHITECTURES[kind][2])[:, -1]
        np.testing.assert_allclose(acts[:, i], expected, rtol=1e-5, atol=1e-5)


def test_the_last_layer_is_before_the_final_norm(tiny):
    lm = tiny()
    acts = extract(lm, TEXTS[:1], role="raw", **QUIET)
    ids = torch.tensor([lm.tokenizer(TEXTS[0])["input_ids"]])
    with torch.no_grad():
        normed = lm.model(ids, output_hidden_states=True).hidden_states[-1][0, -1]
        again = lm.decoder.norm(torch.tensor(acts.values[-1, 0]))
    assert not np.allclose(acts[-1, 0], normed, atol=0.1)
    np.testing.assert_allclose(again, normed, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def default_statements():
    frame = load_statements()
    return frame.iloc[:: len(frame) // 6].head(6).reset_index(drop=True)


@pytest.fixture(scope="module")
def default_reference(lm, default_statements):
    """Of every statement: first and last token of its own by the offsets, and the states of the whole prompt."""
    found = []
    for statement in default_statements["statement"]:
        text = lm.tokenizer.apply_chat_template(
            [{"role": "system", "content": statement}], tokenize=False, add_generation_prompt=True
        )
        encoding = lm.tokenizer(text, add_special_tokens=False)
        begin = text.index(statement)
        first, last = encoding.char_to_token(begin), encoding.char_to_token(begin + len(statement) - 1)
        found.append((first, last, run_alone(lm, encoding["input_ids"], "norm")))
    return found


@pytest.mark.parametrize("position", ["last", "statement", "mean"])
def test_positions_of_the_default_model(lm, default_statements, default_reference, position):
    acts = extract(lm, default_statements, position=position, batch_size=4, **QUIET)
    assert acts.sizes == {"layer": 31, "statement": 6, "node": 576}
    for i, (first, last, states) in enumerate(default_reference):
        expected = {"last": states[:, -1], "statement": states[:, last], "mean": states[:, first : last + 1].mean(1)}
        # A few coordinates are a thousand times larger than the rest, so that errors go by the layer's largest.
        scale = np.abs(states).max(axis=(1, 2))[:, None]
        np.testing.assert_allclose(acts[:, i] / scale, expected[position] / scale, rtol=0, atol=1e-5)


def test_layer_0_sees_only_the_last_token(lm, default_statements):
    """The reason why metrics of layer 0 are NaN with position='last'."""
    acts = extract(lm, default_statements, layers=[0, 1], **QUIET)
    assert np.ptp(acts.sel(layer=0).values, axis=0).max() == 0
    assert np.ptp(acts.sel(layer=1).values, axis=0).max() > 1e-3


@pytest.mark.parametrize("position", ["last", "statement", "mean"])
@pytest.mark.parametrize("role", ["system", "user", "raw"])
def test_positions_inside_a_template(tiny, role, position):
    lm = tiny(template="with-bos")
    acts = extract(lm, TEXTS, role=role, position=position, batch_size=3, **QUIET)
    for i, text in enumerate(TEXTS):
        before, after = ("<s>", "") if role == "raw" else (f"<s><|{role}|>\n", "</s>\n<|assistant|>\n")
        # Special tokens and line ends part the text, so that its pieces have the tokens that they have by themselves.
        ids, upto, first = (
            lm.tokenizer(part, add_special_tokens=False)["input_ids"]
            for part in (before + text + after, before + text, before)
        )
        first, stop = len(first), len(upto)
        states = run_alone(lm, ids, "norm")
        expected = {"last": states[:, -1], "statement": states[:, stop - 1], "mean": states[:, first:stop].mean(1)}
        np.testing.assert_allclose(acts[:, i], expected[position], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("position", ["last", "statement", "mean"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_shared_beginning_is_run_once_and_changes_nothing(tiny, kind, position):
    lm = tiny(kind, template="long")
    prompts = encode_prompts(lm.tokenizer, TEXTS, find_template(lm.tokenizer, "user"))
    prefix = share_prefix(lm, prompts)
    assert len(prefix.ids) >= 16
    assert all(prompt.ids[: len(prefix.ids)] == prefix.ids for prompt in prompts)
    layers = [0, 1, 2, 3]
    for batch in (prompts[:1], prompts):
        whole = run_batch(lm, batch, layers, position=position)
        np.testing.assert_allclose(
            run_batch(lm, batch, layers, position=position, prefix=prefix), whole, rtol=1e-5, atol=1e-5
        )
    acts = extract(lm, TEXTS, role="user", position=position, batch_size=2, **QUIET)
    np.testing.assert_allclose(acts, whole, rtol=1e-5, atol=1e-5)


def test_a_short_beginning_is_not_shared(tiny):
    lm = tiny()
    prompts = encode_prompts(lm.tokenizer, TEXTS, find_template(lm.tokenizer, "user"))
    assert share_prefix(lm, prompts).ids == ()
    assert share_prefix(lm, []).ids == ()


@pytest.mark.parametrize(
    ("kind", "component", "module"),
    [
        ("llama", "attn", "self_attn"),
        ("llama", "mlp", "mlp"),
        ("gemma-3", "attn", "post_attention_layernorm"),
        ("gemma-3", "mlp", "post_feedforward_layernorm"),
        ("opt", "mlp", "fc2"),
        ("gpt-2", "attn", "attn.c_proj"),
        ("mixtral", "mlp", "mlp"),
    ],
)
@pytest.mark.parametrize("position", ["last", "mean"])
def test_components_are_what_their_module_gives_for_each_statement_alone(tiny, kind, component, module, position):
    lm = tiny(kind)
    acts = extract(lm, TEXTS, component=component, position=position, role="raw", batch_size=3, **QUIET)
    assert acts["layer"].values.tolist() == [1, 2, 3]
    assert acts.attrs["component"] == component
    for i, text in enumerate(TEXTS):
        outputs, handles = [], []
        for block in lm.blocks:
            part = block.get_submodule(module)
            handles.append(part.register_forward_hook(lambda _m, _a, output, kept=outputs: kept.append(output)))
        ids = lm.tokenizer(text)["input_ids"]
        with torch.no_grad():
            lm.model(torch.tensor([ids]))
        for handle in handles:
            handle.remove()
        values = [(out if torch.is_tensor(out) else out[0]).reshape(len(ids), 32) for out in outputs]
        expected = [value[-1] if position == "last" else value[1:].mean(0) for value in values]  # 1: behind the BOS
        np.testing.assert_allclose(acts[:, i], torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_heads_can_be_selected_and_resumed_from_a_store(tiny, frame, tmp_path):
    lm = tiny("qwen3")
    acts = extract(lm, frame, component="heads", store=tmp_path / "heads.zarr", **QUIET)
    assert acts.sizes == {"layer": 3, "statement": 10, "node": 64}
    plain = extract(lm, frame, component="heads", **QUIET)
    np.testing.assert_allclose(acts, plain, rtol=1e-5, atol=1e-6)
    assert acts.sel(head=2).shape == plain.sel(head=2).shape == (3, 10, 16)
    np.testing.assert_array_equal(acts.sel(head=2), acts.values[..., 32:48])
    with pytest.raises(ValueError, match="made with another component"):
        extract(lm, frame, component="attn", store=tmp_path / "heads.zarr", **QUIET)


def test_parts_of_a_block_have_no_layer_0(tiny):
    with pytest.raises(
        ValueError, match=r"layers \[0\] are out of range; tiny-llama has layers 1 to 3 of component mlp"
    ):
        extract(tiny(), TEXTS, component="mlp", layers=[0, 1], **QUIET)


def test_labels_follow_the_order_asked_for(tiny, frame):
    lm = tiny()
    acts = extract(lm, frame, batch_size=3, **QUIET)
    assert acts["statement"].values.tolist() == frame["id"].tolist()
    assert acts["text"].values.tolist() == frame["statement"].tolist()
    assert acts["persona"].values.tolist() == frame["persona"].tolist()
    alone = extract(lm, frame.iloc[[7]], **QUIET)
    np.testing.assert_allclose(acts.sel(statement="s7"), alone.sel(statement="s7"), rtol=1e-5, atol=1e-5)
    chosen = acts.sel(layer=2).sel(persona="b")
    np.testing.assert_array_equal(chosen, acts.values[2, 1::2])
    np.testing.assert_array_equal(acts.sel(layer=2, persona="b"), chosen)
    np.testing.assert_array_equal(acts.sel(direction="positive"), acts.values[:, ::2])


def test_configuration_is_recorded(tiny, frame):
    lm = tiny(template="no-system")
    attrs = extract(lm, frame, position="mean", **QUIET).attrs
    assert attrs["model"] == "tiny-llama"
    assert attrs["fingerprint"] == lm.fingerprint
    assert attrs["template"] == ["<|user|>\n", "</s>\n<|assistant|>\n"]
    assert attrs["role"] == "user (no system role)"
    assert attrs["position"] == "mean"
    assert attrs["model_dtype"] == "float32"
    assert attrs["versions"]["torch"] == torch.__version__


def test_one_pass_a_statement_and_only_the_layers_asked_for(tiny, frame):
    lm = tiny()
    everything = extract(lm, frame, batch_size=4, **QUIET)
    with count_forwards(lm) as sizes:
        acts = extract(lm, frame, layers=[3, 1, 1], batch_size=4, **QUIET)
    assert sizes == [4, 4, 2]
    assert acts["layer"].values.tolist() == [1, 3]
    np.testing.assert_array_equal(acts, everything.sel(layer=[1, 3]))


def test_auto_batch_holds_many_short_statements(tiny):
    lm = tiny()
    with count_forwards(lm) as sizes:
        extract(lm, [f"No {i}." for i in range(40)], **QUIET)
    assert sizes == [40]


@pytest.mark.parametrize(("dtype", "kept"), [("float16", "float16"), ("bfloat16", "float32"), ("float32", "float32")])
def test_dtype_of_the_values(tiny, dtype, kept):
    lm = tiny()
    exact = extract(lm, TEXTS, position="mean", **QUIET)
    lm.model.to(getattr(torch, dtype))
    acts = extract(lm, TEXTS, position="mean", **QUIET)
    assert acts.dtype == kept
    np.testing.assert_allclose(acts.astype("float32"), exact, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("stored", [False, True])
def test_non_finite_activation_names_statement_and_layer(tiny, tmp_path, stored):
    """One token's embedding is broken; at the last position it is seen from layer 1 on."""
    lm = tiny()
    broken = lm.tokenizer("Z")["input_ids"][-1]
    with torch.no_grad():
        lm.model.get_input_embeddings().weight[broken] = float("nan")
    frame = pd.DataFrame({"id": list("abcdefg"), "statement": [*TEXTS, "a bit of Zen here", "fine"]})
    store = tmp_path / "acts.zarr" if stored else None
    with pytest.raises(ValueError, match=r"statement 'f' at layer 1 is not finite.*float32 or bfloat16"):
        extract(lm, frame, batch_size=2, store=store, **QUIET)
    with pytest.raises(ValueError, match=r"statement 'f' at layer 0 is not finite"):
        extract(lm, frame, batch_size=2, position="mean", **QUIET)


def test_statement_longer_than_the_context_window_is_named(tiny):
    lm = tiny(max_position_embeddings=30)
    frame = pd.DataFrame({"id": ["short", "long"], "statement": ["No.", "quite " * 20]})
    n_tokens = len(lm.tokenizer("<|system|>\n" + "quite " * 20 + "</s>\n<|assistant|>\n")["input_ids"])
    with pytest.raises(ValueError, match=rf"statement 'long' takes {n_tokens} tokens.* has 30; shorten it"):
        extract(lm, frame, **QUIET)


def test_statement_that_just_fits_is_taken(tiny):
    n_tokens = len(tiny().tokenizer(TEXTS[2])["input_ids"])
    lm = tiny(max_position_embeddings=n_tokens)
    assert extract(lm, [TEXTS[2]], role="raw", **QUIET).sizes["statement"] == 1
    with pytest.raises(ValueError, match="context window"):
        extract(lm, [TEXTS[2] + "!"], role="raw", **QUIET)


@pytest.mark.parametrize(("layers", "named"), [([0, 4], r"\[4\]"), ([-1], r"\[-1\]"), ([2, 99, 100], r"\[99, 100\]")])
def test_layers_out_of_range(tiny, layers, named):
    with pytest.raises(ValueError, match=rf"layers {named} are out of range; tiny-llama has layers 0 to 3"):
        extract(tiny(), TEXTS, layers=layers, **QUIET)


@pytest.mark.parametrize(
    "nothing", [pd.DataFrame({"statement": []}), pd.DataFrame({"text": ["a"]}), [], pd.DataFrame()]
)
def test_nothing_to_run(tiny, nothing):
    with pytest.raises(ValueError, match="no statements to run"):
        extract(tiny(), nothing, **QUIET)


def test_empty_statement_is_refused(tiny):
    with pytest.raises(ValueError, match="statement number 2 is ''; expected a text that is not empty"):
        extract(tiny(), ["fine", ""], **QUIET)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"position": "first"}, "unknown position 'first'; expected last, statement or mean"),
        ({"component": "attn2"}, "unknown component 'attn2'"),
        ({"role": "assistant"}, "unknown role 'assistant'; expected system, user or raw"),
        ({"batch_size": 0}, "batch_size must be at least 1 or 'auto', not 0"),
        ({"layers": []}, "layers"),
    ],
)
def test_unknown_options(tiny, options, message):
    with pytest.raises(ValueError, match=message):
        extract(tiny(), TEXTS, **options, **QUIET)


@pytest.mark.parametrize("stored", [False, True])
def test_out_of_memory_halves_the_batch(tiny, frame, monkeypatch, tmp_path, caplog, stored):
    lm = tiny()
    expected = extract(lm, frame, batch_size=2, **QUIET)
    forward, sizes = lm.decoder.forward, []

    def scarce(*args, **kwargs):
        sizes.append(len(kwargs["input_ids"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("out of memory")
        return forward(*args, **kwargs)

    monkeypatch.setattr(lm.decoder, "forward", scarce)
    acts = extract(lm, frame, batch_size=8, store=tmp_path / "acts.zarr" if stored else None, **QUIET)
    assert sizes == [8, 4, 2, 2, 4, 2, 2, 2]
    assert "out of memory with 8 statements a batch; going on with 4" in caplog.text
    np.testing.assert_allclose(acts, expected, rtol=1e-5, atol=1e-5)
    assert acts["statement"].values.tolist() == frame["id"].tolist()


@pytest.mark.parametrize(
    "words", ["MPS backend out of memory (MPS allocated: 9 GB)", "can't allocate memory: 12 bytes"]
)
def test_lack_of_memory_that_only_the_text_of_an_error_tells(tiny, monkeypatch, words):
    lm = tiny()
    expected = extract(lm, TEXTS, **QUIET)
    forward = lm.decoder.forward

    def scarce(*args, **kwargs):
        if len(kwargs["input_ids"]) > 1:
            raise RuntimeError(words)
        return forward(*args, **kwargs)

    monkeypatch.setattr(lm.decoder, "forward", scarce)
    np.testing.assert_allclose(extract(lm, TEXTS, **QUIET), expected, rtol=1e-5, atol=1e-5)


def test_other_errors_are_not_taken_for_a_lack_of_memory(tiny, monkeypatch):
    lm, calls = tiny(), []

    def broken(**_kwargs):
        calls.append(1)
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(lm.decoder, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        extract(lm, TEXTS, **QUIET)
    assert len(calls) == 1


def test_a_full_disk_keeps_what_is_there(tiny, frame, monkeypatch, tmp_path):
    lm, write = tiny(), ActivationStore.write

    def fail_in_the_third_batch(self, rows, values):
        if rows[0] >= 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, rows, values)

    with monkeypatch.context() as patch:
        patch.setattr(ActivationStore, "write", fail_in_the_third_batch)
        with pytest.raises(OSError, match="disk is full after 4 of 10 statements; free some space"):
            extract(lm, frame, batch_size=2, store=tmp_path / "acts.zarr", **QUIET)
    with count_forwards(lm) as sizes:
        acts = extract(lm, frame, batch_size=2, store=tmp_path / "acts.zarr", **QUIET)
    assert sum(sizes) == 6
    np.testing.assert_allclose(acts, extract(lm, frame, **QUIET), rtol=1e-5, atol=1e-5)


def test_out_of_memory_with_one_statement_is_raised(tiny, monkeypatch):
    lm = tiny()

    def scarce(**_kwargs):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(lm.decoder, "forward", scarce)
    with pytest.raises(torch.OutOfMemoryError):
        extract(lm, TEXTS, **QUIET)


def state_of(lm):
    """Everything of a model that an extraction could leave changed."""
    modules = list(lm.model.modules())
    return {
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in modules],
        "training": [module.training for module in modules],
        "wants_grad": [weight.requires_grad for weight in lm.model.parameters()],
        "grad": [weight.grad is None for weight in lm.model.parameters()],
        "modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_num_threads()),
        "tokenizer": (lm.tokenizer.padding_side, lm.tokenizer.truncation_side, lm.tokenizer.chat_template),
        "config": lm.model.config.to_dict(),
        "weights": {name: value.clone() for name, value in lm.model.state_dict().items()},
    }


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_model_is_left_as_it_was(tiny, monkeypatch, error, training):
    lm = tiny("gpt-2")
    lm.model.train(training)
    lm.tokenizer.padding_side = "left"
    next(lm.model.parameters()).requires_grad_(False)
    before = state_of(lm)
    if error is None:
        extract(lm, TEXTS, position="mean", batch_size=2, **QUIET)
    else:
        block, calls = lm.blocks[1], []
        forward = block.forward

        def fail_in_the_second_batch(*args, **kwargs):
            calls.append(1)
            if len(calls) == 2:
                raise error
            return forward(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(block, "forward", fail_in_the_second_batch)
            with pytest.raises(error):
                extract(lm, TEXTS, batch_size=2, **QUIET)
    after = state_of(lm)
    weights = before.pop("weights"), after.pop("weights")
    assert before == after
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert sum(after["hooks"]) == 0


def test_a_second_run_gives_the_same_bits(tiny):
    lm = tiny()
    np.testing.assert_array_equal(extract(lm, TEXTS, **QUIET), extract(lm, TEXTS, **QUIET))


def test_hooks_of_the_caller_stay(tiny):
    """An extraction inside somebody's intervention sees the intervention, and leaves its hooks alone."""
    lm, seen = tiny(), []
    _ = lm.max_tokens  # asked once a model, by a small pass of its own
    with hook_component(lm, "resid", [1], lambda layer, _: seen.append(layer)):
        extract(lm, TEXTS, batch_size=5, **QUIET)
        extract(lm, TEXTS, batch_size=5, **QUIET)
    assert seen == [1, 1]


def test_work_still_to_do(tiny, frame, tmp_path):
    lm, store = tiny(), tmp_path / "acts.zarr"
    n_tokens = [
        len(lm.tokenizer(f"<|system|>\n{text}</s>\n<|assistant|>\n", add_special_tokens=False)["input_ids"]) + 1
        for text in frame["statement"]
    ]
    work = plan_work(lm, frame, layers=[0, 2], store=store)
    assert (work.n_statements, work.n_tokens, work.bytes) == (10, sum(n_tokens), 2 * 10 * 32 * 4)
    assert work.seconds > 0
    assert not store.exists()
    extract(lm, frame.head(7), layers=[0, 2], store=store, batch_size=3, **QUIET)
    work = plan_work(lm, frame, layers=[0, 2], store=store)
    assert (work.n_statements, work.n_tokens) == (3, sum(n_tokens[7:]))
    extract(lm, frame, layers=[0, 2], store=store, **QUIET)
    work = plan_work(lm, frame, layers=[0, 2], store=store)
    assert (work.n_statements, work.n_tokens, work.seconds) == (0, 0, 0.0)


@pytest.mark.parametrize("stored", [False, True])
def test_several_positions_are_read_in_one_pass(tiny, tmp_path, stored):
    lm = tiny()
    texts = ["I keep my word.", "I never do, and nobody ever noticed.", "So?"]
    options = {"batch_size": 2, "store": tmp_path / "acts.zarr" if stored else None, "progress": False}
    with count_forwards(lm) as sizes:
        both = extract(lm, texts, position=("last", "mean"), **options)
    assert sum(sizes) == len(texts)
    assert both.dims == ("position", "layer", "statement", "node")
    for name in ("last", "mean"):
        alone = extract(lm, texts, position=name, batch_size=2, progress=False)
        np.testing.assert_array_equal(both.sel(position=name).to_numpy(), alone.to_numpy())
    if stored:
        with count_forwards(lm) as sizes:
            again = extract(lm, [*texts, "One more."], position=("last", "mean"), **options)
        assert sum(sizes) == 1
        np.testing.assert_array_equal(again.to_numpy()[:, :, :3], both.to_numpy())


@pytest.mark.parametrize("position", [(), ("last", "last"), ("last", "first"), "first"])
def test_positions_that_are_none(tiny, position, unchecked):
    with pytest.raises(ValueError, match="expected last, statement or mean"):
        extract(tiny(), ["a"], position=position, progress=False)
