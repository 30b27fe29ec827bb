"""Records of CSV and TSV files, read so that a quote that is never closed costs one line and not the rest of the file.

Python's parser is told to go on after a broken record at the line after the one where the record began. By itself it
goes on where it stopped, which for a stray quote is the end of the file.
"""

from __future__ import annotations

import csv
import re
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Literal, NamedTuple

Quoting = Literal["auto", "csv", "none"]
"""How a table is quoted: by the rules of CSV, not at all, or as ``is_unquoted`` finds for a TSV."""

_LONGEST_RECORD = 1 << 28  # characters: a quote that is open for longer is taken for one that is never closed
_SWALLOWED = {",": 8, "\t": 1}  # delimiters within quotes, at least, that make a record a heap of rows; see _is_heap


class Record(NamedTuple):
    """A record of a table.

    Attributes:
        number: Number of the line where the record begins, from 1.
        lines: The lines that the record is made of; of a broken record only its first.
        fields: The fields, or None if the record is broken.
        problem: What is wrong with a broken record, for example "has 3 fields, the header has 2".
    """

    number: int
    lines: list[str]
    fields: list[str] | None
    problem: str = ""


def plain_records(lines: Iterable[str], delimiter: str) -> Iterator[Record]:
    """Stream the records of a table that is written without quotes: one a line, blank lines left out.

    The first record is the header. A record with another number of fields is broken.
    """
    width = 0
    for number, line in enumerate(lines, start=1):
        fields = _split(line, delimiter)
        if fields == [""]:
            continue
        width = width or len(fields)
        if len(fields) == width:
            yield Record(number, [line], fields)
        else:
            yield Record(number, [line], None, _wrong_width(len(fields), width))


def quoted_records(lines: Iterable[str], delimiter: str) -> Iterator[Record]:
    """Stream the records of a table by the rules of CSV, blank lines left out.

    The first record is the header. A record is broken if Python's strict parser refuses it, if it has another number
    of fields than the header, or if a quote in it has evidently swallowed rows (see ``_is_heap``). Reading goes on at
    the line after the one where the broken record began. Of the lines that the broken record ran over, each is read by
    itself: if one left a quote open again, that would run on to the same place, and reading would take the square of
    the number of lines.
    """
    csv.field_size_limit(sys.maxsize)  # the default takes a text of more than 128 kB for an error
    source = _Lines(lines)
    reader = csv.reader(source, delimiter=delimiter, strict=True)
    width = 0
    number = 1
    while True:
        source.begin_record()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            record = source.record
            is_open = "unexpected end" in str(error)
            problem = "opens a quote that is never closed" if is_open else f"is malformed: {error}"
            if not is_open and len(record) > 1:
                problem = f"opens a quote that runs on to line {number + len(record) - 1}, where {error}"
            # The line with the error is read anew, as a first one.
            num_alone = len(record) - 1 if is_open else len(record) - 2
        else:
            record = source.record
            if not fields:
                number += len(record)
                continue
            width = width or len(fields)
            is_heap = len(record) > 1 and _is_heap(record, delimiter, width)
            if len(fields) == width and not is_heap:
                yield Record(number, record, fields)
                number += len(record)
                continue
            problem = "opens a quote that holds whole rows" if is_heap else _wrong_width(len(fields), width)
            if len(record) > 1:
                problem += f" (the record ends in line {number + len(record) - 1})"
            num_alone = len(record) - 2 if is_heap else len(record) - 1
        yield Record(number, record[:1], None, problem)
        number += 1
        for line in record[1 : 1 + max(num_alone, 0)]:
            if (alone := _read_alone(number, line, delimiter, width)) is not None:
                yield alone
            number += 1
        source.put_back(record[1 + max(num_alone, 0) :])


def is_unquoted(lines: Iterable[str], delimiter: str) -> bool:
    r"""Whether a table is written without quotes, so that a quote in it is a character like others.

    Decided by what cannot be otherwise. A header with a quoted name is quoted. A line with as many fields as the
    header, one of which begins with a quote that is not closed as CSV demands, speaks for a table without quotes; a
    record whose quotes are needed (for a delimiter, a line break or a doubled quote within) speaks for quotes. The
    table is unquoted if more lines speak for that than against it; where nothing speaks, it is read by the rules of
    CSV. A field that happens to stand in quotes as a whole says nothing.

    >>> is_unquoted(['query\tpositive\n', '"Hello, she said\tb\n', 'c\td\n'], "\t")
    True
    """
    width = 0
    balance = 0
    for record in quoted_records(lines, delimiter):
        plain = _split(record.lines[0], delimiter)
        if not width:
            if record.fields is None:
                return True
            if record.fields != plain:
                return False
            width = len(plain)
        elif record.fields is None:
            balance += len(plain) == width and any(field.startswith('"') for field in plain)
        elif len(record.lines) > 1 or len(plain) != width:
            balance -= 1
        else:
            balance -= any(field.startswith('"') and '""' in field for field in plain)
    return balance > 0


class _Lines(Iterator[str]):
    """Lines that remember those of the current record, and can be put back."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.record: list[str] = []
        self._lines = iter(lines)
        self._put_back: deque[str] = deque()
        self._num_characters = 0

    def begin_record(self) -> None:
        self.record = []
        self._num_characters = 0

    def put_back(self, lines: list[str]) -> None:
        self._put_back.extendleft(reversed(lines))

    def __next__(self) -> str:
        if self._num_characters > _LONGEST_RECORD:
            raise StopIteration
        line = self._put_back.popleft() if self._put_back else next(self._lines)
        self.record.append(line)
        self._num_characters += len(line)
        return line


def _read_alone(number: int, line: str, delimiter: str, width: int) -> Record | None:
    """A record from within a broken one: it must be right by itself, a quote only in a quoted field."""
    if not line.strip("\r\n"):
        return None
    try:
        fields = next(csv.reader([line], delimiter=delimiter, strict=True))
    except csv.Error as error:
        return Record(number, [line], None, f"is malformed: {error}")
    if len(fields) != width:
        return Record(number, [line], None, _wrong_width(len(fields), width))
    if '"' in line and not _strict_line(delimiter).fullmatch(line):
        return Record(
            number, [line], None, "has a quote in a field that does not begin with one, within a broken record"
        )
    return Record(number, [line], fields)


@lru_cache(maxsize=4)
def _strict_line(delimiter: str) -> re.Pattern[str]:
    field = rf'(?:"[^"]*(?:""[^"]*)*"|[^"{delimiter}]*)'
    return re.compile(rf"{field}(?:{delimiter}{field})*[\r\n]*")


def _is_heap(record: list[str], delimiter: str, width: int) -> bool:
    """Whether a stray quote has made one record of rows: each of its lines is a whole row, read without quotes.

    A text of several lines has its own first line shortened by the fields before, so that its lines hardly ever have
    all of a row's delimiters each, least of all tabs; a text of many lines with just one comma each cannot be excluded.
    """
    if width < 2 or (len(record) - 1) * (width - 1) < _SWALLOWED[delimiter]:
        return False
    if any('"' in line for line in record[1:-1]):
        return False
    rows = (_split(line, delimiter) for line in record)
    return all(len(fields) == width and all(map(str.strip, fields)) for fields in rows)


def _split(line: str, delimiter: str) -> list[str]:
    return line.rstrip("\r\n").split(delimiter)


def _wrong_width(received: int, expected: int) -> str:
    return f"has {received} fields, the header has {expected}"
