import numpy as np
import pytest
import torch
from patched import EQUAL, LONGER, make_questions, make_wide

from utils.patching.effects import CELL
from utils.patching.grid import letters_of, list_cells, patch, patch_questions, reader


def run(lm, identities=LONGER, **options):
    return patch(lm, *identities, make_questions(6), progress=False, n_bootstrap=50, **options)


def test_one_row_a_cell():
    table = run(make_wide(), components=["resid", "attn", "heads"], segments=["persona", "last"])
    for _, own in table.groupby("fallback"):
        assert not own.duplicated(CELL).any()
        assert own["component"].value_counts().to_dict() == {"heads": 3 * 4 * 2, "resid": 4 * 2, "attn": 3 * 2}
        assert set(own.loc[own["component"] != "heads", "head"]) == {-1}
        np.testing.assert_allclose(own["effect"], own["direct"] + own["indirect"], atol=1e-9)
        if own["effect_low"].notna().any():
            assert own["effect"].between(own["effect_low"] - 1e-9, own["effect_high"] + 1e-9).all()
    assert table.attrs["source"] == LONGER[1]


def test_before_the_persona_there_is_nothing_to_patch():
    table = run(make_wide(), segments=["before"])
    assert table["effect"].abs().max() < 1e-5
    assert table["kl_base"].abs().max() < 1e-8


def test_the_whole_residual_stream_has_the_whole_effect():
    table = run(make_wide(), identities=EQUAL, components=["resid"], segments=["all"])
    np.testing.assert_allclose(table["effect"], 1, atol=1e-4)
    np.testing.assert_allclose(table["kl_source"], 0, atol=1e-8)
    assert (table["kl_base"] > 1e-6).all()
    last = run(make_wide(), identities=EQUAL, components=["resid"], segments=["last"], layers=[3])
    np.testing.assert_allclose(last[["effect", "direct"]], 1, atol=1e-4)


def test_the_effect_is_of_the_models_own_logits():
    """With a cap on the logits (Gemma 2) and a factor (Granite), m is what the model gives out."""
    lm = make_wide("gemma-2", final_logit_softcapping=1.0)
    table = patch_questions(lm, *EQUAL, make_questions(), list_cells(lm, ["resid"], [3], ["last"]), progress=False)
    assert table["m_source"].abs().max() < 2
    np.testing.assert_allclose(table["m_patched"], table["m_source"], atol=1e-5)


def test_divergences_are_those_of_the_two_distributions():
    base, source, other = torch.randn(3, 50).double()
    m, from_base, from_source = reader((3, 7), base, source)(other[None])[0]
    p, q, r = (x.softmax(0) for x in (base, source, other))
    assert m == pytest.approx(float(other[3] - other[7]))
    assert from_base == pytest.approx(float((p * (p / r).log()).sum()))
    assert from_source == pytest.approx(float((q * (q / r).log()).sum()))


def test_letters_point_from_base_to_source():
    base, source = torch.zeros(20), torch.zeros(20)
    base[11], source[13] = 5, 5
    assert letters_of([10, 11, 12, 13], base, source) == ((13, 11), False)
    source[11] = 9
    assert letters_of([10, 11, 12, 13], base, source) == ((13, 10), True)


def test_layers_that_only_some_components_have():
    lm = make_wide()
    cells = list_cells(lm, ["resid", "mlp"], [0, 2], ["last"])
    assert [(cell.component, cell.layer) for cell in cells] == [("resid", 0), ("resid", 2), ("mlp", 2)]
    assert len(list_cells(lm, ["heads"], None, ["last"])) == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"components": ["q"]}, "expected resid, attn, mlp or heads"),
        ({"components": []}, "nothing to patch"),
        ({"layers": [4]}, r"layers \[4\] are out of range"),
        ({"segments": []}, "unknown segments"),
        ({"identities": ("nurse", "nurse")}, "are the same"),
        ({"identities": ("nurse", " ")}, "the identity is empty"),
    ],
)
def test_bad_input(options, message, unchecked):
    with pytest.raises(ValueError, match=message):
        run(make_wide(), **options)


def test_prompts_longer_than_the_context():
    lm = make_wide(max_position_embeddings=512)
    lm.model.config.max_position_embeddings = 40
    with pytest.raises(ValueError, match="the model's context window has 40"):
        run(lm)


def test_block_that_normalises_the_sum_can_still_be_patched_by_stream_and_head():
    lm = make_wide("opt", do_layer_norm_before=False)
    table = run(lm, components=["resid", "heads"], segments=["last"])
    assert table.loc[table["component"] == "resid", "effect"].notna().all()
    with pytest.raises(ValueError, match="has no component attn"):
        run(lm, components=["attn"])
