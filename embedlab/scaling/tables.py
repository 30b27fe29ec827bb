"""Tables of runs that were trained elsewhere: reads CSV, TSV and Parquet files, whatever the names of their columns.

The columns to read are named by ``Columns``. Every row becomes one or more observations, to which laws are fitted.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import itertools
import math
import stat
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import parquet
from scipy.stats import spearmanr

from embedlab.errors import ConfigError, RecordError, plain_text, suggestion
from embedlab.scaling.observations import Observation
from embedlab.scaling.table_cells import Condition, Numbers, conditions_of, numbers_of

AMOUNTS = "columns"
"""Value of ``Columns.tokens`` for a table with columns named by numbers of tokens, whose cells hold losses."""

_FEWEST_PARAMETERS = 1e4  # of a language model, without embedding tables; a lower median means another unit
_FEWEST_TOKENS = 1e4  # of a training run; a lower median means another unit
_LARGEST = 1e36  # of a number in a cell, whose square is still finite

_MOST_BYTES = 2**28  # of a table after decompression
_MOST_ROWS = 1_000_000
_MOST_COLUMNS = 10_000
_MOST_NAMES = 20  # of columns shown in a message
_LONGEST_NAME, _MOST_COMPARED = 100, 1_000  # column names compared for a suggestion: characters, number
_MOST_LINES = 20  # of a row: quoted cells may contain line breaks
_LONGEST_CELL = 10_000  # characters of a name in a cell
_DELIMITERS = (",", "\t", ";", "|")
_PARQUET = b"PAR1"
_TEXTS = ("method", "backbone", "family")  # fields of texts; all others are numbers
_NO_TEXT = {b"PK\x03\x04": "a spreadsheet or a ZIP archive", b"version https://git-lfs": ""}

_RISING = 0.5  # correlation of ranks of FLOPs and loss above which the column holds no losses
_FEWEST_TO_JUDGE = 8  # runs

LossIs = Literal["loss", "accuracy"]
"""What the column of losses holds: losses, or accuracies from 0 to 1, of which 1 minus the accuracy is the loss."""

UNNAMED = "all runs"
"""Name of the method of all runs in a table without a column of methods."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of the columns of a table. A factor may follow a name, for example ``N_millions*1e6``.

    Attributes:
        parameters: Column with the number of model parameters (N).
        loss: Column with the loss on held-out data.
        tokens: Column with the number of tokens seen in training (D); ``columns`` for a table in which the column
            names are numbers of tokens and the cells below are losses. By default, D is FLOPs / (6 N).
        flops: Column with the training cost in FLOPs. By default, the cost is 6 N D.
        method: Column with the name of the method; each method gets its own law. By default, all runs have one method.
        backbone: Column with the name of the model. By default, the model is named by its number of parameters.
        unique_tokens: Column with the number of training tokens without repeats, which is the number of tokens of one
            epoch. Without the column, every run is taken to have seen each token once.
        family: Column with the family of the run; runs of one family share noise. By default, runs are independent.
        learning_rate: Column with the peak learning rate. Of runs that differ in nothing else, laws are fitted to the
            one with the lowest loss. By default, every run counts.
    """

    parameters: str = "parameters"
    loss: str = "loss"
    tokens: str | None = None
    flops: str | None = None
    method: str | None = None
    backbone: str | None = None
    unique_tokens: str | None = None
    family: str | None = None
    learning_rate: str | None = None


class _Column(NamedTuple):
    """A column to read.

    Attributes:
        name: Name of the column.
        factor: Factor that the numbers of the column are multiplied by.
    """

    name: str
    factor: float


def require_columns(columns: Columns) -> None:
    """Check the options of the columns before a table is read.

    Args:
        columns: Names of the columns.

    Raises:
        ConfigError: If a factor is not a finite number above 0.
        RecordError: If neither a column of tokens nor a column of FLOPs is named.
    """
    if columns.tokens is None and columns.flops is None:
        raise RecordError(
            "A table of runs needs an amount of data per run. Name the column with tokens (columns.tokens) or the "
            "column with FLOPs (columns.flops)."
        )
    for field in fields(columns):
        written = getattr(columns, field.name)
        if written is not None:
            column = _column(written)
            if not (math.isfinite(column.factor) and column.factor > 0):
                raise ConfigError(
                    f"columns.{field.name} is '{plain_text(written)}'. Expected a finite factor above 0, for example "
                    f"'{plain_text(column.name)}*1e6'."
                )


def read_table(
    path: Path, columns: Columns, *, where: str | None = None, loss_is: LossIs = "loss"
) -> list[Observation]:
    """Return the observations of a CSV, TSV or Parquet file; text may be compressed with gzip.

    Each row gives one observation, or one per column of losses if ``columns.tokens`` is ``columns``. An observation
    that no law can be fitted to states the reason in ``left_out``. A broken row, for example a row with a stray quote
    or with a missing cell, is left out as well; reading continues on the next line. A row that stands twice counts
    once.

    Args:
        path: The file to read.
        columns: Names of the columns to read.
        where: Conditions that a row must meet, for example ``outlier == 0``; None for all rows.
        loss_is: What the column of losses holds.

    Raises:
        ConfigError: If the factor of a column is not a finite number above 0, or if ``where`` is no condition.
        RecordError: If the file cannot be read, lacks a column, has too many runs, if N or D is in another unit, or if
            the losses rise with the FLOPs.
    """
    require_columns(columns)
    table = _Table(path, _text(path), columns, conditions_of(where))
    asked = table.asked
    amounts = table.amounts
    factor = asked["tokens"].factor if "tokens" in asked else 1.0
    found: list[Observation] = []
    rows = list(table.rows())
    numbers = table.numbers(row for _, row in rows if not isinstance(row, str))
    for number, row in rows:
        name = f"{path.name}:{number}"
        if isinstance(row, str):
            found.append(_broken(name, row))
        elif not all(condition.holds(row, numbers) for condition in table.conditions):
            found.append(_broken(name, f"it does not meet {plain_text(where)}"))
        elif amounts:
            found += [
                _observation(f"{name}:{column}", row, asked, numbers, loss_is, amount * factor, row[column])
                for amount, column in amounts.items()
            ]
        else:
            found.append(_observation(name, row, asked, numbers, loss_is, None, row[asked["loss"].name]))
        if len(found) > _MOST_ROWS:
            raise RecordError(f"{_named(path)} has more than {_MOST_ROWS} runs, the maximum. Remove some rows.")
    if not found:
        raise RecordError(f"{_named(path)} has a header and no rows. Add one row per run below the header.")
    _require_unit(path, columns.parameters, "parameters", [row.parameters for row in found], _FEWEST_PARAMETERS)
    if columns.tokens is not None and not amounts:
        _require_unit(path, columns.tokens, "tokens", [row.tokens for row in found], _FEWEST_TOKENS)
    found = _without_repeats(found)
    _require_falling(path, found, loss_is)
    return found


def _require_falling(path: Path, observations: Sequence[Observation], loss_is: LossIs) -> None:
    """Check that losses do not rise with the FLOPs, as numbers would for which higher is better.

    Raises:
        RecordError: If the ranks of FLOPs and losses have a correlation above 0.5.
    """
    used = [row for row in observations if row.left_out is None]
    if len(used) < _FEWEST_TO_JUDGE:
        return
    losses = np.array([row.loss for row in used])
    correlation = spearmanr([row.flops for row in used], losses).statistic
    if correlation > _RISING:
        hint = (
            "If the column holds accuracies from 0 to 1, add --loss_is accuracy. Of another number for which higher is "
            "better, give a column with a number that falls."
            if loss_is == "loss"
            else "If the column holds losses or errors, leave out --loss_is."
        )
        raise RecordError(
            f"The losses of {_named(path)} rise with the FLOPs (correlation of ranks {correlation:.2f}), and laws "
            f"describe losses that fall. {hint}"
        )


def _without_repeats(observations: Sequence[Observation]) -> list[Observation]:
    """Return the rows, of which a row with the same numbers and names as an earlier row is marked as left out."""
    first: dict[Observation, str] = {}
    found = []
    for row in observations:
        if row.left_out is None:
            own_family = row.family == row.name
            earlier = first.setdefault(replace(row, name="", family="" if own_family else row.family), row.name)
            if earlier != row.name:
                row = replace(row, left_out="the same run stands in an earlier row, and counts once")
        found.append(row)
    return found


def _named(path: Path) -> str:
    return plain_text(path, longest=1_000)


def _require_unit(path: Path, column: str, field: str, values: list[float], fewest: float) -> None:
    """Check that a column counts single parameters or tokens, not millions: its median must not be too small.

    Args:
        path: Path of the file, for the message.
        column: Column as the user wrote it.
        field: Field of ``Columns``.
        values: Numbers of the column.
        fewest: Minimum of the median.

    Raises:
        RecordError: If the median is below the minimum.
    """
    finite = [value for value in values if math.isfinite(value)]
    if finite and np.median(finite) < fewest:
        name = plain_text(_column(column).name)
        raise RecordError(
            f"Column '{plain_text(column)}' of {_named(path)} has a median of {np.median(finite):g}, which is too "
            f"small for a number of {field}. If the column is in millions, use --columns.{field} '{name}*1e6'."
        )


def _column(written: str) -> _Column:
    """Return the name and the factor of a column. A star that no number follows is part of the name."""
    name, star, factor = written.rpartition("*")
    try:
        return _Column(name.strip(), float(factor)) if star else _Column(written.strip(), 1.0)
    except ValueError:
        return _Column(written.strip(), 1.0)


# From bytes to rows


def _text(path: Path) -> str:
    """Return the whole text of a file, decompressed and decoded."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            what = "a folder, and folders of runs go to --runs" if path.is_dir() else "no regular file"
            raise RecordError(f"{_named(path)} is {what}. Expected a CSV, TSV or Parquet file with one row per run.")
        with path.open("rb") as file:
            content = _unpacked(file)
    except (OSError, EOFError, zlib.error, ValueError) as error:  # ValueError: an impossible path
        reason = error.strerror if isinstance(error, OSError) and error.strerror else plain_text(error)
        raise RecordError(f"{_named(path)} cannot be read as a table: {reason}.") from error
    if len(content) > _MOST_BYTES:
        raise RecordError(
            f"{_named(path)} holds more than {_MOST_BYTES / 2**20:g} MiB, the maximum for a table of runs. Remove rows "
            "or columns."
        )
    if content.startswith(_PARQUET):
        return _text_of_parquet(path, content)
    for magic, kind in _NO_TEXT.items():
        if content.startswith(magic):
            what = kind or "only a pointer of Git LFS, and `git lfs pull` fetches the file"
            raise RecordError(f"{_named(path)} is {what}. Expected a CSV or TSV file with one row per run.")
    encoding = "utf-8-sig"
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RecordError(
            f"{_named(path)} cannot be read as a table: line {line} is not {encoding.removesuffix('-sig')} text. Save "
            "the table as CSV in UTF-8."
        ) from error
    if "\0" in text:
        raise RecordError(
            f"{_named(path)} cannot be read as a table: it has NUL bytes. Save the table as CSV in UTF-8."
        )
    return text


