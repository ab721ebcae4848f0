"""From statements to persona vectors: directions to read, to steer by and to take elsewhere."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
