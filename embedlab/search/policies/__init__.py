"""The policies that come with embedlab, one a file.

Importing this package imports them all, so that a configuration can name one by its class alone.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
