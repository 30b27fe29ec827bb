"""Shows text that others wrote as text: no terminal, figure or spreadsheet takes a name for a command."""

from __future__ import annotations

LONGEST = 200
"""Number of characters of a name that a message or a table shows."""

_NEWLINE = "\n"


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
