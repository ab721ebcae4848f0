import pytest

from utils.layers.thirds import THIRDS, find_third


@pytest.mark.parametrize("n_layers", [3, 7, 30, 32])
def test_the_thirds_go_by_relative_depth(n_layers):
    for layer in range(1, n_layers + 1):
        expected = "first" if 3 * layer <= n_layers else "middle" if 3 * layer <= 2 * n_layers else "last"
        assert THIRDS[find_third(layer, n_layers)] == expected
