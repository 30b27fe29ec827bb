"""The errors a user can cause, so that each can be caught, told apart, and shown without a traceback."""

from __future__ import annotations

import difflib
import os
import tempfile
import traceback
from collections.abc import Iterable

LONGEST = 200
"""Number of characters of a name that a message or a table shows."""

_LONGEST_MESSAGE = 500  # characters of another's message
_NEWLINE = "\n"


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


def in_one_line(error: BaseException, option: str = "") -> EmbedLabError:
    """Return what the user reads of an error that was raised between the configuration and the first step of work.

    An error of embedlab reaches the user as it was written, also from inside another's. Of any other exception the
    message is kept, and its traceback goes to a file that the message names.

    Args:
        error: What was raised.
        option: The option that it is about, where that is known.
    """
    known = known_cause(error)
    if known is not None:
        return known
    text = " ".join(str(error).split())
    text = text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]}…"
    about = option or type(error).__name__
    return ConfigError(f"{about}: {text or type(error).__name__}{_traceback_file(error)}")


class Preparation:
    """The way from the configuration to the first step: what is raised on it reaches the user in one line.

    Attributes:
        is_over: Whether the first step began. From then on an unexpected exception keeps its traceback, unless it is
            Lightning that raises it: what its callbacks need they look for when they are called.
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
    """Writes a traceback into a new file, and returns the sentence that names it."""
    text = "".join(traceback.format_exception(error))
    try:
        descriptor, path = tempfile.mkstemp(prefix="embedlab-", suffix=".txt")
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError:  # no room for it: the message has to do
        return ""
    return f" (The traceback is in {path}.)"


def plain_text(value: object, *, longest: int | None = LONGEST, keep_newlines: bool = False) -> str:
    r"""Return a value's text with every character that would not be seen written as an escape.

    Control characters, terminal escapes, line breaks, marks that reorder text (bidirectional overrides), invisible
    characters and halves of surrogate pairs are escaped. Letters of all scripts and emoji stay as they are.

    Args:
        value: The value, whose ``str`` is shown.
        longest: Number of characters to show. Longer text is cut and ends with "…". None shows everything.
        keep_newlines: Whether line breaks stay, for a message of several lines.

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
    """Returns ``" Did you mean 'x'?"`` for the known name nearest to ``received``, or the empty string.

    >>> suggestion("lora", ["FullFineTuning", "LoRA"])
    " Did you mean 'LoRA'?"
    """
    names = {name.lower(): name for name in known}
    close = difflib.get_close_matches(received.lower(), names, n=1, cutoff=0.5)
    return f" Did you mean '{names[close[0]]}'?" if close else ""
