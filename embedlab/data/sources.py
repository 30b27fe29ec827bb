"""Where training pairs come from: what the user writes in the configuration, and the validated text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from embedlab.data.readers import STANDARD_LIBRARY, open_rows
from embedlab.data.rows import RejectedRow, Row, column_names, shown, text_of, value_of
from embedlab.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class PairSource:
    """A set of training pairs.

    Args:
        path: a file (.jsonl, .csv, .tsv, each also .gz, or .parquet), a folder of such files, a glob, a
            folder that ``datasets.Dataset.save_to_disk`` wrote, the id of a Hugging Face dataset, or
            ``python-stdlib``.
        query: column of the query; of several columns the texts are joined by spaces, blank ones left out.
        positive: column or columns of the document that answers the query.
        negatives: column with a list of texts (or one text) that do not answer it, if there is one.
        split_key: column whose value decides between training, validation and test; by default the query
            (for ``python-stdlib`` the module). Pairs with the same value stay together.
        query_prompt: put before each query.
        document_prompt: put before each positive and negative.
        weight: share of the batches relative to the other sources' weights; without weights every pair is
            seen once an epoch.
        name: shown in logs; by default the last part of the path.
        hub_config: configuration of a Hugging Face dataset.
        hub_split: split of a Hugging Face dataset.
        on_error: ``raise`` stops at the first row that cannot be used, ``skip`` leaves such rows out and
            counts them.
        max_rows: pairs that are read, at most.
    """

    path: str
    query: str | list[str] = "query"
    positive: str | list[str] = "positive"
    negatives: str | None = None
    split_key: str | None = None
    query_prompt: str = ""
    document_prompt: str = ""
    weight: float | None = None
    name: str | None = None
    hub_config: str | None = None
    hub_split: str = "train"
    on_error: Literal["raise", "skip"] = "raise"
    max_rows: int | None = None

    @property
    def label(self) -> str:
        """``name``, or what stands for it."""
        if self.name:
            return self.name
        return Path(self.path).name.split(".")[0] or self.path


class PairRow(NamedTuple):
    """One training pair, without prompts.

    Attributes:
        query: not blank.
        positive: not blank.
        negatives: none of them blank; may be empty.
        key: pairs with the same key are on the same side of every split.
    """

    query: str
    positive: str
    negatives: tuple[str, ...]
    key: str


def read_pairs(source: PairSource, skipped: Counter[str]) -> Iterator[PairRow]:
    """Streams the pairs of a source.

    Args:
        source: what to read.
        skipped: counts, by reason, the rows that ``on_error: skip`` leaves out.

    Raises:
        DataError: if the source cannot be read, has no rows, or none that can be used; with
            ``on_error: raise`` at the first row that cannot.
        ConfigError: if ``max_rows`` is less than one, or no column is named.
    """
    if source.max_rows is not None and source.max_rows < 1:
        raise ConfigError(f"max_rows of source '{source.label}' must be at least 1, got {source.max_rows}.")
    columns = _Columns(source)
    rows = open_rows(source.path, hub_config=source.hub_config, hub_split=source.hub_split).rows(columns.all)
    num_pairs = 0
    first: RejectedRow | None = None
    for place, row in rows:
        try:
            if isinstance(row, RejectedRow):
                raise row
            pair = columns.pair(row, place)
        except RejectedRow as rejected:
            if source.on_error == "raise":
                remedy = "Correct it, or set on_error: skip to leave such rows out; they are counted."
                raise DataError(f"{rejected} {remedy}") from rejected
            skipped[rejected.reason] += 1
            first = first or rejected
            continue
        yield pair
        num_pairs += 1
        if num_pairs == source.max_rows:
            return
    if num_pairs == 0:
        raise DataError(f"Every row of '{source.path}' was skipped ({counts_of(skipped)}). The first: {first}")


def content_fingerprint(source: PairSource) -> str:
    """Hexadecimal digits that change with the content of the source's files, not with their names or dates.

    Raises:
        DataError: if the source cannot be read.
    """
    return open_rows(source.path, hub_config=source.hub_config, hub_split=source.hub_split).fingerprint()


def counts_of(skipped: Mapping[str, int]) -> str:
    """The reasons of rows left out with their counts, for people.

    >>> counts_of({"empty text": 2, "malformed line": 30})
    '30 malformed line, 2 empty text'
    """
    return ", ".join(f"{count} {reason}" for reason, count in Counter(skipped).most_common())


class _Columns:
    """Takes a pair out of a row."""

    def __init__(self, source: PairSource) -> None:
        self._query = column_names(source.query, "query", source.label)
        self._positive = column_names(source.positive, "positive", source.label)
        self._negatives = source.negatives
        self._key = source.split_key
        if self._key is None and source.path == STANDARD_LIBRARY:
            self._key = "module"
        self.all = [*self._query, *self._positive, *(name for name in (self._negatives, self._key) if name)]

    def pair(self, row: Row, place: str) -> PairRow:
        query = text_of(row, self._query, place)
        positive = text_of(row, self._positive, place)
        negatives = () if self._negatives is None else _negatives_of(row, self._negatives, place)
        key = query if self._key is None else _key_of(row, self._key, place)
        return PairRow(query, positive, negatives, key)


def _negatives_of(row: Row, column: str, place: str) -> tuple[str, ...]:
    value = value_of(row, column, place)
    values = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(values, list) or not all(isinstance(text, str) for text in values):
        expected = "Expected a list of strings, one string, or null."
        raise RejectedRow(
            "negatives not a list of texts", f"{place}: column '{column}' holds {shown(value)}. {expected}"
        )
    return tuple(text_of({column: text}, [column], place) for text in values)


def _key_of(row: Row, column: str, place: str) -> str:
    value = value_of(row, column, place)
    if not isinstance(value, str | int | float):
        expected = "Expected a text or a number to split by."
        raise RejectedRow("no split key", f"{place}: column '{column}' holds {shown(value)}. {expected}")
    return str(value)
