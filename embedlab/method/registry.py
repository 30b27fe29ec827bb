"""The registry of the fine-tuning methods in all installed packages, so that anyone can add a method."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import NamedTuple

from docstring_parser import parse

from embedlab.errors import ConfigError, PluginError, suggestion
from embedlab.method import FineTuningMethod

GROUP = "embedlab.methods"


@dataclass(frozen=True)
class MethodEntry:
    """One name in the entry-point group ``embedlab.methods``.

    Attributes:
        name: Name of the entry point, which is also the name of the class.
        cls: Class of the method; None if the method could not be loaded.
        origin: Name and version of the package that registers the method; several if packages register one name.
        error: Reason why the method could not be loaded; None if it was loaded.
    """

    name: str
    cls: type[FineTuningMethod] | None
    origin: str
    error: str | None


@cache
def discover() -> Mapping[str, MethodEntry]:
    """Import all registered methods, and return them by name.

    A configuration can name an imported method by its class name, without the module. A method that cannot be loaded
    gives an entry with an ``error`` and a warning, never an exception, so that all other methods work.
    """
    registered: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=GROUP):
        registered.setdefault(point.name, []).append(point)
    return MappingProxyType({name: _load(name, points) for name, points in sorted(registered.items())})


def method_class(name: str) -> type[FineTuningMethod]:
    """Return the class of the method that is registered under ``name``.

    Raises:
        ConfigError: If no method has this name.
        PluginError: If the method could not be loaded.
    """
    entries = discover()
    if name not in entries:
        raise ConfigError(
            f"Unknown fine-tuning method '{name}'. Registered methods: {', '.join(entries)}."
            + suggestion(name, entries)
        )
    entry = entries[name]
    if entry.cls is None:
        raise PluginError(_failure(entry))
    return entry.cls


def _load(name: str, points: list[EntryPoint]) -> MethodEntry:
    origin = ", ".join(sorted(f"{point.dist.name} {point.dist.version}" for point in points if point.dist))
    try:
        if len(points) > 1:
            raise PluginError("the name is registered more than once. Uninstall all but one of these packages")
        return MethodEntry(name, _checked(name, points[0].load()), origin, None)
    except (Exception, SystemExit) as error:  # the import of a third party's module can raise anything
        entry = MethodEntry(name, None, origin, f"{type(error).__name__}: {error}")
        warnings.warn(_failure(entry), stacklevel=3)
        return entry


def _checked(name: str, loaded: object) -> type[FineTuningMethod]:
    if not (isinstance(loaded, type) and issubclass(loaded, FineTuningMethod)):
        raise PluginError(f"expected a subclass of embedlab.method.FineTuningMethod, got {loaded!r}")
    if inspect.isabstract(loaded):
        raise PluginError(f"the class does not implement {', '.join(sorted(loaded.__abstractmethods__))}")
    if loaded.__name__ != name:
        raise PluginError(f"the name of the entry point must be the class's name, '{loaded.__name__}'")
    return loaded


def _failure(entry: MethodEntry) -> str:
    return f"The fine-tuning method '{entry.name}' of {entry.origin} cannot be used: {(entry.error or '').rstrip('.')}."


class MethodRow(NamedTuple):
    """A method's row in the table that ``embedlab methods`` prints; every field is text.

    Attributes:
        name: Name of the method.
        origin: Name and version of the package that registers the method.
        options: One line per option: ``name: type = default``, followed by the option's description.
        summary: First sentence of the method's docstring, or the reason why the method cannot be used.
    """

    name: str
    origin: str
    options: str
    summary: str


def rows() -> list[MethodRow]:
    """Return a row for each registered method, read from the constructor's signature and the class's docstring."""
    return [_row(entry) for entry in discover().values()]


def _row(entry: MethodEntry) -> MethodRow:
    if entry.cls is None:
        return MethodRow(entry.name, entry.origin, "", _failure(entry))
    docstring = parse(inspect.getdoc(entry.cls) or "")
    described = {option.arg_name: option.description or "" for option in docstring.params}
    options = []
    for option in inspect.signature(entry.cls).parameters.values():
        kind = option.annotation if isinstance(option.annotation, str) else inspect.formatannotation(option.annotation)
        default = "" if option.default is option.empty else f" = {option.default!r}"
        options.append(f"{option.name}: {kind}{default}  {' '.join(described.get(option.name, '').split())}".rstrip())
    return MethodRow(entry.name, entry.origin, "\n".join(options), docstring.short_description or "")
