import numpy as np
import pytest
import torch

from utils.causal.interventions import (
    Intervention,
    ablate,
    ablate_along,
    intervene,
    patch_nodes,
    scope_mask,
    steer,
    steer_along,
)
from utils.responses.measures import agreement_readout, likelihood_readout

IDS = torch.tensor([[1, 40, 80, 60], [1, 9, 33, 250]])


def run(lm, *interventions, tokens=None, ids=IDS):
    """Logits, and what enters each block: layer k is the input of block k + 1."""
    hidden = {}
    handles = [
        block.register_forward_pre_hook(
            lambda _module, args, kwargs, k=k: hidden.update({k: args[0] if args else kwargs["hidden_states"]}),
            with_kwargs=True,
        )
        for k, block in enumerate(lm.blocks)
    ]
    try:
        with torch.no_grad(), intervene(lm, *interventions, tokens=tokens):
            return lm.model(ids, use_cache=False).logits, hidden
    finally:
        for handle in handles:
            handle.remove()


def hidden_before(lm, layer):
    return run(lm)[1][layer]


def test_what_changes_nothing_changes_no_bit(tiny):
    lm = tiny()
    plain, _ = run(lm)
    spread, values = np.ones(lm.d_model), np.ones(lm.d_model)
    for nothing in (
        ablate(1, frozenset(), values),
        steer(1, frozenset(), spread, strength=1.0, norm=5.0),
        steer(1, frozenset({(3, 1)}), spread, strength=0.0, norm=5.0),
        steer_along(1, values, strength=0.0, norm=5.0),
        Intervention(1),
    ):
        assert torch.equal(run(lm, nothing)[0], plain)
    everything = ablate(1, {3, 4}, values)
    assert torch.equal(run(lm, everything, tokens=torch.zeros(IDS.shape, dtype=torch.bool))[0], plain)


def test_a_run_patched_with_itself_is_itself(tiny):
    lm = tiny()
    plain, _ = run(lm)
    last = hidden_before(lm, 2)[:, -1].numpy()
    only_last = torch.tensor([[False, False, False, True]] * 2)
    assert torch.equal(run(lm, patch_nodes(2, range(lm.d_model), last), tokens=only_last)[0], plain)


def test_all_nodes_of_the_last_token_patched_give_the_other_runs_logits(tiny):
    lm = tiny()
    plain, hidden = run(lm)
    swapped = hidden[2][[1, 0], -1].numpy()
    only_last = torch.tensor([[False, False, False, True]] * 2)
    # Attention above still reads the other tokens: only where none are left does the whole run go over.
    changed, _ = run(lm, patch_nodes(2, range(lm.d_model), swapped), tokens=only_last)
    assert not torch.allclose(changed[:, -1], plain[[1, 0], -1], atol=1e-3)
    at_top, _ = run(lm, patch_nodes(3, range(lm.d_model), lm_top(lm, [1, 0])), tokens=only_last)
    torch.testing.assert_close(at_top[:, -1], plain[[1, 0], -1], atol=1e-5, rtol=0)


def count_hooks(lm):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in lm.model.modules())


def lm_top(lm, rows):
    kept = {}
    handle = lm.blocks[-1].register_forward_hook(
        lambda _module, _args, out: kept.update(x=out if isinstance(out, torch.Tensor) else out[0])
    )
    with torch.no_grad():
        lm.model(IDS)
    handle.remove()
    return kept["x"][rows, -1].numpy()


def test_ablated_nodes_have_the_given_values_and_others_their_own(tiny):
    lm = tiny()
    values = np.arange(lm.d_model, dtype=float)
    _, hidden = run(lm, ablate(1, frozenset({(4, 1), (7, -1)}), values))
    before = hidden_before(lm, 1)
    assert (hidden[1][..., 4] == 4).all()
    assert (hidden[1][..., 7] == 7).all()
    others = [node for node in range(lm.d_model) if node not in (4, 7)]
    assert torch.equal(hidden[1][..., others], before[..., others])


def test_steering_adds_a_vector_of_the_given_length_along_signed_spreads(tiny):
    lm = tiny()
    spread = np.linspace(1, 2, lm.d_model)
    _, hidden = run(lm, steer(1, frozenset({(4, 1), (7, -1)}), spread, strength=0.25, norm=8.0))
    added = (hidden[1] - hidden_before(lm, 1)).numpy()
    np.testing.assert_allclose(np.linalg.norm(added, axis=-1), 2.0, rtol=1e-5)
    np.testing.assert_allclose(added[..., 4] / added[..., 7], -spread[4] / spread[7], rtol=1e-3)
    assert np.abs(added[..., [0, 5, 31]]).max() == 0


