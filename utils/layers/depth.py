"""The thirds of a model's depth, by which the papers' claims about early, middle and late layers are judged."""

THIRDS = ("first", "middle", "last")


def find_third(layer: int, n_layers: int) -> int:
    """The third, 0 to 2, in which the relative depth of layer 1 to ``n_layers`` lies: up to 1/3, up to 2/3, beyond."""
    return (3 * layer - 1) // n_layers
