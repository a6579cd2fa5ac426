"""Simulate, train and fit adaptive spiking neurons exactly and fast.

`import blockspike as bs` loads nothing heavy: each name is imported when it is first used.
The names are listed in `__init__.pyi`; the rest of the package may change between versions.
"""

from importlib.metadata import version

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = version("blockspike")
