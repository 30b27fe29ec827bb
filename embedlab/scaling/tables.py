"""Runs that somebody else made, from a table whose columns have whatever names they have."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import itertools
import math
import stat
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np

from embedlab.errors import ConfigError, RecordError, plain_text, suggestion
from embedlab.scaling.observations import Observation

AMOUNTS = "columns"
"""For ``Columns.tokens``: the columns whose names are numbers, whose cells are losses."""

_FEWEST_PARAMETERS = 1e4  # of a language model, its tables left out
_FEWEST_TOKENS = 1e4  # of a training run
_LARGEST = 1e36  # of any number: its square is one, too

_MOST_BYTES = 2**28  # of a table, unpacked
_MOST_ROWS = 1_000_000
_MOST_COLUMNS = 10_000
_MOST_NAMES = 20  # in a message
_LONGEST_NAME, _MOST_COMPARED = 100, 1_000  # of columns that may be meant by another name
_MOST_LINES = 20  # of a row, whose cells may have line breaks between quotes
_LONGEST_CELL = 10_000  # characters
_DELIMITERS = (",", "\t", ";", "|")
_NO_TEXT = {b"PAR1": "a Parquet file", b"PK\x03\x04": "a spreadsheet or a ZIP archive", b"version https://git-lfs": ""}

UNNAMED = "all runs"
"""The method of the runs of a table that names none."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which column of a table holds what. A name may be followed by a factor: ``N_millions*1e6``.

    Attributes:
        parameters: N.
        loss: on held-out data.
        tokens: D; ``columns`` for a table with an amount of data in the name of each column and losses below. Where
            there is none, it is FLOPs / 6 N.
        flops: of training; 6 N D where there is none.
        method: what to compare.
        backbone: name of the model.
        unique_tokens: how many of the tokens are different.
        family: of runs that have noise in common.
    """

    parameters: str = "parameters"
    loss: str = "loss"
    tokens: str | None = None
    flops: str | None = None
    method: str | None = None
    backbone: str | None = None
    unique_tokens: str | None = None
    family: str | None = None


class _Column(NamedTuple):
    """A column that is asked for.

    Attributes:
        name: Its name.
        factor: Number that its cells are multiplied by.
    """

    name: str
    factor: float


def require_columns(columns: Columns) -> None:
    """Refuse names of columns that no table could have, before any is read.

    Raises:
        ConfigError: If a factor is no number above 0.
        RecordError: If nothing says how much data a run saw.
    """
    if columns.tokens is None and columns.flops is None:
        raise RecordError(
            "A table of runs needs an amount of data: name its column of tokens (columns.tokens) or of FLOPs "
            "(columns.flops)."
        )
    for field in fields(columns):
        written = getattr(columns, field.name)
        if written is not None:
            column = _column(written)
            if not (math.isfinite(column.factor) and column.factor > 0):
                raise ConfigError(
                    f"columns.{field.name} is '{plain_text(written)}'. Expected a factor above 0, for instance "
                    f"'{plain_text(column.name)}*1e6'."
                )


def read_table(path: Path, columns: Columns) -> list[Observation]:
    """One observation a row of a CSV or TSV file, gzipped or not; what cannot be fitted is left out with its reason.

    A row that is broken (a stray quote, a cell too few) is left out, too, and reading goes on at the next line.

    Raises:
        ConfigError: if the factor of a column is no number above 0.
        RecordError: if the file cannot be read, lacks a column, or its N or D is in another unit.
    """
    require_columns(columns)
    table = _Table(path, _text(path), columns)
    asked = table.asked
    amounts = table.amounts
    factor = asked["tokens"].factor if "tokens" in asked else 1.0
    found: list[Observation] = []
    for number, row in table.rows():
        name = f"{path.name}:{number}"
        if isinstance(row, str):
            found.append(_broken(name, row))
        elif amounts:
            found += [
                _observation(f"{name}:{column}", row, asked, amount * factor, row[column])
                for amount, column in amounts.items()
            ]
        else:
            found.append(_observation(name, row, asked, None, row[asked["loss"].name]))
        if len(found) > _MOST_ROWS:
            raise RecordError(f"{_named(path)} has more than {_MOST_ROWS} runs. Leave some out.")
    if not found:
        raise RecordError(f"{_named(path)} has a header and no rows. Expected one row a run below it.")
    _require_unit(path, columns.parameters, "parameters", [row.parameters for row in found], _FEWEST_PARAMETERS)
    if columns.tokens is not None and not amounts:
        _require_unit(path, columns.tokens, "tokens", [row.tokens for row in found], _FEWEST_TOKENS)
    return found


def _named(path: Path) -> str:
    return plain_text(path, longest=1_000)


def _require_unit(path: Path, column: str, field: str, values: list[float], fewest: float) -> None:
    """That a column counts ones, not millions of them."""
    finite = [value for value in values if math.isfinite(value)]
    if finite and np.median(finite) < fewest:
        name = plain_text(_column(column).name)
        raise RecordError(
            f"Column '{plain_text(column)}' of {_named(path)} has a median of {np.median(finite):g}, which is no "
            f"number of {field}. Where it is in millions, say --columns.{field} '{name}*1e6'."
        )


def _column(written: str) -> _Column:
    """A name and its factor; a star with no number behind it is part of the name."""
    name, star, factor = written.rpartition("*")
    try:
        return _Column(name.strip(), float(factor)) if star else _Column(written.strip(), 1.0)
    except ValueError:
        return _Column(written.strip(), 1.0)


# From bytes to rows


def _text(path: Path) -> str:
    """The whole text of a file, unpacked and decoded."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            what = "a folder; those of runs go to --runs" if path.is_dir() else "no regular file"
            raise RecordError(f"{_named(path)} is {what}. Expected a CSV or TSV file with a row a run.")
        with path.open("rb") as file:
            content = _unpacked(file)
    except (OSError, EOFError, zlib.error, ValueError) as error:  # ValueError: a path that no system has
        reason = error.strerror if isinstance(error, OSError) and error.strerror else plain_text(error)
        raise RecordError(f"{_named(path)} cannot be read as a table: {reason}.") from error
    if len(content) > _MOST_BYTES:
        raise RecordError(f"{_named(path)} holds more than {_MOST_BYTES / 2**20:g} MiB, too much for a table of runs.")
    for magic, kind in _NO_TEXT.items():
        if content.startswith(magic):
            what = kind or "not there: a pointer of git-lfs stands for it, and `git lfs pull` fetches it"
            raise RecordError(f"{_named(path)} is {what}. Expected a CSV or TSV file with a row a run.")
    encoding = "utf-8-sig"
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RecordError(
            f"{_named(path)} cannot be read as a table: line {line} is not {encoding.removesuffix('-sig')} text. Save "
            "it as CSV in UTF-8."
        ) from error
    if "\0" in text:
        raise RecordError(f"{_named(path)} cannot be read as a table: it has NUL bytes. Save it as CSV in UTF-8.")
    return text


