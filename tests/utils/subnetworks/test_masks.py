import os

import numpy as np
import pytest
import torch
from tiny import ARCHITECTURES

from utils.models.load import load_model
from utils.subnetworks.build import PersonaMask, calibrate, contrastive_masks, persona_mask
from utils.subnetworks.linears import Linear

IDS = torch.tensor([[1, 40, 50, 60, 7], [1, 45, 9, 81, 33]])
POSITIVE, NEGATIVE = ["I like cats.", "The state ought to help."], ["I like dogs.", "No."]
QUIET = {"progress": False}


def make_masks(lm, score="relu", **options):
    return contrastive_masks(lm, calibrate(lm, POSITIVE, NEGATIVE, **QUIET), score=score, **options, **QUIET)


def logits(lm):
    with torch.no_grad():
        return lm.model(IDS, use_cache=False).logits


def copy_weights(lm):
    return {name: weight.detach().clone() for name, weight in lm.model.named_parameters()}


def assert_same_bits(lm, state):
    for name, weight in lm.model.named_parameters():
        assert torch.equal(weight.detach().view(torch.uint8), state[name].view(torch.uint8)), name


@pytest.mark.parametrize("gamma", [0.0, 0.25, -1.0])
@pytest.mark.parametrize("kind", ["llama", "gpt-2", "falcon", "mixtral"])
def test_only_what_is_not_kept_is_scaled(tiny, kind, gamma):
    lm = tiny(kind)
    mask, _ = make_masks(lm)
    state = copy_weights(lm)
    covered = {linear.name: linear for linear in mask.bits}
    with mask.applied(lm, gamma):
        for name, weight in lm.model.named_parameters():
            expected = state[name]
            if name in covered:
                kept = torch.from_numpy(mask.kept(covered[name]))
                expected = torch.where(kept.T if covered[name].transposed else kept, expected, expected * gamma)
            assert torch.equal(weight, expected)
    assert_same_bits(lm, state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_come_back_bit_for_bit(tiny, dtype):
    """Infinities, NaN with their payload and the sign of zero among them; and while applied, what is cut is 0."""
    lm = tiny()
    lm.model.to(dtype)
    mask, _ = make_masks(lm)
    linear = next(iter(mask.bits))
    out = np.argwhere(~mask.kept(linear))
    odd = [-0.0, float("inf"), float("nan"), -float("inf")]
    with torch.no_grad():
        for (row, column), value in zip(out, odd, strict=False):
            linear.weight(lm)[row, column] = value
    mask = PersonaMask(mask.bits, {**mask.config, "fingerprint": lm.fingerprint})
    state = copy_weights(lm)
    for gamma in (0.0, 0.5):
        with mask.applied(lm, gamma):
            if not gamma:
                assert all(linear.weight(lm)[row, column] == 0 for row, column in out)
        assert_same_bits(lm, state)


@pytest.mark.parametrize("kind", ["llama", "gpt-2"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_compiled_loops_do_what_boolean_indexing_does(tiny, monkeypatch, dtype, kind):
    """The loops are for the CPU; what other devices are given is run here as well, and both leave the same bits."""
    lm, found = tiny(kind), []
    lm.model.to(dtype)
    mask, other = make_masks(lm)
    for compiled in (True, False):
        monkeypatch.setattr("utils.subnetworks.pruning._compiled", lambda _weight, compiled=compiled: compiled)
        state = copy_weights(lm)
        with mask.applied(lm, 0.5) as active:
            scaled = copy_weights(lm)
            active.switch(other)
            found.append((scaled, copy_weights(lm)))
        assert_same_bits(lm, state)
    for one, two in zip(*found, strict=True):
        assert all(torch.equal(one[name].view(torch.uint8), two[name].view(torch.uint8)) for name in one)


def test_a_mask_that_keeps_all_or_nothing_of_a_matrix(tiny):
    lm = tiny()
    mask, _ = make_masks(lm)
    names = list(mask.bits)
    bits = {names[0]: np.full_like(mask.bits[names[0]], 255), names[1]: np.zeros_like(mask.bits[names[1]])}
    state = copy_weights(lm)
    with PersonaMask({**mask.bits, **bits}, mask.config).applied(lm):
        assert torch.equal(names[0].weight(lm), state[names[0].name])
        assert not names[1].weight(lm).any()
    assert_same_bits(lm, state)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_weights_come_back_after_an_error(tiny, error):
    lm = tiny()
    a, b = make_masks(lm)
    state = copy_weights(lm)
    with pytest.raises(error):
        _fail_under(a, b, lm, error)
    assert_same_bits(lm, state)


def _fail_under(mask, other, lm, error):
    with mask.applied(lm) as active:
        active.switch(other)
        raise error


@pytest.mark.parametrize("at", range(0, 21, 4))
def test_weights_come_back_after_an_interruption_while_cutting(tiny, monkeypatch, at):
    """Ctrl-C before any of the matrices has been cut, and again while they are put back."""
    lm, calls = tiny(), []
    mask, _ = make_masks(lm)
    state, real = copy_weights(lm), Linear.weight

    def interrupted(linear, lm):
        calls.append(linear)
        if len(calls) in (at + 1, at + 3):
            raise KeyboardInterrupt
        return real(linear, lm)

    monkeypatch.setattr(Linear, "weight", interrupted)
    with pytest.raises(KeyboardInterrupt), mask.applied(lm):
        pass
    monkeypatch.undo()
    assert_same_bits(lm, state)


def test_switching_is_leaving_one_and_applying_the_other(tiny):
    lm = tiny()
    a, b = make_masks(lm)
    state, dense = copy_weights(lm), logits(lm)
    with b.applied(lm):
        expected = logits(lm)
    with a.applied(lm) as active:
        assert not torch.equal(logits(lm), expected)
        active.switch(b)
        assert torch.equal(logits(lm), expected)
    assert_same_bits(lm, state)
    assert torch.equal(logits(lm), dense)


def test_only_the_values_that_were_cut_are_held(tiny):
    lm = tiny()
    mask, _ = make_masks(lm, sparsity=0.75)
    table = mask.table()
    with mask.applied(lm) as active:
        assert active.n_values == (table["weights"] - table["kept"]).sum()
    assert active.n_values == 0


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_the_saved_checkpoint_gives_the_same_logits(tiny, tmp_path, kind):
    lm = tiny(kind)
    mask, _ = make_masks(lm)
    state, fingerprint = copy_weights(lm), lm.fingerprint
    with mask.applied(lm):
        expected = logits(lm)
    assert not torch.equal(expected, logits(lm))
    mask.save_model(tmp_path / "masked", lm)
    assert_same_bits(lm, state)
    assert lm.fingerprint == fingerprint
    assert torch.equal(logits(load_model(tmp_path / "masked", device="cpu")), expected)
    assert [path.name for path in tmp_path.iterdir()] == ["masked"]
    with pytest.raises(FileExistsError, match="is there already"):
        mask.save_model(tmp_path / "masked", lm)


def test_the_model_is_loaded_by_the_name_in_the_record(tiny, tmp_path, monkeypatch):
    lm, asked = tiny(), []
    mask, _ = make_masks(lm)

    def load(name, **options):
        asked.append((name, options))
        return lm

    monkeypatch.setattr("utils.subnetworks.masks.load_model", load)
    mask.save_model(tmp_path / "masked")
    assert asked == [("tiny-llama", {"dtype": "float32", "revision": None})]
    with mask.applied(lm):
        expected = logits(lm)
    assert torch.equal(logits(load_model(tmp_path / "masked", device="cpu")), expected)


def test_generation_works_under_the_mask(tiny):
    lm = tiny()
    mask, _ = make_masks(lm)
    with mask.applied(lm):
        generated = lm.model.generate(IDS[:1], max_new_tokens=4, min_new_tokens=4, do_sample=False)
        with torch.no_grad():
            assert int(lm.model(generated[:, :-1]).logits[0, -1].argmax()) == int(generated[0, -1])
    assert generated.shape == (1, 9)


@pytest.mark.parametrize("kind", ["llama", "gpt-2"])
def test_file_round_trip_and_size(tiny, tmp_path, kind):
    lm = tiny(kind, **({"hidden_size": 256, "intermediate_size": 512} if kind == "llama" else {"n_embd": 256}))
    mask, _ = make_masks(lm)
    mask.save(tmp_path / "m.safetensors")
    read = PersonaMask.load(tmp_path / "m.safetensors")
    assert (read.config, read.seen) == (mask.config, mask.seen)
    assert list(read.bits) == list(mask.bits)
    assert all(np.array_equal(read.bits[linear], mask.bits[linear]) for linear in mask.bits)
    assert os.path.getsize(tmp_path / "m.safetensors") <= 1.05 * mask.table()["weights"].sum() / 8


def test_and_or_and_jaccard_by_layer(tiny):
    lm = tiny()
    a, b = make_masks(lm)
    both, either = a & b, a | b
    for linear in a.bits:
        assert np.array_equal(both.kept(linear), a.kept(linear) & b.kept(linear))
        assert np.array_equal(either.kept(linear), a.kept(linear) | b.kept(linear))
    for layer, value in a.jaccard(b).items():
        own = [linear for linear in a.bits if linear.layer == layer]
        shared = sum((a.kept(linear) & b.kept(linear)).sum() for linear in own)
        union = sum((a.kept(linear) | b.kept(linear)).sum() for linear in own)
        assert value == pytest.approx(shared / union)
    assert list(a.jaccard(a)) == [1, 1, 1]
    # What was combined is a mask like any other.
    with both.applied(lm):
        assert logits(lm).isfinite().all()


def test_independent_masks_agree_as_expected(tiny):
    lm = tiny("llama", hidden_size=128, intermediate_size=256)
    calibration = calibrate(lm, POSITIVE, NEGATIVE, **QUIET)
    a, b = (persona_mask(lm, calibration, score="random", sparsity=0.7, rng=seed, **QUIET) for seed in (0, 1))
    table = a.overlap(b)
    np.testing.assert_allclose(table["jaccard"], table["expected_jaccard"], atol=0.01)


def test_a_mask_for_another_dtype(tiny):
    lm = tiny()
    mask, _ = make_masks(lm)
    lm.model.to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"made for tiny-llama in float32 .* this is tiny-llama in bfloat16"):
        mask.check_model(lm)


def test_a_mask_for_another_model(tiny):
    (a, _), other = make_masks(tiny()), tiny(seed=3)
    b, _ = make_masks(other)
    with pytest.raises(ValueError, match="the mask was made for tiny-llama"), a.applied(other):
        pass
    with pytest.raises(ValueError, match="of different models"):
        a & b
    state = copy_weights(other)
    with pytest.raises(ValueError, match="another model"), b.applied(other) as active:
        active.switch(a)
    assert_same_bits(other, state)


def test_one_mask_at_a_time(tiny):
    lm = tiny()
    a, b = make_masks(lm)
    state = copy_weights(lm)
    with a.applied(lm), pytest.raises(ValueError, match="one mask at a time"), b.applied(lm):
        pass
    assert_same_bits(lm, state)


def test_masks_of_different_scope_cannot_be_compared(tiny):
    lm = tiny()
    a, _ = make_masks(lm)
    b, _ = make_masks(lm, scope="mlp")
    with pytest.raises(ValueError, match="cover different layers"):
        a.jaccard(b)


def test_truncated_and_foreign_files(tiny, tmp_path):
    path = tmp_path / "m.safetensors"
    lm = tiny()
    make_masks(lm)[0].save(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="holds no mask, or is cut short"):
        PersonaMask.load(path)
    calibrate(lm, POSITIVE, NEGATIVE, **QUIET).save(path)
    with pytest.raises(ValueError, match="holds no mask"):
        PersonaMask.load(path)
