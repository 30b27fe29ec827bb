"""What a row of named columns is, where it came from, and why it may have to be rejected."""

from __future__ import annotations

import math
import re
import reprlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, TypeVar

from embedlab.errors import ConfigError, DataError, suggestion

Row = Mapping[str, Any]

SKIP_REMEDY: Final = "Correct it, or set on_error: skip to leave such rows out; they are counted."
"""What to do about a row that cannot be used, where there is an option ``on_error``."""

_Taken = TypeVar("_Taken")
_ABSENT: Final = object()
_SHOWN_CHARACTERS = 80
_NAMED_COLUMNS = 20  # in a message
_COMPARED_COLUMNS = 1000  # with one that is missing: it takes some time, and a message may be made for every row
_REPR = reprlib.Repr()  # unlike repr, quick for large values and sure to end for deep ones
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = _SHOWN_CHARACTERS


class RejectedRow(DataError):
    """A row that cannot be used. It is raised and yielded within ``embedlab.data`` only: see ``usable_rows``.

    Args:
        reason: A few words, the same for all rows of its kind, to count by.
        message: The place, what was received and what was expected.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class RowSource(ABC):
    """Something with rows of named columns."""

    @abstractmethod
    def columns(self) -> list[str]:
        """Return the names of the columns, as far as the beginning tells them; a nested field is ``column.field``.

        The list is empty where the beginning tells nothing.

        Raises:
            DataError: If the source cannot be read.
        """

    @abstractmethod
    def rows(self, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[tuple[str, Row | RejectedRow]]:
        """Stream the rows, each with its place (for example file and line); other columns may be left out.

        Args:
            columns: Names of the columns to read, or ``column.field`` for a field within a column.
            optional: Further columns to read where they are there.

        Raises:
            DataError: If the source cannot be read, has no rows, lacks a column, or has a column to read twice.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """Return hexadecimal digits that change whenever the rows do.

        Raises:
            DataError: If the source cannot be read.
        """

    def notes(self) -> list[str]:
        """Return what was assumed in reading, one clause each; known when the rows have been read."""
        return []


def usable_rows(
    rows: Iterable[tuple[str, Row | RejectedRow]],
    take: Callable[[Row, str], _Taken],
    *,
    path: str,
    skipped: Counter[str] | None = None,
    remedy: str = "",
) -> Iterator[_Taken]:
    """Stream what is made of each row; a row that cannot be used is an error, or is left out and counted.

    Args:
        rows: Rows with their places.
        take: Makes something of a row and its place, or raises RejectedRow.
        path: What the rows are from, for messages.
        skipped: Counts the rows that are left out, by reason; None makes the first of them an error.
        remedy: Sentence to add to that error.

    Raises:
        DataError: At the first row that cannot be used if they are not skipped, or if none can be used.
    """
    first: RejectedRow | None = None
    is_empty = True
    for place, row in rows:
        try:
            if isinstance(row, RejectedRow):
                raise row
            taken = take(row, place)
        except RejectedRow as rejected:
            if skipped is None:
                raise DataError(f"{rejected} {remedy}".rstrip()) from rejected
            skipped[rejected.reason] += 1
            first = first or rejected
            continue
        is_empty = False
        yield taken
    if is_empty and skipped is not None:
        raise DataError(f"Every row of '{path}' was skipped ({counts_of(skipped)}). The first: {first}")


def counts_of(skipped: Mapping[str, int]) -> str:
    """Return the reasons of rows left out with their counts, for people.

    >>> counts_of({"empty text": 2, "malformed line": 30})
    '30 malformed line, 2 empty text'
    """
    return ", ".join(f"{count} {reason}" for reason, count in Counter(skipped).most_common())


