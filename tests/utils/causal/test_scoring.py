import numpy as np
import pytest
import torch
from tiny import ARCHITECTURES

from utils.causal.interventions import Intervention, ablate, ablate_along, intervene, patch_nodes, scope_mask, steer
from utils.causal.scoring import cache_prompts, mean_residuals, score_interventions
from utils.responses.measures import agreement_readout, likelihood_readout

STATEMENTS = ["I like cats.", "Those in need are many and so it goes.", "No state helps."]
QUIET = {"progress": False}


def one_by_one(lm, readout, intervention, scope):
    """The readout under an intervention, each prompt by itself through the whole model."""
    found = []
    for place, (prompt, mask) in enumerate(zip(readout.prompts, scope_mask(readout, scope), strict=True)):
        own = intervention
        if own.values is not None and own.values.ndim == 2:
            own = Intervention(own.layer, own.nodes, own.axis, own.values[place])
        with torch.no_grad(), intervene(lm, own, tokens=torch.from_numpy(mask)[None]):
            logits = lm.model(torch.tensor([prompt.ids]), use_cache=False).logits[0]
        found.append(readout.score(logits[prompt.start - 1 : prompt.stop - 1].float(), place))
    return found


def some_interventions(lm, layer, n_prompts):
    rng = np.random.default_rng(0)
    nodes = frozenset({(1, 1), (5, -1), (30, 1)})
    rows = rng.normal(size=(n_prompts, lm.d_model))
    return [
        steer(layer, nodes, np.linspace(1, 2, lm.d_model), strength=0.5, norm=3.0),
        ablate(layer, nodes, rows[0]),
        ablate_along(layer, rows[1], rows[0]),
        patch_nodes(layer, nodes, rows),
        Intervention(layer),
    ]


def make(tiny, kind, **options):
    wide = {"n_positions": 256} if kind == "gpt-2" else {"max_position_embeddings": 256}
    return tiny(kind, **wide, **options)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_scores_are_those_of_each_prompt_by_itself(tiny, kind):
    lm = make(tiny, kind, template="long")
    for readout in (likelihood_readout(lm.tokenizer, STATEMENTS), agreement_readout(lm.tokenizer, STATEMENTS)):
        for layer, scope in ((0, "all"), (1, "all"), (2, "statement"), (2, "last"), (3, "all")):
            changes = some_interventions(lm, layer, len(STATEMENTS))
            expected = [one_by_one(lm, readout, change, scope) for change in changes]
            found = score_interventions(lm, readout, changes, scope=scope, **QUIET)
            np.testing.assert_allclose(found, expected, atol=2e-4)
            # Without values of each prompt's own, what the prompts begin with is run once under each change.
            found = score_interventions(lm, readout, changes[:3], scope=scope, **QUIET)
            np.testing.assert_allclose(found, expected[:3], atol=2e-4)


@pytest.mark.parametrize("max_tokens", [1, 40, 100000])
def test_batching_does_not_matter(tiny, max_tokens):
    lm = make(tiny, "llama", template="long")
    readout, changes = likelihood_readout(lm.tokenizer, STATEMENTS), some_interventions(lm, 1, 3)
    for own in (changes, changes[:3]):  # with values of each prompt's own, the beginning cannot be shared
        found = score_interventions(lm, readout, own, max_tokens=max_tokens, **QUIET)
        np.testing.assert_allclose(found, score_interventions(lm, readout, own, **QUIET), atol=1e-4)


def test_cached_prompts_serve_several_calls(tiny):
    lm = make(tiny, "llama", template="long")
    readout, changes = likelihood_readout(lm.tokenizer, STATEMENTS), some_interventions(lm, 1, 3)
    whole = score_interventions(lm, readout, changes, scope="statement", **QUIET)
    cached = cache_prompts(lm, readout, 1, scope="statement")
    parts = [score_interventions(lm, cached, [change], **QUIET) for change in changes]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5)


def test_means_are_over_the_changed_tokens(tiny):
    lm = make(tiny, "llama", template="long")
    readout = agreement_readout(lm.tokenizer, STATEMENTS)
    for scope in ("all", "statement", "last"):
        found = mean_residuals(lm, readout, 2, scope=scope)
        for i, (prompt, mask) in enumerate(zip(readout.prompts, scope_mask(readout, scope), strict=True)):
            with torch.no_grad():
                hidden = lm.model(torch.tensor([prompt.ids]), output_hidden_states=True).hidden_states[2][0]
            np.testing.assert_allclose(found[i], hidden[mask].mean(0), atol=1e-4)


def test_bad_input_is_named(tiny):
    lm = make(tiny, "llama", template="long")
    readout = likelihood_readout(lm.tokenizer, STATEMENTS)
    with pytest.raises(ValueError, match="nothing to run"):
        score_interventions(lm, readout, [], **QUIET)
    with pytest.raises(ValueError, match="out of range"):
        score_interventions(lm, readout, [Intervention(4)], **QUIET)
    with pytest.raises(ValueError, match="one layer"):
        score_interventions(lm, readout, [Intervention(1), Intervention(2)], **QUIET)
    with pytest.raises(ValueError, match="cached at layer 1"):
        score_interventions(lm, cache_prompts(lm, readout, 1), [Intervention(2)], **QUIET)
    with pytest.raises(ValueError, match="shared=False"):
        score_interventions(lm, cache_prompts(lm, readout, 1), [ablate(1, {3}, np.zeros((3, lm.d_model)))], **QUIET)
    with pytest.raises(ValueError, match="max_tokens"):
        score_interventions(lm, readout, [Intervention(1)], max_tokens=0, **QUIET)
    with pytest.raises(ValueError, match="2 rows for 3 prompts"):
        score_interventions(lm, readout, [ablate(1, {3}, np.zeros((2, lm.d_model)))], **QUIET)


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_scope_is_named(tiny):
    lm = make(tiny, "llama")
    readout = likelihood_readout(lm.tokenizer, STATEMENTS)
    with pytest.raises(ValueError, match="unknown scope"):
        score_interventions(lm, readout, [Intervention(1)], scope="some", **QUIET)
