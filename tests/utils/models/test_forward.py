import pytest
import torch
from patched import make_wide
from tiny import ARCHITECTURES

from utils.models.forward import logit_scale, logits_at, pad_right

ROWS = [[1, 40, 50, 60, 7], [1, 45, 9]]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_logits_are_the_models_own(kind):
    lm = make_wide(kind)
    ids, mask = pad_right(ROWS, lm.device)
    with torch.no_grad():
        found = logits_at(lm, ids, mask.sum(dim=1) - 1, attention_mask=mask)
        for row, logits in zip(ROWS, found, strict=True):
            alone = torch.tensor([row])
            torch.testing.assert_close(logits, lm.model(alone).logits[0, -1], rtol=1e-5, atol=1e-5)


def test_head_runs_at_the_wanted_tokens_only():
    lm, seen = make_wide(), []
    handle = lm.head.register_forward_hook(lambda _module, args, _output: seen.append(args[0].shape))
    ids, mask = pad_right(ROWS, lm.device)
    logits_at(lm, ids, torch.tensor([1, 2]), attention_mask=mask)
    handle.remove()
    assert seen == [(2, 1, 32)]


@pytest.mark.parametrize(
    ("kind", "changes", "scale"),
    [("llama", {}, 1), ("granite", {"logits_scaling": 8.0}, 1 / 8), ("gemma-2", {"final_logit_softcapping": 3.0}, 1)],
)
def test_factor_behind_the_head(kind, changes, scale):
    assert logit_scale(make_wide(kind, **changes)) == pytest.approx(scale, rel=1e-6)
