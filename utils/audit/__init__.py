"""An audit of scan runs that somebody else, or an earlier run, wrote: what they show, and what their node sets share."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
