import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from utils.models.forward import batch_rows

CPU = torch.device("cpu")


@given(st.lists(st.integers(1, 400), max_size=40), st.sampled_from(["auto", 1, 3]))
def test_each_prompt_is_in_one_batch_shortest_first(lengths, size):
    batches = batch_rows(lengths, size, CPU, max_tokens=500)
    rows = [row for batch in batches for row in batch]
    assert sorted(rows) == list(range(len(lengths)))
    assert np.all(np.diff([lengths[row] for row in rows]) >= 0)
    for batch in batches:
        if size == "auto":
            assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= 500
        else:
            assert len(batch) <= size


def test_batches_are_filled():
    assert batch_rows([10] * 5, "auto", CPU, max_tokens=20) == [[0, 1], [2, 3], [4]]
    assert batch_rows([3, 1, 2], 2, CPU) == [[1, 2], [0]]


def test_batch_size_below_one():
    with pytest.raises(ValueError, match="at least 1"):
        batch_rows([1], 0, CPU)
