"""Reads rows of files, each with its line, so that a message can name the place of a broken row.

JSON Lines and CSV are streamed with Python's own parsers, because faster libraries cannot tell in which line of which
file a row is broken, and cannot continue after a broken row.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from embedlab.data.rows import (
    RejectedRow,
    Row,
    RowSource,
    column_holding,
    is_unicode,
    missing_column,
    shown,
)
from embedlab.data.tables import Quoting, Record, is_unquoted, plain_records, quoted_records
from embedlab.errors import DataError

_JSON_LINES = (".jsonl", ".ndjson", ".json")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
FORMATS = (*_JSON_LINES, *_DELIMITERS, ".parquet")
"""File name endings that can be read. All except Parquet can also be followed by ``.gz``."""

_BUFFER = 1 << 20  # bytes
_ROWS_LOOKED_AT = 100  # rows that show the columns of JSON Lines, where a single row may lack a column
_MARKS = {  # byte-order marks, longer marks first, because the mark of UTF-32-LE begins with that of UTF-16-LE
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_ARRAY_REMEDY = " If the file is one array, convert it with `jq -c '.[]'`."
_NOT_TEXT = {
    b"\x1f\x8b": "is compressed by gzip, but its name does not end in .gz. Add .gz to the name.",
    b"version https://git-lfs": "is a git-lfs pointer and not the file itself. Fetch the file with `git lfs pull`.",
}


def format_of(file: Path) -> str:
    """Return the file name ending that tells the format, in lower case and without a final ``.gz``.

    >>> format_of(Path("pairs.JSONL.gz"))
    '.jsonl'
    """
    return Path(file.name.lower().removesuffix(".gz")).suffix


@dataclass(frozen=True)
class FileRows(RowSource):
    """Rows of one or several files, one file after the other.

    Args:
        files: Paths of the files.
        quoting: How CSV and TSV files are quoted. None, for data without such an option, means ``auto``.
    """

    files: Sequence[Path]
    quoting: Quoting | None = None
    _unquoted: dict[Path, None] = field(default_factory=dict, init=False, repr=False, compare=False)

    def columns(self) -> list[str]:
        """Return the names of the columns in the beginning of the first file: see ``RowSource.columns``."""
        file = self.files[0]
        with _errors_of(file):
            if format_of(file) == ".parquet":
                with pq.ParquetFile(file) as table:
                    return fields_of(table.schema_arrow)
            with _opened(file) as stream:
                if format_of(file) in _JSON_LINES:
                    rows = (row for _, row in islice(_json_rows(file, stream, ()), _ROWS_LOOKED_AT))
                    return list(dict.fromkeys(name for row in rows if isinstance(row, dict) for name in _names_in(row)))
                if (delimiter := _DELIMITERS.get(format_of(file))) is None:
                    return []
                records = plain_records if self.quoting == "none" else quoted_records
                header = next(records(_text(file, stream), delimiter), None)
                return (header.fields if header else None) or []

    def rows(self, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[tuple[str, Row | RejectedRow]]:
        """Yield the rows of all files, without blank lines: see ``RowSource.rows``."""
        unseen = list(columns)
        seen: dict[str, None] = {}
        for file in self.files:
            is_empty = True
            for place, row in self._rows_of_file(file, columns, optional):
                is_empty = False
                if unseen and isinstance(row, Mapping):
                    unseen = [column for column in unseen if column_holding(column, row) is None]
                    seen.update(dict.fromkeys(row))
                yield place, row
            if is_empty:
                raise DataError(f"{file} has no rows. Expected at least one row: give another file or leave it out.")
        if unseen and seen:  # for JSON Lines, where single rows may lack a column; tables fail earlier
            others = f" and {len(self.files) - 1} other files" if len(self.files) > 1 else ""
            raise DataError(missing_column(f"{self.files[0]}{others}", unseen[0], seen))

    def fingerprint(self) -> str:
        """Return hexadecimal digits that depend on the bytes and formats of the files, but not on names or dates."""
        digest = hashlib.sha256()
        for file in self.files:
            try:
                with file.open("rb") as stream:
                    content = hashlib.file_digest(stream, "sha256").hexdigest()
            except OSError as error:
                raise _unreadable(file, error) from error
            digest.update(f"{format_of(file)} {content}\n".encode())
        return digest.hexdigest()

    def notes(self) -> list[str]:
        """Return a clause that says which TSV files were read without quotes, if there are any."""
        if not self._unquoted:
            return []
        which = f"{len(self._unquoted)} of {len(self.files)} files are " if len(self.files) > 1 else ""
        return [f"{which}read without quoting, with quotes as ordinary characters (set quoting: csv if that is wrong)"]

    def _rows_of_file(
        self, file: Path, columns: Sequence[str], optional: Sequence[str]
    ) -> Iterator[tuple[str, Row | RejectedRow]]:
        ending = format_of(file)
        with _errors_of(file):
            if ending == ".parquet":
                yield from _parquet_rows(file, columns, optional)
            elif ending in _JSON_LINES:
                with _opened(file) as stream:
                    yield from _json_rows(file, stream, [*columns, *optional])
            elif ending in _DELIMITERS:
                unquoted = self._is_unquoted(file)
                with _opened(file) as stream:
                    lines = _text(file, stream)
                    records = (plain_records if unquoted else quoted_records)(lines, _DELIMITERS[ending])
                    yield from _table_rows(file, records, columns, optional, self._remedy(unquoted))
            else:
                raise DataError(
                    f"{file} ends in {ending or 'nothing'!r}, which is not a supported format. Expected "
                    f"{', '.join(FORMATS)}, all except Parquet also with .gz. Convert or rename the file."
                )

    def _remedy(self, unquoted: bool) -> str:
        if unquoted:
            return "Without quotes, a text must not hold the delimiter or a line break."
        hint = " If the file is written without quotes, set quoting: none." if self.quoting else ""
        return f"A text with a delimiter, quote or line break must be in quotes, and its own quotes doubled.{hint}"

    def _is_unquoted(self, file: Path) -> bool:
        """Return whether a table is read without quotes. For ``auto``, a TSV that has quotes is read once to decide."""
        if self.quoting in ("csv", "none"):
            return self.quoting == "none"
        if format_of(file) != ".tsv":
            return False
        with _opened(file) as stream:
            if not any(b'"' in block for block in iter(lambda: stream.read(_BUFFER), b"")):
                return False
        with _opened(file) as stream:
            unquoted = is_unquoted(_text(file, stream), "\t")
        if unquoted:
            self._unquoted[file] = None
        return unquoted


def fields_of(schema: pa.Schema) -> list[str]:
    """Return the names of a schema's columns, and of the fields in the columns as ``column.field``."""
    names: list[str] = []
    for column in schema:
        names.append(column.name)
        inner = column.type
        if pa.types.is_list(inner) or pa.types.is_large_list(inner):
            inner = inner.value_type
        if pa.types.is_struct(inner):
            names += [f"{column.name}.{inner.field(number).name}" for number in range(inner.num_fields)]
    return names