def column_names(columns: str | Sequence[str], option: str, owner: str) -> list[str]:
    """Return one or several columns as a list.

    Raises:
        ConfigError: If there is none, or one without a name.
    """
    names = [columns] if isinstance(columns, str) else list(columns)
    if not names or not all(names):
        raise ConfigError(f"{option} of '{owner}' is {columns!r}. Expected a column's name or a list of names.")
    return names


def missing_column(place: str, column: str, there: Iterable[str]) -> str:
    """Return what to say when a row or a table lacks a column."""
    names = list(there)
    if (advice := other_delimiter(place, names)) is not None:
        return advice
    listed = ", ".join(shown(name) for name in names[:_NAMED_COLUMNS]) or "none"
    more = f" and {len(names) - _NAMED_COLUMNS} more" if len(names) > _NAMED_COLUMNS else ""
    close = suggestion(column, [name for name in names[:_COMPARED_COLUMNS] if len(name) <= _SHOWN_CHARACTERS])
    return f"{place} has no column {shown(column)}. Its columns: {listed}{more}.{close}"


def other_delimiter(place: str, there: Sequence[str]) -> str | None:
    """Return what to say of a table whose only column seems to be several, delimited otherwise than its name says."""
    found = next((mark for mark in ",;\t|" if len(there) == 1 and mark in there[0]), None)
    if found is None or not re.search(r"\.[ct]sv\b", place, re.IGNORECASE):
        return None
    return (
        f"The first line of {place} is a single field, {shown(there[0])}. It seems to be delimited by {found!r}. "
        "Expected ',' in a .csv file, a tab in a .tsv file: convert or rename it."
    )


def column_holding(name: str, there: Iterable[str]) -> str | None:
    """Return the column that a name means: the column itself, or the one that has the named field.

    A column with a dot in its own name comes before a field.

    Args:
        name: ``column`` or ``column.field``.
        there: Names of the columns that are there.

    >>> column_holding("passages.text", ["query", "passages"])
    'passages'
    """
    if name in there:
        return name
    while "." in name:
        name = name.rpartition(".")[0]
        if name in there:
            return name
    return None


def value_of(row: Row, column: str, place: str) -> Any:
    """Return the value in a column, or in a field within it: of a list of objects, the list of the field's values.

    Raises:
        RejectedRow: If the row lacks it.

    >>> value_of({"passages": [{"text": "a"}, {"text": "b"}]}, "passages.text", "pairs.jsonl:1")
    ['a', 'b']
    """
    value = _found(row, column)
    if value is not _ABSENT:
        return value
    holder = column_holding(column, row)
    if holder is None:
        raise RejectedRow("missing column", missing_column(place, column, row))
    field = column.removeprefix(f"{holder}.")
    received = f"{place}: column '{holder}' holds {shown(row[holder])}."
    raise RejectedRow("missing field", f"{received} Expected an object, or a list of objects, with a field '{field}'.")


def found_value(row: Row, column: str) -> Any:
    """Return the value in a column or a field as ``value_of`` does, or None where it is missing."""
    value = row[column] if column in row else _found(row, column)
    return None if value is _ABSENT else value


def _found(row: object, column: str) -> object:
    """The value, or ``_ABSENT``. What an element of a list lacks is None, so that elements keep their numbers."""
    if isinstance(row, Mapping):
        holder = column_holding(column, row)
        if holder is None:
            return _ABSENT
        return row[holder] if holder == column else _found(row[holder], column[len(holder) + 1 :])
    if isinstance(row, list):
        values = [_ABSENT if isinstance(element, list) else _found(element, column) for element in row]
        if values and all(value is _ABSENT for value in values):
            return _ABSENT
        return [None if value is _ABSENT else value for value in values]
    return None if row is None else _ABSENT


