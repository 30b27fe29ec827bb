"""Nested mappings by dotted names, as configurations, plans and tables of records have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flattened(values: Mapping[str, Any], *, separator: str = ".", keep_empty: bool = False) -> dict[str, Any]:
    """Return the values of a nested mapping by the names of the keys that lead to them.

    Args:
        values: The nested mapping. Its keys are text.
        separator: Text between the keys of a name.
        keep_empty: Whether an empty mapping counts as a value; it is left out otherwise.

    >>> flattened({"a": {"b": 1, "c": {"d": [2]}}, "e": {}})
    {'a.b': 1, 'a.c.d': [2]}
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            inner = flattened(value, separator=separator, keep_empty=keep_empty)
            found |= {f"{key}{separator}{name}": one for name, one in inner.items()}
        if not isinstance(value, Mapping) or (keep_empty and not value):
            found[str(key)] = value
    return found


def has(values: Mapping[str, Any], name: str) -> bool:
    """Return whether a nested mapping has something other than None under a dotted name."""
    key, _, rest = name.partition(".")
    if values.get(key) is None:
        return False
    return not rest or (isinstance(values[key], Mapping) and has(values[key], rest))


def remove(values: dict[str, Any], name: str) -> None:
    """Remove from a nested mapping what stands under a dotted name, which must be there."""
    key, _, rest = name.partition(".")
    if rest:
        remove(values[key], rest)
    else:
        del values[key]
