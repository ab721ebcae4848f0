import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import save_file
from tiny import ARCHITECTURES

from utils.statements.splits import name_seen
from utils.subnetworks.calibration import Calibration, calibrate, calibrate_labellings
from utils.subnetworks.linears import find_linears

POSITIVE = ["I like cats.", "People should keep what they earn, and so do I.", "The state ought to help."]
NEGATIVE = ["I like dogs and cats and dogs.", "No."]


def inputs_one_by_one(lm, texts):
    """By layer, the inputs of every statement, (tokens, in), each run by itself without padding."""
    seen = {linear: [] for linear in find_linears(lm)}
    handles = [
        lm.model.get_submodule(linear.module).register_forward_pre_hook(
            lambda _module, args, linear=linear: seen[linear].append(
                args[0].reshape(-1, linear.shape[1]).double().numpy()
            )
        )
        for linear in seen
    ]
    for text in texts:
        ids = lm.tokenizer(f"<|system|>\n{text}</s>\n<|assistant|>\n")["input_ids"]
        with torch.no_grad():
            lm.model(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_moments_are_those_of_statements_run_one_by_one(tiny, kind):
    lm = tiny(kind)
    found = calibrate(lm, POSITIVE, NEGATIVE, batch_size=2, progress=False)
    for side, texts in (("positive", POSITIVE), ("negative", NEGATIVE)):
        for linear, parts in inputs_one_by_one(lm, texts).items():
            name, tokens = linear.name, np.concatenate(parts)
            norms = np.stack([np.linalg.norm(part, axis=0) for part in parts])
            rates = np.stack([np.sqrt((part**2).mean(0)) for part in parts])
            assert found.n_tokens[side] == len(tokens)
            assert found.n_statements[side] == len(texts)
            close = {"rtol": 1e-3, "atol": 1e-4 * np.abs(tokens).max()}
            np.testing.assert_allclose(found.mean(side, name), tokens.mean(0), **close)
            np.testing.assert_allclose(found.variance(side, name), tokens.var(0), **close)
            np.testing.assert_allclose(found.rms(side, name), np.sqrt((tokens**2).mean(0)), **close)
            np.testing.assert_allclose(found.norm(side, name), np.linalg.norm(tokens, axis=0), **close)
            for normalised, expected in ((True, rates), (False, norms)):
                mean, variance = found.norm_moments(side, name, length_normalised=normalised)
                np.testing.assert_allclose(mean, expected.mean(0), **close)
                np.testing.assert_allclose(variance, expected.var(0), rtol=1e-2, atol=1e-3 * expected.max() ** 2)


def test_padding_takes_no_part(tiny, monkeypatch):
    """A batch of very different lengths and one statement a batch give the same sums."""
    lm = tiny()
    a = calibrate(lm, [*POSITIVE, "x"], NEGATIVE, batch_size=4, progress=False)
    monkeypatch.setattr("utils.subnetworks.input_sums._CHUNK", 1)
    b = calibrate(lm, [*POSITIVE, "x"], NEGATIVE, batch_size=1, progress=False)
    for name in a.sums["positive"]:
        np.testing.assert_allclose(a.sums["positive"][name], b.sums["positive"][name], rtol=1e-4, atol=1e-4)


def test_several_labellings_at_once_are_each_as_if_alone(tiny):
    """A text on both sides, on one side twice, and sides that swap: each statement runs once and counts as it should."""
    lm = tiny()
    labellings = [(POSITIVE, NEGATIVE), (NEGATIVE, [POSITIVE[0], *POSITIVE]), ([*NEGATIVE, POSITIVE[1]], POSITIVE[:2])]
    together = calibrate_labellings(lm, labellings, progress=False)
    for found, sides in zip(together, labellings, strict=True):
        alone = {
            side: inputs_one_by_one(lm, texts) for side, texts in zip(("positive", "negative"), sides, strict=True)
        }
        for side, parts in alone.items():
            for linear, inputs in parts.items():
                norms = np.stack([np.linalg.norm(each, axis=0) for each in inputs])
                assert (found.n_statements[side], found.n_tokens[side]) == (len(inputs), sum(map(len, inputs)))
                mean, _ = found.norm_moments(side, linear.name, length_normalised=False)
                np.testing.assert_allclose(mean, norms.mean(0), rtol=1e-3, atol=1e-4 * norms.max())
        assert found.seen == name_seen([*sides[0], *sides[1]])


def test_each_statement_runs_once(tiny, monkeypatch):
    lm, given = tiny(), []
    find_linears(lm)  # looks the model over with a small pass of its own
    real = lm.decoder.forward
    monkeypatch.setattr(
        lm.decoder, "forward", lambda **options: given.append(len(options["input_ids"])) or real(**options)
    )
    calibrate_labellings(lm, [(POSITIVE, NEGATIVE), (NEGATIVE, POSITIVE)], progress=False)
    assert sum(given) == len({*POSITIVE, *NEGATIVE})


def test_sums_are_double_precision(tiny):
    """Layers that share their input hold the very same sums, and the mean square is exact to more than float32."""
    found = calibrate(tiny(), POSITIVE, NEGATIVE, progress=False)
    q, k = (found.sums["positive"][f"model.layers.1.self_attn.{name}.weight"] for name in ("q_proj", "k_proj"))
    assert q.dtype == np.float64
    assert np.array_equal(q, k)
    assert not np.array_equal(q, q.astype(np.float32))
    # Σ‖x‖² = Σ (‖x‖²/tokens)·tokens for a single statement, which only holds to this precision in float64.
    single = calibrate(tiny(), POSITIVE[:1], NEGATIVE, progress=False)
    for sums in single.sums["positive"].values():
        np.testing.assert_allclose(sums[4] * single.n_tokens["positive"], sums[1], rtol=1e-13)


def test_saved_and_read_back(tiny, tmp_path):
    frame = pd.DataFrame({"statement": POSITIVE, "pair": ["a", "b", None]})
    made = calibrate(tiny(), frame, NEGATIVE, progress=False)
    made.save(tmp_path / "deep" / "c.safetensors")
    read = Calibration.load(tmp_path / "deep" / "c.safetensors")
    assert (read.linears, read.config, read.seen) == (made.linears, made.config, made.seen)
    assert (read.n_tokens, read.n_statements) == (made.n_tokens, made.n_statements)
    assert all(np.array_equal(read.sums[side][n], made.sums[side][n]) for side in made.sums for n in made.sums[side])
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["c.safetensors"]
    assert {"pair a", "pair b"} < read.seen
    assert name_seen([f" {NEGATIVE[0]}"]) < read.seen


def test_the_head_can_be_calibrated(tiny):
    lm = tiny("llama", tie_word_embeddings=False)
    found = calibrate(lm, POSITIVE, NEGATIVE, head=True, progress=False)
    assert found.linears[-1].part == "head"
    assert found.rms("positive", "lm_head.weight").shape == (32,)


@pytest.mark.parametrize("sides", [([], NEGATIVE), (POSITIVE, [])])
def test_an_empty_side(tiny, sides):
    with pytest.raises(ValueError, match="has no statements to calibrate on"):
        calibrate(tiny(), *sides, progress=False)


def test_inputs_that_are_not_finite(tiny):
    lm = tiny()
    with torch.no_grad():
        lm.blocks[1].mlp.up_proj.weight[0, 0] = float("inf")
    with pytest.raises(ValueError, match=r"down_proj.weight is not finite"):
        calibrate(lm, POSITIVE, NEGATIVE, progress=False)


def test_hooks_are_gone_afterwards(tiny):
    lm = tiny()
    calibrate(lm, POSITIVE, NEGATIVE, progress=False)
    assert not any(module._forward_pre_hooks for module in lm.model.modules())


def test_truncated_and_foreign_files(tiny, tmp_path):
    path = tmp_path / "c.safetensors"
    calibrate(tiny(), POSITIVE, NEGATIVE, progress=False).save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="holds no calibration, or is cut short"):
        Calibration.load(path)
    path.write_text("{}")
    with pytest.raises(ValueError, match="holds no calibration"):
        Calibration.load(path)
    save_file({"x": np.zeros(1)}, path, metadata={"mask": "{}"})
    with pytest.raises(ValueError, match="holds no calibration, but mask"):
        Calibration.load(path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        Calibration.load(tmp_path / "none")
