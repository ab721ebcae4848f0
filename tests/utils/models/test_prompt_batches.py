from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from utils.models.forward import batch_rows
from utils.models.language_model import LanguageModel


def model(switch=None):
    """What is asked of a model here."""
    stub = SimpleNamespace(device=torch.device("cpu"), window_switch=switch)
    stub.split_sides = partial(LanguageModel.split_sides, stub)
    return stub


pytestmark = pytest.mark.usefixtures("unchecked")


@given(st.lists(st.integers(1, 400), max_size=40), st.sampled_from(["auto", 1, 3]))
def test_each_prompt_is_in_one_batch_shortest_first(lengths, size):
    batches = batch_rows(model(), lengths, size, max_tokens=500)
    rows = [row for batch in batches for row in batch]
    assert sorted(rows) == list(range(len(lengths)))
    assert np.all(np.diff([lengths[row] for row in rows]) >= 0)
    for batch in batches:
        if size == "auto":
            assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= 500
        else:
            assert len(batch) <= size


def test_batches_are_filled():
    assert batch_rows(model(), [10] * 5, "auto", max_tokens=20) == [[0, 1], [2, 3], [4]]
    assert batch_rows(model(), [3, 1, 2], 2) == [[1, 2], [0]]


def test_batch_size_below_one():
    with pytest.raises(ValueError, match="at least 1"):
        batch_rows(model(), [1], 0)


def test_rows_on_either_side_of_the_windows_switch_share_no_batch():
    assert batch_rows(model(5), [6, 5, 9, 2], 8) == [[3, 1], [0, 2]]
    assert batch_rows(model(5), [6, 5, 9, 2], 8, skipped=3) == [[3], [1, 0, 2]]
