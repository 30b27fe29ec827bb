"""What a row of named columns is, where it came from, and why it may have to be rejected."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from embedlab.errors import ConfigError, DataError, suggestion

Row = Mapping[str, Any]


class RejectedRow(DataError):
    """A row that cannot be used.

    Args:
        reason: a few words, the same for all rows of its kind, to count by.
        message: the place, what was received and what was expected.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class RowSource(ABC):
    """Something with rows of named columns."""

    @abstractmethod
    def rows(self, columns: Sequence[str]) -> Iterator[tuple[str, Row | RejectedRow]]:
        """Streams the rows, each with its place (file and line, say); other columns may be left out.

        Raises:
            DataError: if the source cannot be read, has no rows, or says beforehand that it lacks a column.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """Hexadecimal digits that change whenever the rows do.

        Raises:
            DataError: if the source cannot be read.
        """


def column_names(columns: str | list[str], option: str, owner: str) -> list[str]:
    """One or several columns as a list.

    Raises:
        ConfigError: if there is none, or one without a name.
    """
    names = [columns] if isinstance(columns, str) else columns
    if not names or not all(names):
        raise ConfigError(f"{option} of '{owner}' is {columns!r}. Expected a column's name or a list of names.")
    return names


def missing_column(place: str, column: str, there: Iterable[str]) -> str:
    """What to say when a row or a table lacks a column."""
    names = list(there)
    listed = ", ".join(map(repr, names)) or "none"
    return f"{place} has no column '{column}'. Its columns: {listed}.{suggestion(column, names)}"


def value_of(row: Row, column: str, place: str) -> Any:
    """The value in a column.

    Raises:
        RejectedRow: if the row lacks it.
    """
    if column not in row:
        raise RejectedRow("missing column", missing_column(place, column, row))
    return row[column]


def text_of(row: Row, columns: Sequence[str], place: str) -> str:
    """The text in a column, or the texts of several joined by spaces; blank ones among several are left out.

    Args:
        row: columns and values.
        columns: one or several names.
        place: of the row, for messages.

    Raises:
        RejectedRow: if a column is missing or holds no text, or all of them are blank.

    >>> text_of({"title": "Anarchism", "section": ""}, ["title", "section"], "pairs.jsonl:1")
    'Anarchism'
    """
    parts = []
    for column in columns:
        value = value_of(row, column, place)
        if not isinstance(value, str):
            received = f"{shown(value)}, a {type(value).__name__}"
            raise RejectedRow("not a text", f"{place}: column '{column}' holds {received}. Expected a string.")
        if not is_unicode(value):
            received = f"{shown(value)}, which has half of a surrogate pair"
            raise RejectedRow("not a text", f"{place}: column '{column}' holds {received}. Expected Unicode.")
        if value and not value.isspace():
            parts.append(value)
    if not parts:
        named = " and ".join(f"'{column}'" for column in columns)
        raise RejectedRow("empty text", f"{place}: the text in column {named} is empty or blank.")
    return " ".join(parts)


def is_unicode(text: str) -> bool:
    """Whether the string can be written as UTF-8; JSON can smuggle in halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(value: object) -> str:
    """A value as it may stand in a message: short."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
