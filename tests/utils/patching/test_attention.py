import logging

import numpy as np
import pandas as pd
import pytest
import torch
from patched import make_questions, make_wide
from scipy.stats import ttest_ind
from tiny import ARCHITECTURES

from utils.patching.attention import _read_heads, compare_groups, eager_attention, persona_attention
from utils.patching.runs import run_clean
from utils.responses.wording import encode_questions, identity_prompt

IDENTITIES = pd.DataFrame({"identity": ["nurse", "old judge", "cat"], "group": ["job", "job", "animal"]})


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_weights_times_values_are_what_the_heads_give(kind):
    """Over all tokens before the last, weights and values found must give the last token's heads, up to its own part.

    Norms alone do not add up, so each token's value is checked where it is the only one that is attended to: the first.
    """
    lm = make_wide(kind)
    prompt = encode_questions(lm.tokenizer, make_questions(1), system=identity_prompt("nurse"), marked="nurse")[0]
    first = type(prompt)(prompt.ids, 0, 1)
    with eager_attention(lm):
        weights, sizes = _read_heads(lm, [first])
        everything, _ = _read_heads(lm, [type(prompt)(prompt.ids, 0, len(prompt.ids))])
    heads = run_clean(lm, prompt, ["heads"]).values["heads"]
    expected = torch.stack([heads[layer][0].double().norm(dim=-1) for layer in (1, 2, 3)])
    np.testing.assert_allclose(sizes[:, :, 0], expected, rtol=1e-4)
    np.testing.assert_allclose(everything.sum(axis=2), 1, rtol=1e-4)
    np.testing.assert_allclose(everything[:, :, 0], weights[:, :, 0], rtol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma-3"])
def test_value_norms_are_those_of_the_value_projection(kind):
    lm, values = make_wide(kind), []
    prompt = encode_questions(lm.tokenizer, make_questions(1), system=identity_prompt("nurse"), marked="nurse")[0]
    projection = lm.blocks[1].get_submodule(lm.anatomy.attention).v_proj
    with projection.register_forward_hook(lambda _module, _args, output: values.append(output)):
        run_clean(lm, prompt, ["resid"])
    shared = values[0][0].view(-1, lm.n_kv_heads, lm.head_dim).repeat_interleave(4 // lm.n_kv_heads, dim=1)
    with eager_attention(lm):
        _, sizes = _read_heads(lm, [prompt])
    expected = shared[prompt.start : prompt.stop].double().norm(dim=-1).T
    np.testing.assert_allclose(sizes[1], expected.detach(), rtol=1e-4)


def test_one_row_an_identity_and_head():
    lm = make_wide()
    table = persona_attention(lm, make_questions(), IDENTITIES, progress=False)
    assert len(table) == 3 * 3 * 4
    assert table.groupby("identity")["n_tokens"].first().to_dict()["cat"] < 5
    assert table["attention"].between(0, 1).all()
    assert (table["weighted"] > 0).all()
    # The mean over questions is the mean of single questions.
    single = [
        persona_attention(lm, make_questions().iloc[[i]], IDENTITIES, progress=False)["weighted"] for i in range(2)
    ]
    np.testing.assert_allclose(table["weighted"], (single[0] + single[1]) / 2, rtol=1e-4)


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_the_models_own_attention_is_put_back(error):
    lm = make_wide()
    before = lm.model.config._attn_implementation
    assert before != "eager"
    try:
        with eager_attention(lm):
            assert lm.model.config._attn_implementation == "eager"
            if error:
                raise error
    except KeyboardInterrupt:
        pass
    assert lm.model.config._attn_implementation == before


def test_a_model_without_weights_is_refused(monkeypatch):
    lm = make_wide()
    forward = lm.decoder.forward

    def silent(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.attentions = None
        return output

    monkeypatch.setattr(lm.decoder, "forward", silent)
    with pytest.raises(ValueError, match="does not give its attention weights"):
        persona_attention(lm, make_questions(), IDENTITIES, progress=False)
    assert lm.model.config._attn_implementation != "eager"


def make_attention(n=12, n_heads=20, *, effect=0.0, length=0.0, seed=0):
    """Three groups of identities with 1 or 2 tokens; head 0 reads group a by ``effect`` more, and all long ones."""
    rng = np.random.default_rng(seed)
    rows = []
    for group in "abc":
        # Group a has mostly long identities.
        tokens = np.where(np.arange(n) < (n - 3 if group == "a" else 3), 2, 1)
        for i, n_tokens in enumerate(tokens):
            values = rng.normal(size=n_heads) + length * n_tokens
            values[0] += effect * (group == "a")
            rows += [
                {"identity": f"{group}{i}", "group": group, "n_tokens": n_tokens, "layer": 1, "head": h, "weighted": v}
                for h, v in enumerate(values)
            ]
    return pd.DataFrame(rows)


def test_a_planted_head_is_found_and_only_it():
    found = compare_groups(make_attention(effect=3.0), n_permutations=1999)
    hits = found[found["p_adjusted"] <= 0.05]
    assert (hits["head"] == 0).all()
    top = found.iloc[0]
    assert (top["group"], top["difference"] > 0, top["n_identities"]) == ("a", True, 12)
    assert top["effect_size"] == pytest.approx(3 * 0.8, abs=1)


def test_long_identities_are_compared_with_long_ones():
    found = compare_groups(make_attention(length=5.0), n_permutations=999)
    assert found["p_adjusted"].min() > 0.05
    assert found["effect_size"].abs().max() < 2


def test_p_values_are_uniform_without_an_effect():
    p = np.concatenate([compare_groups(make_attention(seed=seed), n_permutations=199)["p_value"] for seed in range(10)])
    assert np.mean(p <= 0.05) == pytest.approx(0.05, abs=0.025)
    assert np.mean(p <= 0.5) == pytest.approx(0.5, abs=0.06)


def test_p_values_are_near_those_of_a_t_test():
    table = make_attention(n=20, effect=0.8)
    table = table.assign(n_tokens=1)
    found = compare_groups(table, n_permutations=1999).set_index(["group", "head"])
    wide = table.pivot(index=["group", "identity"], columns="head", values="weighted")
    own = wide.index.get_level_values("group") == "a"
    expected = ttest_ind(wide[own], wide[~own]).pvalue
    np.testing.assert_allclose(found.loc["a"].sort_index()["p_value"], expected, atol=0.06)


def test_groups_without_comparable_identities():
    with pytest.raises(ValueError, match="not two groups"):
        compare_groups(make_attention().query("group == 'a'"))


def test_no_warning_is_left_behind(caplog):
    with caplog.at_level(logging.WARNING):
        persona_attention(make_wide(), make_questions(), IDENTITIES, progress=False)
    assert not caplog.records
