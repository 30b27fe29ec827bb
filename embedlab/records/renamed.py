"""Current names of what earlier versions of embedlab wrote into files, so that files of earlier versions still work.

All code that reads configurations, plans or predictions looks up old names of modules, classes, options and fields
here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

TOKENS: Final = "tokenised"
"""Folder of tokenized texts in the cache: it keeps its name, so that texts are not tokenized again."""

_MODULES: Final = {
    "embedlab.backbone": "embedlab.model.backbone",
    "embedlab.callbacks": "embedlab.training.callbacks",
    "embedlab.data.tokenised": "embedlab.data.tokenized",
    "embedlab.encoder": "embedlab.model.encoder",
    "embedlab.module": "embedlab.training.module",
    "embedlab.pooling": "embedlab.model.pooling",
    "embedlab.schedule": "embedlab.training.schedule",
    "embedlab.search.policies.ladder": "embedlab.search.policies.rising_budgets",
    "embedlab.search.policy": "embedlab.search.policies.policy",
}
_CLASSES: Final = {"Ladder": "RisingBudgets"}
_OPTIONS: Final = {"fewest_rungs": "fewest_levels"}  # an option of ExtrapolatedHalving
_FIELDS: Final = {"passes": "epochs"}  # a field of predictions


def current_class(name: str) -> str:
    """Return the current name of a class.

    Args:
        name: Name that a file holds: a class name, with or without the module before it.

    >>> current_class("embedlab.callbacks.comparison.ComparisonTable")
    'embedlab.training.callbacks.comparison.ComparisonTable'
    >>> current_class("LoRA")
    'LoRA'
    """
    module, dot, cls = name.rpartition(".")
    if dot and not re.match(r"embedlab\b", module):
        return name
    for old in sorted(_MODULES, key=len, reverse=True):
        if module == old or module.startswith(f"{old}."):
            module = _MODULES[old] + module.removeprefix(old)
            break
    return module + dot + _CLASSES.get(cls, cls)


def current_option(name: str) -> str:
    """Return the current name of an option of a class.

    Args:
        name: Name that a file holds, without the names of parent options before it.
    """
    return _OPTIONS.get(name, name)


def current_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return stored fields of a prediction under their current names."""
    return {_FIELDS.get(name, name): value for name, value in values.items()}


def current_plan(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a search's plan, with the current names of options and classes.

    Args:
        values: Values by dotted option name, as the plan's file holds them.
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        parents, dot, last = name.rpartition(".")
        is_class = last == "class_path" and isinstance(value, str)
        found[parents + dot + current_option(last)] = current_class(value) if is_class else value
    return found