def test_ablating_an_axis_moves_along_it_only(tiny):
    lm = tiny()
    rng = np.random.default_rng(0)
    direction, values = rng.normal(size=(2, lm.d_model))
    unit = direction / np.linalg.norm(direction)
    _, hidden = run(lm, ablate_along(2, direction, values))
    np.testing.assert_allclose(hidden[2].numpy() @ unit, values @ unit, atol=1e-4)
    moved = (hidden[2] - hidden_before(lm, 2)).numpy()
    np.testing.assert_allclose(moved - (moved @ unit)[..., None] * unit, 0, atol=1e-4)


def test_interventions_compose(tiny):
    lm = tiny()
    spread, values = np.ones(lm.d_model), np.zeros(lm.d_model)
    one, two, three = (
        steer(1, frozenset({(2, 1)}), spread, strength=1.0, norm=3.0),
        ablate(1, {2}, values),
        steer(3, frozenset({(5, -1)}), spread, strength=1.0, norm=2.0),
    )
    together, hidden = run(lm, one, two, three)
    assert (hidden[1][..., 2] == 0).all()  # ablated after it was steered
    _, other = run(lm, two, one)
    assert (other[1][..., 2] == 3).all()
    with intervene(lm, one), intervene(lm, two):
        nested, _ = run(lm, three)
    assert torch.equal(nested, together)


def test_only_chosen_tokens_change(tiny):
    lm = tiny()
    tokens = torch.tensor([[False, True, False, False], [False, False, False, True]])
    _, hidden = run(lm, ablate(2, {0, 1}, np.full(lm.d_model, 9.0)), tokens=tokens)
    assert torch.equal((hidden[2][..., :2] == 9).all(-1), tokens)


def test_generated_tokens_follow_the_last_of_the_prompt(tiny):
    lm = tiny(max_position_embeddings=64)
    marked = ablate(1, {0}, np.full(lm.d_model, 7.0))
    for last, expected in ((True, [7.0] * 4), (False, [])):
        seen = []

        def watch(_module, _args, out, seen=seen):
            hidden = out if isinstance(out, torch.Tensor) else out[0]
            seen += [float(x) for x in hidden[0, :, 0] if x == 7.0]

        tokens = torch.tensor([[False, False, False, last]])
        with intervene(lm, marked, tokens=tokens):
            handle = lm.blocks[0].register_forward_hook(watch)
            lm.model.generate(IDS[:1], max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None)
            handle.remove()
        assert seen == expected  # the last of four generated tokens is not run


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_the_model_is_as_before_also_after_an_error(tiny, error):
    lm = tiny()
    plain, _ = run(lm)
    hooks = count_hooks(lm)
    weights = [weight.clone() for weight in lm.model.parameters()]
    with pytest.raises(error), intervene(lm, ablate(1, {3}, np.zeros(lm.d_model))):
        raise error
    assert torch.equal(run(lm)[0], plain)
    assert all(torch.equal(a, b) for a, b in zip(weights, lm.model.parameters(), strict=True))
    assert count_hooks(lm) == hooks


def test_scopes_name_tokens(tiny):
    lm = tiny(max_position_embeddings=256)
    texts = ["I like cats.", "No state helps those in need."]
    for readout, answered in (
        (likelihood_readout(lm.tokenizer, texts), True),
        (agreement_readout(lm.tokenizer, texts), False),
    ):
        for i, text in enumerate(texts):
            ids = readout.prompts[i].ids
            everything, said, last = (scope_mask(readout, scope)[i] for scope in ("all", "statement", "last"))
            assert list(everything) == [False] + [True] * (len(ids) - 1)
            assert text in lm.tokenizer.decode([ids[place] for place in np.flatnonzero(said)])
            before = np.flatnonzero(said)[0] - 1 if answered else len(ids) - 1
            assert list(np.flatnonzero(last)) == [before]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: ablate(1, {d}, np.zeros(d)), "out of range"),
        (lambda d: ablate(1, {-1}, np.zeros(d)), "out of range"),
        (lambda d: ablate(1, frozenset({(3, 1), (3, -1)}), np.zeros(d)), "more than once"),
        (lambda d: steer(1, frozenset({(3, 0)}), np.ones(d), strength=1.0, norm=1.0), "no sign"),
        (lambda d: ablate_along(1, np.zeros(d), np.zeros(d)), "no axis"),
    ],
)
def test_bad_sets_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make(32)


def test_bad_runs_are_named(tiny):
    lm = tiny()
    for wrong, message in (
        (Intervention(9), "out of range"),
        (ablate(1, {40}, np.zeros(48)), "out of range"),
        (ablate(1, {3}, np.zeros(16)), "16 nodes"),
    ):
        with pytest.raises(ValueError, match=message):
            run(lm, wrong)
    with pytest.raises(ValueError, match="one place for each token"):
        run(lm, ablate(1, {3}, np.zeros(lm.d_model)), tokens=torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="values of 3 rows"):
        run(lm, ablate(1, {3}, np.zeros((3, lm.d_model))))
