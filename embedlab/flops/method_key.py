"""Computes cache keys for results of a method, so that a change of its options or its code makes them invalid."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from embedlab.method import FineTuningMethod


def method_key(method: FineTuningMethod, **parts: Any) -> str | None:
    """Return a cache key that changes with the method's options, with ``parts``, and with the source code.

    The source code is all Python files of embedlab and of each top-level package that defines the method's class or
    a method class that it derives from.

    Args:
        method: Fine-tuning method that the cached result belongs to.
        parts: Further values that the result depends on.

    Returns:
        32 hexadecimal digits. None if the result should not be cached, because the options or ``parts`` cannot be
        written as JSON, or because source code cannot be found (for example a class typed into an interpreter, or a
        package inside a zip file).
    """
    kind = type(method)
    packages = {cls.__module__.partition(".")[0] for cls in kind.__mro__ if issubclass(cls, FineTuningMethod)}
    sources = {name: _source_files(name) for name in packages}
    if not all(sources.values()):
        return None
    try:
        values = {"method": [kind.__module__, kind.__qualname__, vars(method)], **parts}
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    except (TypeError, ValueError):
        return None
    for name in sorted(packages):
        for path in sources[name]:
            digest.update(f"\n{name} {path}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:32]


def _source_files(package: str) -> list[Path]:
    module = sys.modules.get(package)
    folders = getattr(module, "__path__", None)
    if folders is not None:
        return sorted(path for folder in folders for path in Path(folder).rglob("*.py"))
    file = Path(getattr(module, "__file__", None) or "")
    return [file] if file.is_file() else []
