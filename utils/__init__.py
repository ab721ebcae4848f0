"""Everything that touches a model, a file of statements or a plot; one folder a step of the data's way."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
