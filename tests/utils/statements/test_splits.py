import numpy as np
import pytest
from planted import make_acts

from utils.statements.contrasts import find_contrasts
from utils.statements.splits import hold_out, split_parts


@pytest.mark.parametrize("paired", [True, False])
def test_measured_statements_are_test_statements_and_in_no_other_use(paired):
    acts = make_acts(np.zeros((1, 80, 2)), paired=paired)
    part = split_parts(acts)
    held = hold_out(find_contrasts(acts)[0], part, 12, rng=3)
    measured = np.concatenate([held.h1, held.h0])
    assert len(set(measured)) == 24
    assert set(part[measured]) == {"test"}
    assert not set(measured) & set(held.rest.rows)
    assert len(held.rest.rows) + len(measured) == 80
    assert (acts["direction"].to_numpy()[held.h1] == "positive").all()
    assert (acts["direction"].to_numpy()[held.h0] == "negative").all()
    if paired:
        pair = acts["pair"].to_numpy()
        assert (pair[held.h1] == pair[held.h0]).all()
        assert (pair[held.rest.h1] == pair[held.rest.h0]).all()


def test_the_draw_goes_by_the_seed():
    acts = make_acts(np.zeros((1, 80, 2)))
    contrast, part = find_contrasts(acts)[0], split_parts(acts)
    one, two, three = (hold_out(contrast, part, 10, rng=seed).h1.tolist() for seed in (0, 0, 1))
    assert one == two != three


@pytest.mark.parametrize("n_pairs", [1, 31])
def test_a_number_that_cannot_be_is_named(n_pairs):
    acts = make_acts(np.zeros((1, 80, 2)))
    with pytest.raises(ValueError, match=f"{n_pairs} pairs were asked for"):
        hold_out(find_contrasts(acts)[0], split_parts(acts), n_pairs)
