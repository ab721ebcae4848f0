import numpy as np
import pytest
import torch
from patched import EQUAL, LONGER, make_questions, make_wide, put, run_plainly
from tiny import ARCHITECTURES

from utils.patching.alignment import Pair, pair_prompts
from utils.patching.grid import list_cells
from utils.patching.runs import Cell, run_cells, run_clean

COMPONENTS = ["resid", "attn", "mlp", "heads"]
SEGMENTS = ["before", "persona", "question", "last", "all"]


def whole(logits):
    return logits.double().numpy()


def prepare(lm, identities=LONGER):
    pair = pair_prompts(lm.tokenizer, *identities, make_questions(1))[0]
    return pair, run_clean(lm, pair.base, COMPONENTS), run_clean(lm, pair.source, COMPONENTS)


@pytest.mark.parametrize("window", [None, 64])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_cell_is_what_one_whole_pass_with_one_patch_gives(kind, window):
    if window and "sliding_window" not in ARCHITECTURES[kind][1]:
        pytest.skip("no sliding window")
    lm = make_wide(kind, window=window)
    pair, base, source = prepare(lm)
    cells = list_cells(lm, COMPONENTS, [0, 2], SEGMENTS)
    total, _ = run_cells(lm, pair, base, source, cells, whole)
    moved = 0
    for cell, logits in zip(cells, total, strict=True):
        head = cell.head if cell.component == "heads" else None
        act = put(source.values[cell.component][cell.layer], *pair.places(cell.segment), head)
        expected = run_plainly(lm, pair.base, (cell.component, cell.layer, act))
        np.testing.assert_allclose(logits, expected, atol=1e-5, err_msg=str(cell))
        moved += not torch.allclose(expected, base.logits, atol=1e-4)
    assert moved > (0 if window else len(cells) / 8)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_run_patched_with_itself_does_not_change_in_a_bit(kind):
    lm = make_wide(kind)
    pair, base, _ = prepare(lm)
    itself = Pair("q", pair.base, pair.base)
    cells = list_cells(lm, COMPONENTS, None, ["all"])
    total, direct = run_cells(lm, itself, base, base, cells, whole, max_tokens=1)
    assert (total == whole(base.logits)).all()
    np.testing.assert_allclose(direct, np.tile(whole(base.logits), (len(cells), 1)), atol=1e-5)
    total, _ = run_cells(lm, itself, base, base, list_cells(lm, COMPONENTS, None, SEGMENTS), whole)
    np.testing.assert_allclose(total, np.broadcast_to(whole(base.logits), total.shape), atol=1e-5)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_whole_residual_stream_of_any_layer_gives_the_source(kind):
    lm = make_wide(kind)
    pair, base, source = prepare(lm, EQUAL)
    cells = [Cell("resid", layer, "all") for layer in range(lm.n_layers + 1)]
    total, direct = run_cells(lm, pair, base, source, cells, whole, max_tokens=1)
    assert (total == whole(source.logits)).all()
    assert not np.allclose(whole(source.logits), whole(base.logits), atol=1e-4)
    # At the last layer nothing comes after.
    np.testing.assert_allclose(direct[-1], whole(source.logits), atol=1e-5)
    total, _ = run_cells(lm, pair, base, source, cells, whole)
    np.testing.assert_allclose(total, np.broadcast_to(whole(source.logits), total.shape), atol=1e-5)


@pytest.mark.parametrize("component", ["attn", "mlp"])
@pytest.mark.parametrize("kind", ["llama", "gemma-2", "granite", "opt", "falcon", "gpt-neox"])
def test_direct_is_what_is_left_with_everything_later_held_still(kind, component):
    lm = make_wide(kind)
    pair, base, source = prepare(lm)
    _, direct = run_cells(lm, pair, base, source, [Cell(component, 2, "last"), Cell(component, 2, "persona")], whole)
    last = pair.places("last")
    held = [
        (name, layer, put(base.values[name][layer], last[0], last[0]))
        for name in ("attn", "mlp")
        for layer in (2, 3)
        if (name, layer) != (component, 2)
    ]
    patch = (component, 2, put(source.values[component][2], *last))
    np.testing.assert_allclose(direct[0], run_plainly(lm, pair.base, *held, patch), atol=1e-5)
    assert not np.allclose(direct[0], whole(base.logits), atol=1e-4)
    # From the persona's tokens to the answer there is no way but through later layers.
    assert (direct[1] == whole(base.logits)).all()


@pytest.mark.parametrize("kind", ["qwen3", "gemma-2", "falcon-grouped"])
def test_direct_of_a_head_is_what_it_changes_in_its_own_attention(kind):
    lm = make_wide(kind)
    pair, base, source = prepare(lm)
    _, direct = run_cells(lm, pair, base, source, [Cell("heads", 2, "last", 3)], whole)
    last = pair.places("last")
    held = [
        (name, layer, put(base.values[name][layer], last[0], last[0]))
        for name, layer in (("mlp", 2), ("attn", 3), ("mlp", 3))
    ]
    patch = ("heads", 2, put(source.values["heads"][2], *last, 3))
    np.testing.assert_allclose(direct[0], run_plainly(lm, pair.base, *held, patch), atol=1e-5)


@pytest.mark.parametrize("max_tokens", [1, 300, 1024])
def test_no_pass_holds_more_tokens_than_allowed(max_tokens):
    lm = make_wide()
    pair, base, source = prepare(lm)
    length, seen = len(pair.base.ids), []
    cells = list_cells(lm, COMPONENTS, None, ["persona", "last"])
    handle = lm.embedding.register_forward_hook(lambda _module, args, _output: seen.append(args[0].numel()))
    run_cells(lm, pair, base, source, cells, whole, max_tokens=max_tokens)
    handle.remove()
    assert max(seen) <= max(max_tokens, length)


@pytest.mark.parametrize("kind", ["llama", "gemma-2", "falcon-grouped"])
def test_segments_that_begin_close_together_share_passes_and_the_tokens_before(kind):
    lm = make_wide(kind)
    pair, base, source = prepare(lm)
    cells = list_cells(lm, ["attn", "mlp"], [2], ["persona", "question"])
    shapes = []
    handle = lm.embedding.register_forward_hook(lambda _module, args, _output: shapes.append(tuple(args[0].shape)))
    total, _ = run_cells(lm, pair, base, source, cells, whole, max_tokens=4096)
    handle.remove()
    assert shapes == [(1, pair.base.start), (4, len(pair.base.ids) - pair.base.start)]
    for cell, logits in zip(cells, total, strict=True):
        act = put(source.values[cell.component][2], *pair.places(cell.segment))
        np.testing.assert_allclose(logits, run_plainly(lm, pair.base, (cell.component, 2, act)), atol=1e-5)


def test_hooks_are_gone_after_an_error():
    lm = make_wide()
    pair, base, source = prepare(lm)

    def fail(_logits):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cells(lm, pair, base, source, [Cell("heads", 1, "last", 0)], fail)
    assert not any(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules())
    assert all("forward" not in block.__dict__ for block in lm.blocks)
    assert torch.equal(run_plainly(lm, pair.base), base.logits)
