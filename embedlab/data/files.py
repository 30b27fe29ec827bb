"""Rows of files, each with its line, so that a message can say where to look.

JSON Lines and CSV are streamed with Python's own parsers, because the libraries that read them faster cannot
say in which line of which file a row is broken, and cannot go on after it.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from embedlab.data.rows import RejectedRow, Row, RowSource, is_unicode, missing_column, shown
from embedlab.errors import DataError

_JSON_LINES = (".jsonl", ".ndjson", ".json")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
FORMATS = (*_JSON_LINES, *_DELIMITERS, ".parquet")
"""Endings of files that can be read; all but Parquet also with ``.gz`` after them."""


def format_of(file: Path) -> str:
    """The ending that says the format, without a ``.gz`` after it.

    >>> format_of(Path("pairs.JSONL.gz"))
    '.jsonl'
    """
    return Path(file.name.lower().removesuffix(".gz")).suffix


@dataclass(frozen=True)
class FileRows(RowSource):
    """The rows of one or several files, one after the other."""

    files: Sequence[Path]

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[str, Row | RejectedRow]]:
        """As in ``RowSource``; blank lines are no rows."""
        for file in self.files:
            is_empty = True
            for row in _rows_of_file(file, columns):
                is_empty = False
                yield row
            if is_empty:
                raise DataError(f"{file} has no rows. Expected at least one: give another file or leave it out.")

    def fingerprint(self) -> str:
        """Of the bytes, not of names or dates: a file that was only moved or touched is the same."""
        digest = hashlib.sha256()
        for file in self.files:
            try:
                with file.open("rb") as stream:
                    content = hashlib.file_digest(stream, "sha256").hexdigest()
            except OSError as error:
                raise _unreadable(file, error) from error
            digest.update(f"{format_of(file)} {content}\n".encode())
        return digest.hexdigest()


def _rows_of_file(file: Path, columns: Sequence[str]) -> Iterator[tuple[str, Row | RejectedRow]]:
    ending = format_of(file)
    if ending == ".parquet":
        yield from _parquet_rows(file, columns)
        return
    try:
        with _opened(file) as stream:
            if ending in _JSON_LINES:
                yield from _json_rows(file, stream)
            elif ending in _DELIMITERS:
                yield from _delimited_rows(file, stream, _DELIMITERS[ending], columns)
            else:
                raise DataError(
                    f"{file} ends in {ending or 'nothing'!r}, which is no format that can be read. Expected "
                    f"{', '.join(FORMATS)}, all but Parquet also with .gz. Convert or rename it."
                )
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{file} is no whole gzip file: {error}. Fetch or write it again.") from error
    except OSError as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: OSError) -> DataError:
    return DataError(f"{file} could not be read: {error.strerror or error}.")


def _opened(file: Path) -> IO[bytes]:
    if file.suffix.lower() != ".gz":
        return file.open("rb")
    # Unbuffered, gzip hands out lines several times more slowly.
    return cast(IO[bytes], io.BufferedReader(cast(io.RawIOBase, gzip.open(file, "rb")), 1 << 20))


def _json_rows(file: Path, stream: IO[bytes]) -> Iterator[tuple[str, Row | RejectedRow]]:
    expected = "Expected one JSON object a line, in UTF-8."
    for number, line in enumerate(stream, start=1):
        if line.isspace():
            continue
        place = f"{file}:{number}"
        try:
            row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except (ValueError, RecursionError) as error:
            yield place, RejectedRow("malformed line", f"{place} is malformed: {error}. {expected}")
            continue
        if isinstance(row, dict):
            yield place, row
        else:
            received = f"{place} holds {shown(row)}, a {type(row).__name__}."
            yield place, RejectedRow("not an object", f"{received} {expected}")


def _delimited_rows(
    file: Path, stream: IO[bytes], delimiter: str, columns: Sequence[str]
) -> Iterator[tuple[str, Row | RejectedRow]]:
    csv.field_size_limit(sys.maxsize)  # the default takes a text of more than 128 kB for an error
    # Bytes that are no UTF-8 become lone surrogates, to be found row by row: an error here ends the stream.
    lines = (line.decode("utf-8", errors="surrogateescape") for line in stream)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        place = f"{file}:{reader.line_num + 1}"
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            rejected = RejectedRow(
                "malformed line", f"{place} is malformed: {error}. Expected fields quoted as is usual for CSV."
            )
            if header is None:
                raise rejected from error
            yield place, rejected
            continue
        if not fields:
            continue
        if header is None:
            header = [fields[0].removeprefix("\ufeff"), *fields[1:]]
            _require_columns(str(file), columns, header)
        elif len(fields) != len(header):
            received = f"{place} has {len(fields)} fields, the header has {len(header)}."
            remedy = "A text that holds the delimiter, a quote or a line break has to stand in quotes."
            yield place, RejectedRow("malformed line", f"{received} {remedy}")
        elif not is_unicode("".join(fields)):
            yield place, RejectedRow("malformed line", f"{place} is malformed: not in UTF-8.")
        else:
            yield place, dict(zip(header, fields, strict=True))


def _parquet_rows(file: Path, columns: Sequence[str]) -> Iterator[tuple[str, Row | RejectedRow]]:
    try:
        with pq.ParquetFile(file) as table:
            _require_columns(str(file), columns, table.schema_arrow.names)
            number = 0
            for batch in table.iter_batches(columns=list(dict.fromkeys(columns))):
                for row in batch.to_pylist():
                    yield f"{file}: row {number}", row
                    number += 1
    except pa.ArrowException as error:
        raise DataError(f"{file} is no whole Parquet file: {error}. Fetch or write it again.") from error
    except OSError as error:
        raise _unreadable(file, error) from error


def _require_columns(place: str, columns: Sequence[str], there: Sequence[str]) -> None:
    for column in columns:
        if column not in there:
            raise DataError(missing_column(place, column, there))