def require_columns(place: str, columns: Iterable[str], there: Sequence[str]) -> None:
    """Check that a table has each of the columns to read exactly once.

    Args:
        place: Name of the table, for messages.
        columns: Names of the columns to read, or ``column.field`` for a field in a column.
        there: Names of the table's columns.

    Raises:
        DataError: If a column is missing or occurs more than once. The message names the column.
    """
    for column in columns:
        holder = column_holding(column, there)
        if holder is None:
            raise DataError(missing_column(place, column, there))
        if there.count(holder) > 1:
            raise DataError(_twice(place, holder, there.count(holder)))


@contextmanager
def _errors_of(file: Path) -> Iterator[None]:
    """Convert errors that concern a whole file into a DataError that names the file."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{file} is not a complete gzip file: {error}. Fetch or write it again.") from error
    except UnicodeDecodeError as error:  # not for UTF-8, whose broken rows are found one by one
        raise DataError(
            f"{file} has the byte-order mark of {error.encoding.upper()} but is not valid: {error.reason}. Expected "
            "UTF-8: convert the file, or write it again."
        ) from error
    except pa.ArrowException as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{file} is not a complete Parquet file: {reason}. Fetch or write it again.") from error
    except OSError as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: OSError) -> DataError:
    reason = " ".join(str(error.strerror or error).split())
    return DataError(f"{file} could not be read: {reason}.")


def _opened(file: Path) -> io.BufferedReader:
    # Without the buffer, gzip is several times slower at reading lines.
    raw = gzip.GzipFile(file) if file.suffix.lower() == ".gz" else file.open("rb", buffering=0)
    return io.BufferedReader(cast(io.RawIOBase, raw), _BUFFER)


def _encoding(file: Path, stream: io.BufferedReader) -> str:
    """Return the encoding that the byte-order mark tells, or UTF-8 without a mark, and read past the mark.

    Raises:
        DataError: If the file is compressed, is a git-lfs pointer, or seems to be UTF-16 without a byte-order mark.
    """
    head = stream.peek(_BUFFER)[:_BUFFER]
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            stream.read(len(mark))
            return encoding
    for beginning, remedy in _NOT_TEXT.items():
        if head.startswith(beginning):
            raise DataError(f"{file} {remedy}")
    begin = head[:400]
    even, odd = begin[::2], begin[1::2]
    for encoding, zeros, others in (("UTF-16LE", odd, even), ("UTF-16BE", even, odd)):
        if 2 * zeros.count(0) > len(zeros) and 2 * others.count(0) <= len(others):
            raise DataError(
                f"{file} seems to be {encoding} without a byte-order mark. Expected UTF-8: convert the file, for "
                f"example with `iconv -f {encoding} -t UTF-8`."
            )
    return "utf-8"


def _text(file: Path, stream: io.BufferedReader) -> io.TextIOWrapper:
    encoding = _encoding(file, stream)
    # Bytes that are not UTF-8 become lone surrogates, which are found row by row. An error here would end the stream.
    errors = "surrogateescape" if encoding == "utf-8" else "surrogatepass"
    head = stream.peek(_BUFFER)[:_BUFFER]
    old_mac = b"\r" in head and b"\n" not in head
    return io.TextIOWrapper(stream, encoding, errors, newline="\r" if old_mac else "\n")


def _json_rows(
    file: Path, stream: io.BufferedReader, columns: Sequence[str]
) -> Iterator[tuple[str, dict[str, Any] | RejectedRow]]:
    expected = "Expected one JSON object per line, in UTF-8."
    encoding = _encoding(file, stream)
    lines: Iterable[bytes] = stream
    if encoding != "utf-8":
        text = io.TextIOWrapper(stream, encoding, "surrogatepass", newline="\n")
        lines = (line.encode("utf-8", "surrogatepass") for line in text)
    names = {json.dumps(name, ensure_ascii=False).encode(errors="replace"): name for name in _first_parts(columns)}
    for number, line in enumerate(lines, start=1):
        if line.isspace():
            continue
        place = f"{file}:{number}"
        try:
            row = json.loads(line.decode())
        except (ValueError, RecursionError) as error:
            remedy = _ARRAY_REMEDY if number == 1 and line.startswith(b"[") else ""
            yield place, RejectedRow("malformed line", f"{place} is malformed: {error}. {expected}{remedy}")
            continue
        if not isinstance(row, dict):
            received = f"{place} holds {shown(row)}, a {type(row).__name__}."
            remedy = _ARRAY_REMEDY if number == 1 and isinstance(row, list) else ""
            yield place, RejectedRow("not an object", f"{received} {expected}{remedy}")
            continue
        for name in names:  # checking all names with the parser would be twice as slow
            if line.count(name) > 1 and (times := _times_in(line, names[name])) > 1:
                yield place, RejectedRow("column twice", _twice(place, names[name], times))
                break
        else:
            yield place, row


def _first_parts(columns: Iterable[str]) -> set[str]:
    """Return every name that an object can have at its top level if it holds one of the columns."""
    return {".".join(parts[:n]) for parts in (c.split(".") for c in columns) for n in range(1, len(parts) + 1)}


def _times_in(line: bytes, name: str) -> int:
    """Return how often a JSON object has a name, because Python's parser silently takes the last value."""
    outermost: list[tuple[str, Any]] = []

    def keep(pairs: list[tuple[str, Any]]) -> None:
        outermost[:] = pairs

    json.loads(line, object_pairs_hook=keep)
    return sum(other == name for other, _ in outermost)


