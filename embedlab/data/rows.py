"""Defines rows of named columns and their sources, and rejects unusable rows with a message that names their place."""

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

SKIP_REMEDY: Final = "Correct the row, or set on_error: skip to leave out and count such rows."
"""Remedy for a row that cannot be used, for messages about data with the option ``on_error``."""

_Taken = TypeVar("_Taken")
_ABSENT: Final = object()
_SHOWN_CHARACTERS = 80
_NAMED_COLUMNS = 20  # maximum number of columns that a message lists
_COMPARED_COLUMNS = 1000  # maximum compared with a missing column, since a message may be made for every row
_REPR = reprlib.Repr()  # unlike repr, fast for large values and safe for deeply nested ones
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = _SHOWN_CHARACTERS


class RejectedRow(DataError):
    """Error for a row that cannot be used.

    The error is raised and yielded inside ``embedlab.data`` only. ``usable_rows`` handles it.

    Args:
        reason: A few words, equal for all rows that are rejected for this reason, to count them by.
        message: Message with the place of the row, the received value and the expected value.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class RowSource(ABC):
    """Source of rows of named columns, for example files or a data set."""

    @abstractmethod
    def columns(self) -> list[str]:
        """Return the names of the columns, found by reading only the beginning. A nested field is ``column.field``.

        The list is empty if the beginning does not show the columns.

        Raises:
            DataError: If the source cannot be read.
        """

    @abstractmethod
    def rows(self, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[tuple[str, Row | RejectedRow]]:
        """Yield a pair for each row: its place (for example file and line), and its values by column.

        A source does not have to read columns that are neither in ``columns`` nor in ``optional``.

        Args:
            columns: Names of the columns to read, or ``column.field`` for a field in a column.
            optional: Names of further columns to read if they exist.

        Raises:
            DataError: If the source cannot be read, has no rows, lacks a column, or has two columns with the same name.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """Return hexadecimal digits that change whenever the rows change.

        Raises:
            DataError: If the source cannot be read.
        """

    def notes(self) -> list[str]:
        """Return the assumptions made in reading, one clause each. Call this after the rows have been read."""
        return []


