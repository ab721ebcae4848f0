import numpy as np
import pytest
import torch
from sided import make_vectors
from tiny import ARCHITECTURES

from utils.causal.interventions import Intervention, steer
from utils.models.generation import continue_ids
from utils.vectors.steering import ablate_vectors, add_vectors, cap_vectors, steering

IDS = torch.tensor([[1, 40, 80, 60, 7], [1, 9, 33, 250, 99]])
PROMPTS = [[1, 40, 80, 60, 7, 21], [1, 9, 33, 250]]


def logits(lm, ids=IDS, **options):
    with torch.no_grad():
        return lm.model(ids, **{"use_cache": False, **options}).logits


def residuals(lm, layer, ids=IDS):
    """What enters block layer + 1."""
    kept = []
    handle = lm.blocks[layer].register_forward_pre_hook(
        lambda _module, args, kwargs: kept.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    logits(lm, ids)
    handle.remove()
    return kept[0]


def count_hooks(lm):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in lm.model.modules())


def test_strength_0_and_caps_outside_the_seen_range_change_no_bit(tiny):
    lm = tiny()
    vectors = make_vectors(lm)
    plain = logits(lm)
    seen = residuals(lm, 2) @ torch.tensor(vectors.units[2].T) / vectors.norms[2]
    low, high = float(seen.min()) - 1e-3, float(seen.max()) + 1e-3
    for nothing in (
        [],
        add_vectors(lm, vectors, 0.0, layers=[1, 2]),
        cap_vectors(lm, vectors, low, high, layers=2),
        cap_vectors(lm, vectors, -np.inf, np.inf, layers=2),
    ):
        with steering(lm, nothing, first=True):
            assert torch.equal(logits(lm), plain)
            assert torch.equal(logits(lm), plain)
    # The same bounds drawn in do change something.
    with steering(lm, cap_vectors(lm, vectors, low / 2, high / 2, layers=2)):
        assert not torch.equal(logits(lm), plain)