def _names_in(row: Mapping[str, Any]) -> Iterator[str]:
    for name, value in row.items():
        yield name
        inner = value[0] if isinstance(value, list) and value else value
        if isinstance(inner, dict):
            yield from (f"{name}.{field_name}" for field_name in inner)


def _table_rows(
    file: Path, records: Iterator[Record], columns: Sequence[str], optional: Sequence[str], remedy: str
) -> Iterator[tuple[str, Row | RejectedRow]]:
    header: list[str] | None = None
    for record in records:
        place = f"{file}:{record.number}"
        if record.fields is None:
            rejected = RejectedRow("malformed line", f"{place} {record.problem}. {remedy}")
            if header is None:
                raise DataError(str(rejected))
            yield place, rejected
        elif header is None:
            header = record.fields
            require_columns(str(file), [*columns, *_there(optional, header)], header)
        elif not is_unicode("".join(record.fields)):
            convert = "Convert the file to UTF-8, for example with `iconv -f WINDOWS-1252 -t UTF-8`."
            yield place, RejectedRow("malformed line", f"{place} is malformed: it is not in UTF-8. {convert}")
        else:
            yield place, dict(zip(header, record.fields, strict=True))


def _parquet_rows(
    file: Path, columns: Sequence[str], optional: Sequence[str]
) -> Iterator[tuple[str, Row | RejectedRow]]:
    with pq.ParquetFile(file) as table:
        there = table.schema_arrow.names
        named = [*columns, *_there(optional, there)]
        require_columns(str(file), named, there)
        holders = dict.fromkeys(column_holding(column, there) for column in named)
        number = 0
        for batch in table.iter_batches(columns=list(holders)):
            for row in _rows_of_batch(batch):
                place = f"{file}: row {number}"
                if isinstance(row, Exception):
                    yield place, RejectedRow("malformed row", f"{place} is malformed: {row}.")
                else:
                    yield place, row
                number += 1


def _rows_of_batch(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | Exception]:
    """Yield the rows of a batch as Python objects.

    In place of a row that cannot be converted (for example text that is not UTF-8, or a date outside Python's range),
    the error is yielded.
    """
    try:
        yield from batch.to_pylist()
    except (ValueError, ArithmeticError) as error:
        if batch.num_rows == 1:
            yield error
            return
        for number in range(batch.num_rows):
            yield from _rows_of_batch(batch.slice(number, 1))


def _there(optional: Iterable[str], there: Sequence[str]) -> list[str]:
    return [column for column in optional if column_holding(column, there) is not None]


def _twice(place: str, column: str, times: int) -> str:
    return f"{place} has {times} columns named {shown(column)}. Expected one: rename or remove the other columns."