def text_of(row: Row, columns: Sequence[str], place: str) -> str:
    """Return the text in a column, or the texts of several joined by spaces.

    Among several columns, those that are blank, null or missing are left out.

    Args:
        row: Columns and values.
        columns: One or several names.
        place: Place of the row, for messages.

    Raises:
        RejectedRow: If a column holds no text, all of them are blank, or the only one is missing or null.

    >>> text_of({"title": "Anarchism", "section": ""}, ["title", "section"], "pairs.jsonl:1")
    'Anarchism'
    """
    parts = []
    for column in columns:
        value = row[column] if column in row else _found(row, column)
        if not isinstance(value, str):
            if (value is None or value is _ABSENT) and len(columns) > 1:
                continue
            value = value_of(row, column, place)
            received = f"{shown(value)}, a {type(value).__name__}"
            field = f", or the name of a field as '{column}.field'" if isinstance(value, Mapping) else ""
            raise RejectedRow("not a text", f"{place}: column '{column}' holds {received}. Expected a string{field}.")
        if not is_unicode(value):
            received = f"{shown(value)}, which has half of a surrogate pair"
            raise RejectedRow("not a text", f"{place}: column '{column}' holds {received}. Expected Unicode.")
        if value and not value.isspace():
            parts.append(value)
    if not parts:
        named = " and ".join(f"'{column}'" for column in columns)
        raise RejectedRow("empty text", f"{place}: the text in column {named} is empty or blank.")
    return " ".join(parts)


def elements_of(row: Row, columns: Sequence[str], place: str) -> list[Row]:
    """Return a row for each element of the lists in the columns; without a list, the row itself.

    Args:
        row: Columns and values.
        columns: Columns that hold a list each, all of one length; any other value goes with every element.
        place: Place of the row, for messages.

    Raises:
        RejectedRow: If all columns are missing, or their lists differ in length.

    >>> elements_of({"title": None, "text": ["a", "b"]}, ["title", "text"], "pairs.jsonl:1")
    [{'title': None, 'text': 'a'}, {'title': None, 'text': 'b'}]
    """
    for column in columns:
        if not isinstance(row.get(column), str):
            break
    else:  # nearly always, and quick
        return [row]
    values = {column: value for column in columns if (value := _found(row, column)) is not _ABSENT}
    if not values:
        value_of(row, columns[0], place)
    lengths = {len(value) for value in values.values() if isinstance(value, list)}
    if not lengths:
        return [row]
    if len(lengths) > 1:
        named = " and ".join(f"'{column}'" for column in columns)
        raise RejectedRow("lists of different lengths", f"{place}: the lists in {named} differ in length.")
    return [
        {column: value[number] if isinstance(value, list) else value for column, value in values.items()}
        for number in range(lengths.pop())
    ]


def is_blank(value: object) -> bool:
    """Whether a value is null, or a text of nothing but white space."""
    return value is None or (isinstance(value, str) and (not value or value.isspace()))


def key_of(row: Row, column: str, place: str, *, reason: str) -> str:
    """Return the text that stands for a key, the same for equal keys in every format.

    A float without a fraction is the same key as the integer, because an integer column with nulls is one of floats in
    Parquet and pandas. A text stays as it is.

    Args:
        row: Columns and values.
        column: Column of the key.
        place: Place of the row, for messages.
        reason: Reason of a rejection.

    Raises:
        RejectedRow: If the value is no text and no finite number.

    >>> key_of({"id": 7.0}, "id", "pairs.parquet: row 0", reason="no id")
    '7'
    """
    value = value_of(row, column, place)
    if isinstance(value, str) and is_unicode(value):
        return value
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool) and math.isfinite(value):
        return str(int(value)) if value == int(value) else str(float(value))
    received = f"{shown(value)}, a {type(value).__name__}"
    raise RejectedRow(reason, f"{place}: column '{column}' holds {received}. Expected a text or a number.")


def is_unicode(text: str) -> bool:
    """Whether the string can be written as UTF-8; JSON can smuggle in halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(value: object) -> str:
    """Return a value as it may stand in a message: short."""
    text = repr(value[:_SHOWN_CHARACTERS]) if isinstance(value, str) else _REPR.repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."