def test_what_each_does_to_the_residual_stream(tiny):
    lm = tiny()
    vectors = make_vectors(lm)
    units = torch.tensor(vectors.units[1])
    plain = residuals(lm, 1)
    with steering(lm, add_vectors(lm, vectors, {"warm": 0.5}, layers=1)):
        added = residuals(lm, 1)
    torch.testing.assert_close(added[:, 1:], plain[:, 1:] + 0.5 * 3.0 * units[0], atol=1e-5, rtol=0)
    assert torch.equal(added[:, 0], plain[:, 0])
    with steering(lm, ablate_vectors(lm, vectors, layers=1), first=True):
        out = residuals(lm, 1)
    torch.testing.assert_close(out @ units.T, torch.zeros(2, 5, 2), atol=1e-5, rtol=0)
    # Nothing at right angles to both vectors is touched.
    basis = torch.linalg.qr(units.T).Q
    torch.testing.assert_close(out, plain - plain @ basis @ basis.T, atol=1e-5, rtol=0)
    with steering(lm, cap_vectors(lm, vectors["warm"], -0.05, 0.1, layers=1)):
        place = residuals(lm, 1) @ units[0]
    expected = (plain @ units[0]).clamp(-0.05 * 3, 0.1 * 3)
    expected[:, 0] = (plain @ units[0])[:, 0]
    torch.testing.assert_close(place, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("tokens", ["all", "prompt", "answer"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_with_a_cache_as_without_one(tiny, kind, tokens):
    lm = tiny(kind)
    vectors = make_vectors(lm)
    changes = [
        *add_vectors(lm, vectors["warm"], 2.0, layers=[0, 2]),
        *cap_vectors(lm, vectors["terse"], -0.1, 0.2, layers=1),
    ]
    made = {}
    for use_cache in (True, False):
        with steering(lm, changes, tokens=tokens):
            made[use_cache] = generate(lm, PROMPTS, use_cache=use_cache)
        # A batch with padding gives what each prompt gives by itself.
        with steering(lm, changes, tokens=tokens):
            assert made[use_cache] == [generate(lm, [prompt], use_cache=use_cache)[0] for prompt in PROMPTS]
    assert made[True] == made[False]
    for prompt, answer in zip(PROMPTS, made[True], strict=True):
        whole = torch.tensor([[*prompt, *answer]])
        mask = torch.ones_like(whole, dtype=torch.bool)
        mask[:, 0] = False
        if tokens == "prompt":
            mask[:, len(prompt) :] = False
        if tokens == "answer":
            mask[:, : len(prompt)] = False
        # One pass over the whole sequence says at each place what was said there.
        by_hand = steer_by_hand(lm, changes, whole, mask)
        assert (by_hand - logits(lm, whole)).abs().max() > 0.01
        assert by_hand[0, len(prompt) - 1 : -1].argmax(-1).tolist() == answer


def steer_by_hand(lm, changes, whole, mask):
    handles = []
    for one in changes:
        module = lm.blocks[one.layer] if one.layer < lm.n_layers else None
        assert module is not None

        def hook(_module, args, kwargs, one=one):
            if args:
                return (one.apply(args[0], mask), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": one.apply(kwargs["hidden_states"], mask)}

        handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        return logits(lm, whole)
    finally:
        for handle in handles:
            handle.remove()


def generate(lm, prompts, n=5, **options):
    lm.model.generation_config.eos_token_id = None
    lm.tokenizer.eos_token = "<|user|>"
    return continue_ids(lm.model, lm.tokenizer, prompts, device=lm.device, max_tokens=n, **options)


def test_the_parts_of_one_context_add_up_to_all(tiny):
    lm = tiny()
    change = add_vectors(lm, make_vectors(lm)["warm"], 1.0, layers=1)
    with steering(lm, change):
        whole = generate(lm, PROMPTS)
    with steering(lm, change, tokens="prompt"), steering(lm, change, tokens="answer"):
        assert generate(lm, PROMPTS) == whole


def test_hooks_are_gone_after_an_exception(tiny):
    lm = tiny()
    before, plain = count_hooks(lm), logits(lm)
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error):
            break_off(lm, error)
        assert count_hooks(lm) == before
    with pytest.raises(IndexError), steering(lm, add_vectors(lm, make_vectors(lm), 1.0, layers=1)):
        logits(lm, torch.tensor([[10_000]]))
    assert count_hooks(lm) == before
    assert torch.equal(logits(lm), plain)


def break_off(lm, error):
    with steering(lm, add_vectors(lm, make_vectors(lm), 1.0, layers=1)):
        logits(lm)
        raise error


def test_node_sets_and_nested_contexts_work_while_speaking(tiny):
    lm = tiny()
    vectors = make_vectors(lm)
    nodes = steer(1, frozenset({(3, 1), (9, -1)}), np.ones(lm.d_model), strength=2.0, norm=3.0)
    both = [nodes, *add_vectors(lm, vectors["warm"], 1.0, layers=1)]
    with steering(lm, both):
        together = lm.generate("Cats?", max_tokens=8)
    with steering(lm, both[0]), steering(lm, both[1]):
        assert lm.generate(["Cats?"], max_tokens=8) == together
    assert lm.generate("Cats?", max_tokens=8) != together


def test_half_precision(tiny):
    lm = tiny()
    lm.model.to(torch.bfloat16)
    vectors = make_vectors(lm)
    plain = logits(lm)
    with steering(lm, cap_vectors(lm, vectors, -100, 100, layers=1)):
        assert torch.equal(logits(lm), plain)
    with steering(lm, cap_vectors(lm, vectors["warm"], 0.1, 0.1, layers=1), first=True):
        place = residuals(lm, 1).float() @ torch.tensor(vectors.units[1, 0]) / 3.0
    torch.testing.assert_close(place, torch.full_like(place, 0.1), atol=0.02, rtol=0)


def test_bad_input(tiny, unchecked):
    lm = tiny()
    vectors = make_vectors(lm)
    with pytest.raises(ValueError, match=r"say at which, such as layers=2"):
        add_vectors(lm, vectors, 0.3)
    with pytest.raises(ValueError, match="give a finite number"):
        add_vectors(lm, vectors, float("nan"), layers=1)
    with pytest.raises(ValueError, match="unknown persona 'warmth'; did you mean warm"):
        add_vectors(lm, vectors, {"warmth": 0.3}, layers=1)
    with pytest.raises(ValueError, match=r"no vectors at layers \[12\]"):
        add_vectors(lm, vectors, 0.3, layers=12)
    with pytest.raises(ValueError, match="the vectors are of tiny-llama"):
        add_vectors(tiny(seed=1), vectors, 0.3, layers=1)
    with pytest.raises(ValueError, match="expected the lower one first"):
        cap_vectors(lm, vectors, 0.3, 0.1, layers=1)
    with pytest.raises(ValueError, match="unknown part 'some'"), steering(lm, Intervention(1), tokens="some"):
        pass
