"""The errors that a user can cause, so that callers can catch and distinguish them and show them without a traceback.

The module also makes text from users and libraries safe to print in messages.
"""

from __future__ import annotations

import difflib
import os
import tempfile
import traceback
from collections.abc import Iterable

LONGEST = 200
"""Maximum number of characters of a name in a message or a table."""

_LONGEST_MESSAGE = 500  # maximum number of characters of a library's message
_NEWLINE = "\n"


class EmbedLabError(Exception):
    """Base class of every error that a user can cause.

    The message states what was received, what was expected, and what to do.
    """


class ConfigError(EmbedLabError):
    """An error for an option, or a combination of options, that cannot work."""


class DataError(EmbedLabError):
    """An error for a file, a row or a text that cannot be used."""


class PluginError(EmbedLabError):
    """An error for a fine-tuning method that cannot be loaded, or that violates the plugin interface."""


class RecordError(EmbedLabError):
    """An error for a run record, or a table of runs, that cannot be read, written or compared."""


class TrainingError(EmbedLabError):
    """An error for a training run that cannot continue, for example because a checkpoint cannot be written."""


class DivergenceError(TrainingError):
    """An error for a loss or a gradient that is not finite."""


def known_cause(error: BaseException | None) -> EmbedLabError | None:
    """Return the embedlab error that a library has wrapped in its own exception, or None without an embedlab error.

    The chain of causes is searched from the outermost exception inwards.

    Args:
        error: Exception to search; None if there was no exception.

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


def in_one_line(error: BaseException, option: str = "") -> EmbedLabError:
    """Return the one-line error to show for an exception that was raised before the first step of work.

    An embedlab error is returned unchanged, even if a library has wrapped it in its own exception. For any other
    exception, the result has the message of the exception, and the name of a file with the traceback.

    Args:
        error: Exception that was raised.
        option: Name of the option that caused the exception; empty if unknown.
    """
    known = known_cause(error)
    if known is not None:
        return known
    text = " ".join(str(error).split())
    text = text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]}…"
    about = option or type(error).__name__
    return ConfigError(f"{about}: {text or type(error).__name__}{_traceback_file(error)}")


class Preparation:
    """The time between reading the configuration and the first step of work, as a context manager.

    The user sees an exception of this time as one line without a traceback.

    Attributes:
        is_over: Whether the first step has begun. From then on, an unexpected exception keeps its traceback. An
            exception that Lightning raises is still shown in one line, because callbacks of Lightning check their
            options only when they are called.
    """

    def __init__(self) -> None:
        self.is_over = False

    def __enter__(self) -> Preparation:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not (self.is_over and not _is_raised_by_lightning(error)):
            told = in_one_line(error)
            if told is not error:
                raise told from error


def _is_raised_by_lightning(error: BaseException) -> bool:
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).partition(".")[0] in ("lightning", "lightning_fabric")


def _traceback_file(error: BaseException) -> str:
    """Write a traceback into a new temporary file, and return the sentence of the message that names the file."""
    text = "".join(traceback.format_exception(error))
    try:
        descriptor, path = tempfile.mkstemp(prefix="embedlab-", suffix=".txt")
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError:  # without space on the disk, the message alone has to suffice
        return ""
    return f" (The traceback is in {path}.)"


def plain_text(value: object, *, longest: int | None = LONGEST, keep_newlines: bool = False) -> str:
    r"""Return the text of a value with every character that is not visible written as an escape sequence.

    Control characters, terminal escapes, line breaks, marks that reorder text (bidirectional overrides), invisible
    characters and halves of surrogate pairs are escaped. Letters of all scripts and emoji stay unchanged.

    Args:
        value: Value to show, converted with ``str``.
        longest: Maximum number of characters to show. Longer text is cut and ends with "…". None shows everything.
        keep_newlines: Whether line breaks stay unchanged, for messages of several lines.

    >>> plain_text("\x1b[31mred\x1b[0m, né")
    '\\x1b[31mred\\x1b[0m, né'
    >>> plain_text("abcdef", longest=3)
    'ab…'
    """
    text = value if isinstance(value, str) else str(value)
    if longest is not None and len(text) > longest:
        text = text[: longest - 1] + "…"
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or (keep_newlines and character == _NEWLINE) else _escaped(character)
        for character in text
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def suggestion(received: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the known name nearest to ``received``; empty if no name is similar.

    Args:
        received: Name that the user wrote.
        known: Names that are allowed.

    >>> suggestion("lora", ["FullFineTuning", "LoRA"])
    " Did you mean 'LoRA'?"
    """
    names = {name.lower(): name for name in known}
    close = difflib.get_close_matches(received.lower(), names, n=1, cutoff=0.5)
    return f" Did you mean '{names[close[0]]}'?" if close else ""
