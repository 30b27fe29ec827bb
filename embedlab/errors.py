"""The errors a user can cause, so that each can be caught, told apart, and shown without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EmbedLabError(Exception):
    """Base of every error that a user can cause.

    The message says what was received, what was expected, and what to do.
    """


class ConfigError(EmbedLabError):
    """An option or a combination of options that cannot work."""


class DataError(EmbedLabError):
    """A file, a row or a text that cannot be used."""


class PluginError(EmbedLabError):
    """A fine-tuning method that cannot be loaded or breaks the interface."""


class RecordError(EmbedLabError):
    """A run record that cannot be read, written or compared."""


class TrainingError(EmbedLabError):
    """A training run that cannot go on (a checkpoint that cannot be written, say)."""


class DivergenceError(TrainingError):
    """A loss or a gradient that is not finite."""


def known_cause(error: BaseException | None) -> EmbedLabError | None:
    """Return the error of embedlab that a library has wrapped in its own, or None if there is none.

    The chain of causes is followed from the outermost error inwards.

    >>> try:
    ...     try:
    ...         raise ConfigError("rank must be at least 1, got 0.")
    ...     except ConfigError as cause:
    ...         raise ValueError("cannot instantiate") from cause
    ... except ValueError as wrapped:
    ...     print(known_cause(wrapped))
    rank must be at least 1, got 0.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, EmbedLabError):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def suggestion(received: str, known: Iterable[str]) -> str:
    """Returns ``" Did you mean 'x'?"`` for the known name nearest to ``received``, or the empty string.

    >>> suggestion("lora", ["FullFineTuning", "LoRA"])
    " Did you mean 'LoRA'?"
    """
    names = {name.lower(): name for name in known}
    close = difflib.get_close_matches(received.lower(), names, n=1, cutoff=0.5)
    return f" Did you mean '{names[close[0]]}'?" if close else ""
