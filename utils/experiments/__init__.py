"""Experiments that run in a folder: frozen configuration, resumable stages, tables, figures."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