def _unpacked(file: io.BufferedReader) -> bytes:
    """The content, as much of it as a table may have and one byte more, whatever the file's name says of its format."""
    if file.peek(2)[:2] != b"\x1f\x8b":
        return file.read(_MOST_BYTES + 1)
    with gzip.open(file) as unpacked:
        content: bytes = unpacked.read(_MOST_BYTES + 1)
    return content


class _Table:
    """Rows of a text, below a header in which every column that is asked for stands once.

    Args:
        path: The file, for messages.
        text: Its text.
        columns: What is asked for.

    Attributes:
        asked: Column of each field that is asked for.
        amounts: Columns by the amounts of data that name them; empty unless they were asked for.
    """

    def __init__(self, path: Path, text: str, columns: Columns) -> None:
        self._path = path
        self._lines = io.StringIO(text, newline="").readlines()
        self._begin = next((number for number, line in enumerate(self._lines) if line.strip()), 0)
        own = "\t" if ".tsv" in path.suffixes else ","
        written = {field.name: getattr(columns, field.name) for field in fields(columns)}
        written = {name: column for name, column in written.items() if column is not None}
        self._delimiter, self._header = own, self._first(own)
        for delimiter in _DELIMITERS:  # what a spreadsheet of another country writes
            header = self._first(delimiter)
            if self._lacking(header, written) is None and self._lacking(self._header, written) is not None:
                self._delimiter, self._header = delimiter, header
        if not self._header:
            raise RecordError(f"{_named(path)} is empty. Expected a header with the names of columns, and a row a run.")
        if len(self._header) > _MOST_COLUMNS:
            raise RecordError(f"{_named(path)} has {len(self._header)} columns, and {_MOST_COLUMNS} can be read.")
        self.amounts = self._amounts() if _column(written.get("tokens", "")).name == AMOUNTS else {}
        lacking = self._lacking(self._header, written)
        if lacking is not None:
            self._refuse(lacking, written[lacking])
        by_amount = ("tokens", "loss") if self.amounts else ()
        self.asked = {
            name: _column(column) if name in by_amount else self._found(column, self._header)
            for name, column in written.items()
        }
        names = [column.name for name, column in self.asked.items() if name not in by_amount]
        for name in [*names, *self.amounts.values()]:
            if self._header.count(name) > 1:
                raise RecordError(
                    f"{_named(path)} has the column '{plain_text(name)}' {self._header.count(name)} times, so it is "
                    "not known which one is meant. Rename or remove the others."
                )

    def _first(self, delimiter: str) -> list[str]:
        cells, _ = self._record(self._begin, delimiter)
        return [] if cells is None else [name.strip() for name in cells]

    def _found(self, written: str, header: Sequence[str]) -> _Column:
        """A column as it is written, or without the factor at its end."""
        whole = written.strip()
        return _Column(whole, 1.0) if whole in header else _column(written)

    def _lacking(self, header: Sequence[str], written: Mapping[str, str]) -> str | None:
        """The first field whose column a header lacks."""
        of_amounts = _column(written.get("tokens", "")).name == AMOUNTS
        for name, column in written.items():
            if of_amounts and name in ("tokens", "loss"):
                if not any(map(_is_number, header)):
                    return name
            elif self._found(column, header).name not in header:
                return name
        return None

    def _refuse(self, field: str, written: str) -> None:
        name, header = _column(written).name, self._header
        shown = ", ".join(plain_text(one, longest=60) for one in header[:_MOST_NAMES])
        more = f" and {len(header) - _MOST_NAMES} more" if len(header) > _MOST_NAMES else ""
        hint = suggestion(name[:_LONGEST_NAME], [one for one in header[:_MOST_COMPARED] if len(one) <= _LONGEST_NAME])
        if all(map(_is_number, header)):
            hint = " Its first line holds numbers: write the names of the columns above it."
        raise RecordError(
            f"{_named(self._path)} has no column '{plain_text(name)}' (columns.{field}). It has {shown}{more}."
            + plain_text(hint)
        )

    def _amounts(self) -> dict[float, str]:
        numbers = [name for name in self._header if _is_number(name)]
        found = {float(name): name for name in numbers}
        if len(found) < len(numbers):
            raise RecordError(
                f"{_named(self._path)} has two columns of the same amount of data. Rename or remove one of them."
            )
        if not found:
            names = ", ".join(plain_text(name, longest=60) for name in self._header[:_MOST_NAMES])
            raise RecordError(
                f"columns.tokens is '{AMOUNTS}', and no column of the table is named by a number: {names}."
            )
        return found

    def rows(self) -> Iterator[tuple[int, dict[str, str] | str]]:
        """Each row with the number of its first line, as an editor shows it; of a broken one, what is wrong with it."""
        used = {column.name for column in self.asked.values()} | set(self.amounts.values())
        places = {name: place for place, name in enumerate(self._header) if name in used}
        _, at = self._record(self._begin, self._delimiter)
        while at < len(self._lines):
            number = at + 1
            if not self._lines[at].strip():
                at += 1
                continue
            cells, behind = self._record(at, self._delimiter)
            while cells is not None and len(cells) > len(self._header) and not cells[-1].strip():
                cells.pop()
            if cells is None or len(cells) != len(self._header):
                reason = "a quote in it has no end" if cells is None else f"it has {len(cells)} cells"
                yield number, f"its row is broken: {reason}, and the header {len(self._header)}"
                at += 1  # what a stray quote has swallowed are rows
                continue
            yield number, {name: cells[place] for name, place in places.items()}
            at = behind

    def _record(self, at: int, delimiter: str) -> tuple[list[str] | None, int]:
        """The cells of the record that begins on a line, and the line behind it; None where it has no end nearby."""
        reader = csv.reader(itertools.islice(self._lines, at, at + _MOST_LINES), delimiter=delimiter, strict=True)
        try:
            cells = next(reader, [])
        except csv.Error:
            return None, at + 1
        return cells, at + max(1, reader.line_num)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


