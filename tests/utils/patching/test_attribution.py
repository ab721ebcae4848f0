import numpy as np
import pandas as pd
import pytest
import torch
from patched import LONGER, make_questions, make_wide

from utils.patching.attribution import attribute, rank_agreement
from utils.patching.effects import CELL
from utils.patching.grid import patch

ALL = ["resid", "attn", "mlp", "heads"]


def run(lm, identities=LONGER, **options):
    return attribute(lm, *identities, make_questions(), progress=False, n_bootstrap=10, **options)


@pytest.mark.parametrize("kind", ["llama", "gpt-2", "falcon", "gemma-2", "granite", "opt"])
def test_the_gradient_is_the_limit_of_small_patches(kind):
    """Towards an identity with nearly the same embedding, exact and approximate effects become equal."""
    lm = make_wide(kind)
    identities = ("nurse", "zurse")
    same, other = (lm.tokenizer.convert_tokens_to_ids(letter) for letter in "nz")
    lm.model.double()
    with torch.no_grad():
        weight = lm.embedding.weight
        noise = torch.randn(weight.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        weight[other] = weight[same] + 3e-4 * noise
    shared = {"components": ALL, "segments": ["persona", "question", "last"], "progress": False, "n_bootstrap": 10}
    exact = patch(lm, *identities, make_questions(), **shared)
    approximate = attribute(lm, *identities, make_questions(), **shared)
    both = exact.merge(approximate, on=[*CELL, "fallback"], suffixes=("", "_approximate"))
    assert len(both) == len(exact)
    found = both["logit_difference_change"], both["logit_difference_change_approximate"]
    np.testing.assert_allclose(*found, rtol=0.03, atol=0.01 * np.abs(found[0]).max())
    assert np.abs(found[0]).max() > 0


def test_nothing_is_left_in_the_model():
    lm = make_wide()
    with torch.inference_mode():
        run(lm, components=ALL)
    assert all(weight.grad is None and weight.requires_grad for weight in lm.model.parameters())
    assert not any(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules())


def test_two_passes_forward_and_one_back_a_question():
    lm, passes = make_wide(), []
    assert lm.anatomy.mlp is not None  # Found by a pass of its own, as is the context window.
    assert lm.max_tokens > 0
    handles = [
        lm.blocks[1].register_forward_hook(lambda *_: passes.append("forward")),
        lm.blocks[1].register_full_backward_hook(lambda *_: passes.append("back")),
    ]
    run(lm, components=ALL)
    for handle in handles:
        handle.remove()
    assert passes == ["forward", "forward", "back"] * 2


def grid(effects, **more):
    n = len(effects)
    columns = {"component": ["attn"] * (n - 1) + ["mlp"], "layer": range(n), "segment": "last", "head": -1}
    return pd.DataFrame({**columns, "fallback": False, "effect": effects, **more})


def test_agreement_is_of_ranks():
    table = rank_agreement(grid([1.0, 2, 3, 4]), grid([1.0, 4, 9, 2])).set_index("component")
    assert table.loc["attn", "spearman"] == pytest.approx(1)
    assert table.loc["all", "spearman"] == pytest.approx(0.4)
    assert np.isnan(table.loc["mlp", "spearman"])
    assert table.loc["mlp", "slope"] == pytest.approx(0.5)


def test_grids_without_a_common_cell():
    with pytest.raises(ValueError, match="no cell in common"):
        rank_agreement(grid([1.0, 2]), grid([1.0, 2]).assign(segment="persona"))
