"""Names that earlier versions wrote into configurations, plans and predictions, and what they are called now.

Whatever reads such a file asks here, so that files of earlier versions go on working.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

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
_OPTIONS: Final = {"fewest_rungs": "fewest_levels"}  # of ExtrapolatedHalving
_FIELDS: Final = {"passes": "epochs"}  # of a prediction


def current_class(name: str) -> str:
    """Return what a class is called now, by its name alone or with its module.

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
    """Return what an option of a class is called now, by its name without its parents'."""
    return _OPTIONS.get(name, name)


def current_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return stored fields by what they are called now."""
    return {_FIELDS.get(name, name): value for name, value in values.items()}


def current_plan(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a search's plan, by dotted names, with options and classes by what they are called now."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        parents, dot, last = name.rpartition(".")
        is_class = last == "class_path" and isinstance(value, str)
        found[parents + dot + current_option(last)] = current_class(value) if is_class else value
    return found