# From rows to observations


def _broken(name: str, reason: str) -> Observation:
    nan = math.nan
    return Observation(
        name=name,
        method=UNNAMED,
        backbone="",
        parameters=nan,
        tokens=nan,
        loss=nan,
        flops=nan,
        unique_tokens=nan,
        family=name,
        left_out=reason,
    )


def _observation(
    name: str, row: Mapping[str, str], asked: Mapping[str, _Column], tokens: float | None, loss_text: str
) -> Observation:
    """A row's numbers, and why it is left out if one of them is none."""
    wrong: list[str] = []

    def number(what: str, text: str, factor: float) -> float:
        try:
            value = float(text) * factor
        except ValueError:
            value = math.nan
        if not 1 / _LARGEST < value < _LARGEST:
            wrong.append(f"its {what} is {plain_text(repr(text), longest=40)}")
            return math.nan
        return value

    def of(field: str, what: str) -> float:
        return number(what, row[asked[field].name], asked[field].factor)

    parameters = of("parameters", "parameters")
    loss = number("loss", loss_text, 1.0 if tokens is not None else asked["loss"].factor)
    flops = of("flops", "flops") if "flops" in asked else None
    if tokens is not None:
        if not 0 < tokens < _LARGEST:
            wrong.append("it saw no data")
    elif "tokens" in asked:
        tokens = of("tokens", "tokens")
    else:
        tokens = (math.nan if flops is None else flops) / (6 * parameters)
    unique = min(tokens, of("unique_tokens", "unique tokens")) if "unique_tokens" in asked else tokens
    texts = {field: row[asked[field].name] for field in ("method", "backbone", "family") if field in asked}
    for field, text in texts.items():
        if len(text) > _LONGEST_CELL:
            wrong.append(f"its {field} has more than {_LONGEST_CELL} characters")
    return Observation(
        name=name,
        method=texts.get("method", UNNAMED),
        backbone=texts.get("backbone", f"{parameters:.3g} parameters"),
        parameters=parameters,
        tokens=tokens,
        loss=loss,
        flops=6 * parameters * tokens if flops is None else flops,
        unique_tokens=unique,
        family=texts.get("family", name),
        left_out="; ".join(wrong) or None,
    )
