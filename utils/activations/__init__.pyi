from .arrays import store_arrays as store_arrays
from .extraction import extract as extract
from .store import open_store as open_store
