import numpy as np
import pytest
import torch
from patched import LONGER, make_questions, make_wide
from tiny import ARCHITECTURES
from torch import nn

from utils.models.prompts import Prompt
from utils.patching.logit_terms import freeze_norm, logit_terms, persona_terms
from utils.patching.runs import run_clean

LETTERS = 44, 45
SCALED = {"granite": {"logits_scaling": 8.0}}


def run(lm):
    ids = torch.randint(6, 300, (20,), generator=torch.Generator().manual_seed(0)).tolist()
    return run_clean(lm, Prompt(tuple(ids), 3, 5), ["resid", "attn", "mlp"])


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_terms_sum_to_the_models_own_difference(kind):
    lm = make_wide(kind, **SCALED.get(kind, {}))
    clean = run(lm)
    terms = logit_terms(lm, clean, LETTERS)
    logits = clean.logits.double()
    cap = getattr(lm.model.config, "final_logit_softcapping", None)
    if cap:
        logits = cap * torch.atanh(logits / cap)
    m = float(logits[LETTERS[0]] - logits[LETTERS[1]])
    assert terms["term"].sum() == pytest.approx(m, abs=1e-5)
    assert terms["m"].iloc[0] == pytest.approx(m, abs=1e-5)
    # More than one part has a say, so that the sum says something.
    assert (terms["term"].abs() > 0.01).sum() > 3


@pytest.mark.parametrize(
    "norm", [nn.LayerNorm(32), nn.LayerNorm(32, elementwise_affine=False), nn.RMSNorm(32, eps=1e-2), nn.Identity()]
)
def test_a_frozen_norm_is_the_norm_at_its_own_input(norm):
    torch.manual_seed(0)
    for weight in norm.parameters():
        nn.init.normal_(weight)
    x, direction = torch.randn(32) * 3 + 1, torch.randn(32).double()
    with torch.no_grad():
        back, constant = freeze_norm(norm, x, direction)
        expected = float(direction @ norm(x).double())
    assert float(back @ x.double()) + constant == pytest.approx(expected, abs=1e-4)


def test_a_layer_norm_frozen_in_closed_form():
    """The weights of a sum's parts are gain over standard deviation, and none of their mean comes through."""
    torch.manual_seed(0)
    norm = nn.LayerNorm(32)
    nn.init.normal_(norm.weight)
    x, direction = torch.randn(32) * 3, torch.randn(32).double()
    with torch.no_grad():
        back, _ = freeze_norm(norm, x, direction)
        plain = direction * norm.weight.double() / x.double().std(correction=0)
    np.testing.assert_allclose(back, plain - plain.mean(), rtol=1e-4, atol=1e-5)


def test_a_norm_that_does_not_scale_is_refused():
    with pytest.raises(ValueError, match="Tanh does not scale its input as a whole"):
        freeze_norm(nn.Tanh(), torch.randn(32), torch.ones(32).double())


def test_every_run_has_its_own_terms():
    table = persona_terms(make_wide(), *LONGER, make_questions(), progress=False)
    sums = table.groupby(["question", "identity"]).agg(term=("term", "sum"), m=("m", "first"))
    assert len(sums) == 4
    np.testing.assert_allclose(sums["term"], sums["m"], atol=1e-5)
    m = sums["m"].unstack()
    assert (m["source"] > m["base"]).all()
