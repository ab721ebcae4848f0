"""What a model says: likelihood, agreement, answers, Big Five, and how it changes under a condition."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
