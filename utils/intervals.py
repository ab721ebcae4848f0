"""Bootstrap over questions or other units that were drawn as a whole."""

import numpy as np
from jaxtyping import Float

# Resamples of fewer units than this are too much alike for an interval.
FEWEST = 5


def resample_weights(n: int, n_bootstrap: int, rng: int | np.random.Generator) -> Float[np.ndarray, "resample n"]:
    """How often each of n units is in each resample; rows sum to n."""
    generator = np.random.default_rng(rng)
    return generator.multinomial(n, np.full(n, 1 / n), size=n_bootstrap).astype(float)


def interval(resampled: Float[np.ndarray, "resample ..."], *, level: float = 0.95) -> Float[np.ndarray, "2 ..."]:
    """Percentile interval, low before high; NaN where a resample is."""
    return np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2], axis=0)
