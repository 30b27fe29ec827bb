"""The search policies of embedlab, with one policy per file.

Importing this package imports all policies, so that a configuration can name a policy by its class name alone.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
