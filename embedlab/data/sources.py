"""Reads training pairs from the sources that a configuration names, and validates their texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Literal, NamedTuple

from embedlab.data.readers import STANDARD_LIBRARY, open_rows
from embedlab.data.rows import (
    SKIP_REMEDY,
    RejectedRow,
    Row,
    RowSource,
    column_names,
    counts_of,
    elements_of,
    found_value,
    is_blank,
    key_of,
    shown,
    text_of,
    usable_rows,
    value_of,
)
from embedlab.data.tables import Quoting
from embedlab.data.usual_columns import PairColumns, named_groups, usual_columns
from embedlab.errors import ConfigError

__all__ = ["PairRow", "PairSource", "content_fingerprint", "counts_of", "read_pairs"]


@dataclass(frozen=True, kw_only=True)
class PairSource:
    """A source of training pairs.

    Columns are named as in the file. ``column.field`` names a field of an object in a column, or of each object in a
    list in a column.

    Args:
        path: A file (.jsonl, .csv, .tsv, each also .gz, or .parquet), a folder of such files, a glob, a folder that
            ``datasets.Dataset.save_to_disk`` wrote, the id of a Hugging Face dataset, or ``python-stdlib``.
        query: Column or columns of the query. The texts of several columns are joined by spaces, without blank texts.
            By default ``query``, or a column recognized by the usual names of public sets, which is then printed.
        positive: Column or columns of the document that answers the query. From a list of documents the first is taken.
            By default ``positive``, or a column recognized by the usual names of public sets.
        negatives: Column of documents that do not answer the query, with a list of texts or one text per row. Also a
            list of such columns, of which blank texts are left out. The columns of a list inside the list are joined.
            By default none, or the columns recognized together with the query and the positive.
        split_key: Column whose value decides between training, validation and test. Pairs with equal values stay in the
            same split, where 1 equals 1.0. By default the query (for ``python-stdlib`` the module).
        query_prompt: Text put before each query.
        document_prompt: Text put before each positive and each negative.
        weight: Weight that sets the source's share of the batches, relative to the weights of the other sources. If no
            source has a weight, every pair is seen once per epoch, except the last pairs that do not fill a batch.
        name: Name of the source in logs. By default the last part of the path, up to its first point.
        hub_config: Configuration of a Hugging Face dataset. By default the dataset's default configuration.
        hub_split: Split of a Hugging Face dataset, or of a saved dataset that has splits.
        on_error: ``raise`` stops at the first row that cannot be used. ``skip`` leaves out and counts all rows that
            cannot be used.
        max_rows: Maximum number of pairs to read. By default all.
        quoting: How CSV and TSV files are quoted: ``csv`` by the rules of CSV, ``none`` without quotes, so that a quote
            is an ordinary character. ``auto`` reads a CSV file by the rules of CSV. It reads a TSV file without quotes
            if lines that break the rules of CSV by a quote outnumber lines that need quotes.
    """

    path: str
    query: str | list[str] | None = None
    positive: str | list[str] | None = None
    negatives: str | list[str | list[str]] | None = None
    split_key: str | None = None
    query_prompt: str = ""
    document_prompt: str = ""
    weight: float | None = None
    name: str | None = None
    hub_config: str | None = None
    hub_split: str = "train"
    on_error: Literal["raise", "skip"] = "raise"
    max_rows: int | None = None
    quoting: Quoting = "auto"

    @property
    def label(self) -> str:
        """Name of the source in logs: ``name``, or the last part of the path up to its first point."""
        if self.name:
            return self.name
        return Path(self.path).name.split(".")[0] or self.path


class PairRow(NamedTuple):
    """One training pair, without prompts.

    Attributes:
        query: Text of the query, not blank.
        positive: Text of the document that answers the query, not blank.
        negatives: Texts of documents that do not answer the query, none of them blank. Empty if the pair has none.
        key: Key to split by. Pairs with the same key are in the same split.
    """

    query: str
    positive: str
    negatives: tuple[str, ...]
    key: str


def read_pairs(source: PairSource, skipped: Counter[str], notes: list[str] | None = None) -> Iterator[PairRow]:
    """Yield the pairs of a source.

    Args:
        source: Source to read.
        skipped: Counter to which the rows that ``on_error: skip`` leaves out are added, by reason.
        notes: List to which remarks for the user about how the source was read are added, one clause each.

    Raises:
        DataError: If the source cannot be read, has no rows, or has no row that can be used, or if a row cannot be used
            with ``on_error: raise``.
        ConfigError: If ``max_rows`` is below 1, or an option names no column.
    """
    if source.max_rows is not None and source.max_rows < 1:
        raise ConfigError(f"max_rows of source '{source.label}' must be at least 1, got {source.max_rows}.")
    rows = _opened(source)
    reader = _PairReader(source, rows)
    pairs = usable_rows(
        rows.rows(reader.columns),
        reader.pair,
        path=source.path,
        skipped=skipped if source.on_error == "skip" else None,
        remedy=SKIP_REMEDY,
    )
    yield from islice(pairs, source.max_rows)
    if notes is not None:
        notes += [*reader.notes(), *rows.notes()]


def content_fingerprint(source: PairSource) -> str:
    """Return hexadecimal digits that change with the content of a source's files, but not with their names or dates.

    Raises:
        DataError: If the source cannot be read.
    """
    return _opened(source).fingerprint()


def _opened(source: PairSource) -> RowSource:
    return open_rows(source.path, hub_config=source.hub_config, hub_split=source.hub_split, quoting=source.quoting)


class _PairReader:
    """Extracts a pair from each row of a source.

    Args:
        source: Options of the source, as the user has set them.
        rows: Opened rows of the source.

    Attributes:
        columns: Names of the columns to read.

    Raises:
        ConfigError: If an option names no column.
        DataError: If columns are not named and cannot be recognized.
    """

    def __init__(self, source: PairSource, rows: RowSource) -> None:
        query = None if source.query is None else column_names(source.query, "query", source.label)
        positive = None if source.positive is None else column_names(source.positive, "positive", source.label)
        groups = None if source.negatives is None else named_groups(source.negatives, source.label)
        if query and positive:
            found = PairColumns(query, positive, [])
        else:
            found = usual_columns(
                source.path, rows.columns(), query=query, positive=positive, has_negatives=groups is not None
            )
        self._query, self._positive = found.query, found.positive
        self._negatives = found.negatives if groups is None else groups
        self._key = source.split_key
        if self._key is None and source.path == STANDARD_LIBRARY:
            self._key = "module"
        self.columns = [*self._query, *self._positive, *chain(*self._negatives), *([self._key] if self._key else [])]
        self._note = found.note
        self._num_pairs = self._num_lists = 0

    def pair(self, row: Row, place: str) -> PairRow:
        """Return the pair of a row.

        Raises:
            RejectedRow: If the row does not hold a valid pair.
        """
        query = text_of(row, self._query, place)
        positives = elements_of(row, self._positive, place)
        if not positives:
            named = " and ".join(f"'{column}'" for column in self._positive)
            raise RejectedRow("empty text", f"{place}: the list in column {named} is empty. Expected a text.")
        positive = text_of(positives[0], self._positive, place)
        negatives: list[str] = []
        for group in self._negatives:
            negatives += self._negatives_of(row, group, place)
        key = query if self._key is None else key_of(row, self._key, place, reason="no split key")
        self._num_pairs += 1
        self._num_lists += len(positives) > 1
        return PairRow(query, positive, tuple(negatives), key)

    def notes(self) -> list[str]:
        """Return remarks for the user about the pairs read so far, one clause each."""
        several = f"{self._num_lists} of {self._num_pairs} rows have several positives, of which only the first is used"
        return [*([self._note] if self._note else []), *([several] if self._num_lists else [])]

    def _negatives_of(self, row: Row, columns: Sequence[str], place: str) -> list[str]:
        """Return the negatives in a group of columns: a list's texts, one text, or nothing if all columns are blank."""
        values = [found_value(row, column) for column in columns]
        if all(map(is_blank, values)):
            if len(self._negatives) == 1:
                value_of(row, columns[-1], place)  # a single group of columns must exist in the row, even if null
            return []
        for column, value in zip(columns, values, strict=True):
            texts = value if isinstance(value, list) else [value]
            if not all(isinstance(text, str) or (text is None and len(columns) > 1) for text in texts):
                received = f"{place}: column '{column}' holds {shown(value)}."
                expected = "Expected a list of strings, one string, or null."
                raise RejectedRow("negatives not a list of texts", f"{received} {expected}")
        return [text_of(element, columns, place) for element in elements_of(row, columns, place)]
