import numpy as np
import pytest
import torch
from tiny import ARCHITECTURES

from utils.models.components import hook_component
from utils.models.hooks import first_tensor

IDS = torch.tensor([[1, 40, 50, 60, 7]])


def n_hooks(lm):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules())


def forward(lm):
    with torch.no_grad():
        return lm.model(IDS).logits


def states_of(lm):
    """What transformers calls hidden states; it leaves hooks of its own behind."""
    with torch.no_grad():
        return lm.model(IDS, output_hidden_states=True).hidden_states


@pytest.mark.parametrize("kind", ["llama", "gpt-2", "opt", "falcon"])
def test_every_layer_is_handed_over_once_and_in_order(tiny, kind):
    lm, seen = tiny(kind), {}
    with hook_component(lm, "resid", [0, 1, 2, 3], lambda layer, hidden: seen.update({layer: hidden.clone()})):
        states = states_of(lm)
    assert list(seen) == [0, 1, 2, 3]
    for layer in range(3):
        assert torch.equal(seen[layer], states[layer])
    norm = lm.decoder.get_submodule(ARCHITECTURES[kind][2])
    with torch.no_grad():
        assert torch.allclose(norm(seen[3]), states[3], atol=1e-5)


def test_only_the_layers_asked_for(tiny):
    lm, seen = tiny(), []
    with hook_component(lm, "resid", [2], lambda layer, hidden: seen.append((layer, hidden.shape))):
        assert n_hooks(lm) == 1
        forward(lm)
    assert seen == [(2, (1, 5, 32))]


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_hooks_are_gone_afterwards(tiny, error):
    lm = tiny()
    before = forward(lm)

    def run():
        with hook_component(lm, "resid", [0, 1, 3], lambda *_: None):
            assert n_hooks(lm) == 3
            if error:
                raise error

    if error:
        with pytest.raises(error):
            run()
    else:
        run()
    assert n_hooks(lm) == 0
    assert torch.equal(forward(lm), before)


def test_error_in_the_catcher_is_not_swallowed(tiny):
    lm = tiny()

    def catch(layer, _hidden):
        raise ValueError(f"caught {layer}")

    with pytest.raises(ValueError, match="caught 2"), hook_component(lm, "resid", [2], catch):
        forward(lm)
    assert n_hooks(lm) == 0


def test_layer_that_is_not_there_leaves_no_hook(tiny):
    lm = tiny()
    hooks = hook_component(lm, "resid", [0, 1, 9], lambda *_: None)
    with pytest.raises(ValueError, match="layers \\[9\\] are out of range"), hooks:
        pass
    assert n_hooks(lm) == 0


def test_watching_does_not_change_the_model(tiny):
    lm = tiny()
    before = forward(lm)
    with hook_component(lm, "resid", [0, 1, 2, 3], lambda *_: None):
        assert torch.equal(forward(lm), before)


def test_nested_watches_each_take_their_own_away(tiny):
    lm, outer, inner = tiny(), [], []
    with hook_component(lm, "resid", [1], lambda layer, _: outer.append(layer)):
        with hook_component(lm, "resid", [1, 2], lambda layer, _: inner.append(layer)):
            forward(lm)
        forward(lm)
    forward(lm)
    assert (outer, inner) == ([1, 1], [1, 2])


def test_block_called_with_keywords(tiny):
    """Some models hand the hidden states over by name."""
    lm, seen = tiny(), []
    states = states_of(lm)
    positions = torch.arange(5)[None]
    with hook_component(lm, "resid", [0], lambda _, hidden: seen.append(hidden)), torch.no_grad():
        rotary = lm.decoder.rotary_emb(states[0], positions)
        lm.blocks[0](hidden_states=states[0], position_embeddings=rotary, position_ids=positions)
    np.testing.assert_array_equal(seen[0], states[0])


def test_first_tensor():
    tensor = torch.zeros(1)
    assert first_tensor(tensor) is tensor
    assert first_tensor((tensor, None)) is tensor
