"""A model and its places: blocks, parts, heads, prompts, forward passes, hooks."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