def usable_rows(
    rows: Iterable[tuple[str, Row | RejectedRow]],
    take: Callable[[Row, str], _Taken],
    *,
    path: str,
    skipped: Counter[str] | None = None,
    remedy: str = "",
) -> Iterator[_Taken]:
    """Yield the result of ``take`` for each row. A row that cannot be used is an error, or is left out and counted.

    Args:
        rows: Rows, each preceded by its place.
        take: Function that converts a row and its place, or raises RejectedRow.
        path: Path of the source of the rows, for messages.
        skipped: Counter of the rows that are left out, by reason. With None, the first such row is an error.
        remedy: Sentence to add to the message of this error.

    Raises:
        DataError: If a row cannot be used and ``skipped`` is None, or if no row can be used.
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
    """Return a phrase with the reasons for which rows were left out and their counts.

    >>> counts_of({"empty text": 2, "malformed line": 30})
    '30 malformed line, 2 empty text'
    """
    return ", ".join(f"{count} {reason}" for reason, count in Counter(skipped).most_common())


def column_names(columns: str | Sequence[str], option: str, owner: str) -> list[str]:
    """Return the name of one column, or the names of several columns, as a list.

    Args:
        columns: Name or names of columns.
        option: Name of the option that holds the columns, for messages.
        owner: Name of the source or set that the option belongs to, for messages.

    Raises:
        ConfigError: If there is no column, or if the name of a column is empty.
    """
    names = [columns] if isinstance(columns, str) else list(columns)
    if not names or not all(names):
        raise ConfigError(f"{option} of '{owner}' is {columns!r}. Expected a column's name or a list of names.")
    return names


def missing_column(place: str, column: str, there: Iterable[str]) -> str:
    """Return a message about a row or a table that lacks a column."""
    names = list(there)
    if (advice := other_delimiter(place, names)) is not None:
        return advice
    listed = ", ".join(shown(name) for name in names[:_NAMED_COLUMNS]) or "none"
    more = f" and {len(names) - _NAMED_COLUMNS} more" if len(names) > _NAMED_COLUMNS else ""
    close = suggestion(column, [name for name in names[:_COMPARED_COLUMNS] if len(name) <= _SHOWN_CHARACTERS])
    return f"{place} has no column {shown(column)}. Its columns: {listed}{more}.{close}"


def other_delimiter(place: str, there: Sequence[str]) -> str | None:
    """Return a message about a table with a wrong delimiter for its file name, or None if the delimiter seems right.

    A delimiter seems wrong if the table has a single column whose name contains another delimiter.
    """
    found = next((mark for mark in ",;\t|" if len(there) == 1 and mark in there[0]), None)
    if found is None or not re.search(r"\.[ct]sv\b", place, re.IGNORECASE):
        return None
    return (
        f"The first line of {place} is a single field, {shown(there[0])}. It seems to be delimited by {found!r}. "
        "Expected ',' in a .csv file and a tab in a .tsv file: convert or rename the file."
    )


def column_holding(name: str, there: Iterable[str]) -> str | None:
    """Return the column that a name refers to: the column itself, or the column that has the named field.

    A column whose own name contains the dot takes precedence over a field.

    Args:
        name: Name in the form ``column`` or ``column.field``.
        there: Names of the existing columns.

    Returns:
        Name of the column, or None if there is no such column.

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
    """Return the value of a column, or of a field in a column. For a list of objects, return the list of field values.

    Args:
        row: Values by column.
        column: Name in the form ``column`` or ``column.field``.
        place: Place of the row, for messages.

    Raises:
        RejectedRow: If the row lacks the column or the field.

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
    """Return the value of a column or field as ``value_of`` does, or None if the row lacks the column or field."""
    value = row[column] if column in row else _found(row, column)
    return None if value is _ABSENT else value


def _found(row: object, column: str) -> object:
    """Return the value of a column or field, or ``_ABSENT`` if it is missing.

    If only some elements of a list lack the field, their values are None, so that the elements keep their positions.
    """
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
    """Return the text of a column, or the texts of several columns joined by spaces.

    If there are several columns, those with a blank, null or missing text are left out.

    Args:
        row: Values by column.
        columns: Names of one or several columns.
        place: Place of the row, for messages.

    Raises:
        RejectedRow: If a column holds something other than a text, if all texts are blank, or if there is a single
            column and it is missing or null.

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
            received = f"{shown(value)}, which contains half of a surrogate pair"
            raise RejectedRow("not a text", f"{place}: column '{column}' holds {received}. Expected valid Unicode.")
        if value and not value.isspace():
            parts.append(value)
    if not parts:
        named = " and ".join(f"'{column}'" for column in columns)
        raise RejectedRow("empty text", f"{place}: the text in column {named} is empty or blank.")
    return " ".join(parts)


def elements_of(row: Row, columns: Sequence[str], place: str) -> list[Row]:
    """Return one row for each element of the lists in the columns, or the row itself if there are no lists.

    Args:
        row: Values by column.
        columns: Names of columns that hold lists of equal length. Any other value is repeated for every element.
        place: Place of the row, for messages.

    Raises:
        RejectedRow: If all columns are missing, or the lists differ in length.

    >>> elements_of({"title": None, "text": ["a", "b"]}, ["title", "text"], "pairs.jsonl:1")
    [{'title': None, 'text': 'a'}, {'title': None, 'text': 'b'}]
    """
    for column in columns:
        if not isinstance(row.get(column), str):
            break
    else:  # fast path for the usual case
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
    """Return whether a value is null, or a text that is empty or consists of white space."""
    return value is None or (isinstance(value, str) and (not value or value.isspace()))


def key_of(row: Row, column: str, place: str, *, reason: str) -> str:
    """Return the text of a key. Equal keys have the same text in every file format.

    A float without a fraction gives the same key as the integer, because in Parquet and pandas an integer column with
    nulls becomes a float column. A text is returned unchanged.

    Args:
        row: Values by column.
        column: Column of the key.
        place: Place of the row, for messages.
        reason: Reason by which a rejected row is counted.

    Raises:
        RejectedRow: If the value is neither a text nor a finite number.

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
    """Return whether a string can be encoded in UTF-8. A string from JSON can contain halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(value: object) -> str:
    """Return a short representation of a value for a message."""
    text = repr(value[:_SHOWN_CHARACTERS]) if isinstance(value, str) else _REPR.repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."