def _text_of_parquet(path: Path, content: bytes) -> str:
    """Return the content of a Parquet file as the text of a CSV file."""
    try:
        file = parquet.ParquetFile(io.BytesIO(content))
        if file.metadata.num_rows > _MOST_ROWS:
            raise RecordError(f"{_named(path)} has more than {_MOST_ROWS} runs, the maximum. Remove some rows.")
        table = file.read()
    except (pa.ArrowException, OSError) as error:
        raise RecordError(f"{_named(path)} cannot be read as a Parquet file: {plain_text(error)}") from error
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(table.column_names)
    writer.writerows(zip(*(column.to_pylist() for column in table.columns), strict=True))
    return text.getvalue()


def _unpacked(file: io.BufferedReader) -> bytes:
    """Return the decompressed content of a file, cut one byte after the maximum size of a table.

    Compression is detected from the first two bytes, not from the name of the file.
    """
    if file.peek(2)[:2] != b"\x1f\x8b":
        return file.read(_MOST_BYTES + 1)
    with gzip.open(file) as unpacked:
        content: bytes = unpacked.read(_MOST_BYTES + 1)
    return content


class _Table:
    """The header and the rows of a table. The header names each column to read exactly once.

    Args:
        path: Path of the file, for messages.
        text: Text of the file.
        columns: Names of the columns to read.
        conditions: Conditions of the rows, whose columns are read as well.

    Attributes:
        conditions: Conditions that rows must meet; others are left out.
        asked: Column to read for each field of ``Columns`` that is set.
        amounts: Name of a column by the number of tokens that is its name, before any factor. Empty unless
            ``Columns.tokens`` is ``columns``.

    Raises:
        RecordError: If the text is empty, the header is too long, or a column is missing or ambiguous.
    """

    def __init__(self, path: Path, text: str, columns: Columns, conditions: Sequence[Condition] = ()) -> None:
        self._path = path
        self.conditions = conditions
        self._lines = io.StringIO(text, newline="").readlines()
        self._begin = next((number for number, line in enumerate(self._lines) if line.strip()), 0)
        own = "\t" if ".tsv" in path.suffixes else ","
        written = {field.name: getattr(columns, field.name) for field in fields(columns)}
        written = {name: column for name, column in written.items() if column is not None}
        self._delimiter, self._header = own, self._first(own)
        for delimiter in _DELIMITERS:  # spreadsheets of some countries write semicolons
            header = self._first(delimiter)
            if self._lacking(header, written) is None and self._lacking(self._header, written) is not None:
                self._delimiter, self._header = delimiter, header
        if not self._header:
            raise RecordError(f"{_named(path)} is empty. Expected a header with names of columns, and one row per run.")
        if len(self._header) > _MOST_COLUMNS:
            raise RecordError(
                f"{_named(path)} has {len(self._header)} columns, and the maximum is {_MOST_COLUMNS}. Remove columns."
            )
        self.amounts = self._amounts() if _column(written.get("tokens", "")).name == AMOUNTS else {}
        lacking = self._lacking(self._header, written)
        if lacking is not None:
            self._refuse(lacking, written[lacking])
        by_amount = ("tokens", "loss") if self.amounts else ()
        self.asked = {
            name: _column(column) if name in by_amount else self._found(column, self._header)
            for name, column in written.items()
        }
        for condition in conditions:
            if condition.column not in self._header:
                self._refuse_column(condition.column, "--where")
        names = [column.name for name, column in self.asked.items() if name not in by_amount]
        names += [condition.column for condition in conditions if condition.column not in names]
        for name in [*names, *self.amounts.values()]:
            if self._header.count(name) > 1:
                raise RecordError(
                    f"{_named(path)} has the column '{plain_text(name)}' {self._header.count(name)} times, so the "
                    "column to read is ambiguous. Rename or remove the other columns of this name."
                )

    def _first(self, delimiter: str) -> list[str]:
        cells, _ = self._record(self._begin, delimiter)
        return [] if cells is None else [name.strip() for name in cells]

    def _found(self, written: str, header: Sequence[str]) -> _Column:
        """Return the column that the whole text names, if the header has it; else the column without a factor."""
        whole = written.strip()
        return _Column(whole, 1.0) if whole in header else _column(written)

    def _lacking(self, header: Sequence[str], written: Mapping[str, str]) -> str | None:
        """Return the first field whose column the header lacks; None if the header has all columns."""
        of_amounts = _column(written.get("tokens", "")).name == AMOUNTS
        for name, column in written.items():
            if of_amounts and name in ("tokens", "loss"):
                if not any(map(_is_number, header)):
                    return name
            elif self._found(column, header).name not in header:
                return name
        return None

    def _refuse(self, field: str, written: str) -> None:
        self._refuse_column(_column(written).name, f"columns.{field}")

    def _refuse_column(self, name: str, option: str) -> None:
        header = self._header
        shown = ", ".join(plain_text(one, longest=60) for one in header[:_MOST_NAMES])
        more = f" and {len(header) - _MOST_NAMES} more" if len(header) > _MOST_NAMES else ""
        hint = suggestion(name[:_LONGEST_NAME], [one for one in header[:_MOST_COMPARED] if len(one) <= _LONGEST_NAME])
        if all(map(_is_number, header)):
            hint = " Its first line holds numbers: insert a line with the names of the columns above."
        raise RecordError(
            f"{_named(self._path)} has no column '{plain_text(name)}' ({option}). Its columns are {shown}{more}."
            + plain_text(hint)
        )

    def _amounts(self) -> dict[float, str]:
        numbers = [name for name in self._header if _is_number(name)]
        found = {float(name): name for name in numbers}
        if len(found) < len(numbers):
            raise RecordError(
                f"{_named(self._path)} has two columns with the same amount of data. Rename or remove one of the two."
            )
        if not found:
            names = ", ".join(plain_text(name, longest=60) for name in self._header[:_MOST_NAMES])
            raise RecordError(
                f"columns.tokens is '{AMOUNTS}', but no column of the table has a number as its name: {names}. Give "
                "columns.tokens the name of a column."
            )
        return found

    def rows(self) -> Iterator[tuple[int, dict[str, str] | str]]:
        """Yield the number of each row's first line (from 1) and the cells by column, or what is wrong with the row."""
        used = {column.name for column in self.asked.values()} | set(self.amounts.values())
        used |= {condition.column for condition in self.conditions}
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
                reason = "a quote has no end"
                if cells is not None:
                    reason = f"it has {len(cells)} cells, and the header has {len(self._header)}"
                yield number, f"the row is broken: {reason}"
                at += 1  # a stray quote may have swallowed the rows that follow
                continue
            yield number, {name: cells[place] for name, place in places.items()}
            at = behind

    def numbers(self, rows: Iterable[Mapping[str, str]]) -> Numbers:
        """Return how the numbers of the rows are written.

        Args:
            rows: Cells by column.
        """
        names = {column.name for field, column in self.asked.items() if field not in _TEXTS} | set(
            self.amounts.values()
        )
        cells = (row[name] for row in rows for name in names if name in row)
        return numbers_of(cells, are_commas_likely=self._delimiter != ",")

    def _record(self, at: int, delimiter: str) -> tuple[list[str] | None, int]:
        """Return the cells of the record that begins on a line, and the line after the record.

        The cells are None if the record does not end within the maximum number of lines.
        """
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
    name: str,
    row: Mapping[str, str],
    asked: Mapping[str, _Column],
    numbers: Numbers,
    loss_is: LossIs,
    tokens: float | None,
    loss_text: str,
) -> Observation:
    """Return the observation of one row.

    If a cell that should hold a usable number does not, ``left_out`` states the reason.

    Args:
        name: Name of the observation.
        row: Cells of the row, by the names of the columns.
        asked: Column of each field that is read.
        numbers: How the numbers of the table are written.
        loss_is: What the column of losses holds.
        tokens: Number of tokens according to the name of the column of losses; None for a table with one run per row.
        loss_text: Cell with the loss.
    """
    wrong: list[str] = []

    def number(what: str, text: str, factor: float) -> float:
        value = numbers.read(text) * factor
        if not 1 / _LARGEST < value < _LARGEST:
            wrong.append(f"its {what} is {plain_text(repr(text), longest=40)}")
            return math.nan
        return value

    def of(field: str, what: str) -> float:
        return number(what, row[asked[field].name], asked[field].factor)

    parameters = of("parameters", "number of parameters")
    loss = number(loss_is, loss_text, 1.0 if tokens is not None else asked["loss"].factor)
    if loss_is == "accuracy" and not wrong:
        loss = 1 - loss
        if not 0 < loss < 1:
            wrong.append(f"its accuracy is {plain_text(repr(loss_text), longest=40)}, and not between 0 and 1")
    flops = of("flops", "number of FLOPs") if "flops" in asked else None
    if tokens is not None:
        if not 0 < tokens < _LARGEST:
            wrong.append("the run saw no data")
    elif "tokens" in asked:
        tokens = of("tokens", "number of tokens")
    else:
        tokens = (math.nan if flops is None else flops) / (6 * parameters)
    unique = min(tokens, of("unique_tokens", "number of unique tokens")) if "unique_tokens" in asked else tokens
    rate = of("learning_rate", "learning rate") if "learning_rate" in asked else None
    texts = {field: row[asked[field].name] for field in _TEXTS if field in asked}
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
        learning_rate=rate,
        left_out="; ".join(wrong) or None,
    )
