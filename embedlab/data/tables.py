"""Reads records of CSV and TSV files so that a quote that is never closed costs one line and not the rest of the file.

After a broken record, reading continues at the line after the record's first line. Python's own parser would continue
where it stopped, which for a stray quote is the end of the file.
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
"""How a table is quoted: ``csv`` by the rules of CSV, ``none`` without quotes.

``auto`` is the rules of CSV for a CSV file, and the choice of ``is_unquoted`` for a TSV file.
"""

_LONGEST_RECORD = 1 << 28  # characters: a quote that stays open for longer counts as never closed
_SWALLOWED = {",": 8, "\t": 1}  # minimum number of delimiters in quotes for a heap of rows, see _is_heap


class Record(NamedTuple):
    """A record of a table.

    Attributes:
        number: Number of the line where the record begins, counted from 1.
        lines: Lines that the record consists of. For a broken record, only the first line.
        fields: Fields of the record. None if the record is broken.
        problem: Problem of a broken record, for example "has 3 fields, the header has 2". Empty otherwise.
    """

    number: int
    lines: list[str]
    fields: list[str] | None
    problem: str = ""


def plain_records(lines: Iterable[str], delimiter: str) -> Iterator[Record]:
    """Yield the records of a table that is written without quotes: one record per line, without blank lines.

    The first record is the header. A record whose number of fields differs from the header's is broken.
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
    """Yield the records of a table that is written by the rules of CSV, without blank lines.

    The first record is the header. A record is broken if Python's strict parser refuses the record, if its number of
    fields differs from the header's, or if a quote in the record has evidently swallowed rows (see ``_is_heap``).
    Reading continues at the line after the broken record's first line. Each further line of the broken record is read
    by itself. Otherwise a second open quote could run to the same place again, and the time would grow with the square
    of the number of lines.
    """
    csv.field_size_limit(sys.maxsize)  # by default a text of more than 128 kB is an error
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
            # The line with the error is read again, as the first line of a record.
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
    r"""Return whether a table is written without quotes, so that a quote is an ordinary character.

    The decision counts lines that can only be read in one of the two ways. If a name in the header is quoted, the table
    is quoted; if a name begins with a quote that is not closed, the table is unquoted. A line is evidence against
    quoting if it has as many fields as the header and one field begins with a quote that is not closed as CSV demands.
    A record is evidence for quoting if it needs its quotes, because they enclose a delimiter, a line break or a doubled
    quote. A field that is quoted without need is no evidence. The table is unquoted if the evidence against quoting is
    in the majority. Without evidence, the rules of CSV apply.

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
    """Iterator over lines that collects the lines of the current record, and to which lines can be returned."""

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
    """Return one line of a broken record as a record of its own, or None for a blank line.

    The new record is broken too if its number of fields is wrong, or if a quote is in a field that is not quoted.
    """
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
            number, [line], None, "is in a broken record and has a quote in a field that does not begin with a quote"
        )
    return Record(number, [line], fields)


@lru_cache(maxsize=4)
def _strict_line(delimiter: str) -> re.Pattern[str]:
    field = rf'(?:"[^"]*(?:""[^"]*)*"|[^"{delimiter}]*)'
    return re.compile(rf"{field}(?:{delimiter}{field})*[\r\n]*")


def _is_heap(record: list[str], delimiter: str, width: int) -> bool:
    """Return whether a stray quote has joined several rows into one record.

    This is assumed if each line of the record, read without quotes, is a whole row. The lines of a real text with line
    breaks rarely contain as many delimiters as a row has, in particular tabs. A wrong decision remains possible for a
    text of many lines with exactly one comma in each line.
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
