"""How the numerical kernels are compiled: cached on disk, and without the interpreter's lock."""

import inspect
from collections.abc import Callable
from typing import Any

from numba import njit


def kernel(function: Callable) -> Any:
    """Compile a function on its first call; later processes read the result from disk.

    An import hook that checks types (jaxtyping's) wraps every function, and numba cannot compile a wrapper, so the
    function inside is taken.
    """
    return njit(cache=True, nogil=True)(inspect.unwrap(function))
