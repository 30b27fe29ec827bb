"""Recognizes the usual column names of public sets of training pairs, so that users need not name the columns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from embedlab.data.rows import column_holding, missing_column, other_delimiter, shown
from embedlab.errors import ConfigError, DataError

QUERY: Final = "query"
POSITIVE: Final = "positive"

_USUAL: Final[tuple[tuple[str, str | list[str]], ...]] = (  # query, positive; a list is joined
    ("anchor", POSITIVE),  # Sentence-Transformers
    (QUERY, "pos"),  # FlagEmbedding
    (QUERY, ["positive_passages.title", "positive_passages.text"]),  # Tevatron
    (QUERY, "answer"),
    (QUERY, "document"),
    (QUERY, "passage"),
    ("question", "answer"),
    ("sentence1", "sentence2"),
)
_USUAL_NEGATIVES: Final[tuple[str | list[str], ...]] = (
    "negative",
    "negatives",
    "neg",
    ["negative_passages.title", "negative_passages.text"],
)
_NUMBERED_NEGATIVE: Final = re.compile(r"negative_\d+")
_SCORES: Final = {"score", "similarity_score", "label", "labels"}  # columns that mark some pairs as not positive


class PairColumns(NamedTuple):
    """Columns of a source of pairs.

    Attributes:
        query: Columns whose texts make the query.
        positive: Columns whose texts make the positive.
        negatives: Groups of columns, each group for one negative or list of negatives. The texts of a group's columns
            are joined.
        note: Clause that tells the user what was assumed. Empty if nothing was assumed.
    """

    query: list[str]
    positive: list[str]
    negatives: list[list[str]]
    note: str = ""


def usual_columns(
    path: str, there: Sequence[str], *, query: list[str] | None, positive: list[str] | None, has_negatives: bool
) -> PairColumns:
    """Find the columns of the query and the positive that the user has not named.

    If columns ``query`` and ``positive`` exist, or if the columns are unknown, these two names are used. Otherwise the
    columns must match exactly one usual layout. The columns of negatives are used too if the user has named no column
    and exactly one usual kind of negatives exists.

    Args:
        path: Path of the source, for messages.
        there: Names of the existing columns, and ``column.field`` for nested fields. Empty if the columns are unknown.
        query: Columns of the query. None if the user has not named them.
        positive: Columns of the positive. None if the user has not named them.
        has_negatives: Whether the user has named columns of negatives.

    Raises:
        DataError: If the columns match no usual layout or several. The message lists the existing columns.
    """
    as_named = PairColumns(query or [QUERY], positive or [POSITIVE], [])
    negatives = [] if has_negatives else _negatives(there)
    unused = f"{_all_words(negatives)} not used as negatives (set negatives to do so)" if negatives else ""
    if not there or all(column_holding(name, there) for name in as_named.query + as_named.positive):
        return as_named._replace(note=unused)
    layouts: list[tuple[list[str], list[str]]] = []
    for usual_query, usual_positive in _USUAL:
        found = (query or _those_of(usual_query, there), positive or _those_of(usual_positive, there))
        is_scored = usual_query == "sentence1" and not _SCORES.isdisjoint(there)
        if all(found) and found not in layouts and not is_scored:
            layouts.append(found)
    if len(layouts) != 1:
        if (advice := other_delimiter(path, there)) is not None:
            raise DataError(advice)
        lacking = next(name for name in as_named.query + as_named.positive if not column_holding(name, there))
        named = " or ".join(f"{_words(layout[0])} and {_words(layout[1])}" for layout in layouts)
        ambiguous = f" It could be {named}." if layouts else ""
        raise DataError(
            f"{missing_column(path, lacking, there)}{ambiguous} Name the columns of the query and of the document that "
            f"answers it, for example [{{path: {path}, query: {_plain(there[0])}, positive: {_plain(there[-1])}}}]."
        )
    found_query, found_positive = layouts[0]
    told = f"{_words(found_query)} as query, {_words(found_positive)} as positive"
    if query or positive:
        return PairColumns(found_query, found_positive, [], f"takes {told}")
    told += f", {_all_words(negatives)} as negatives" if negatives else ""
    return PairColumns(found_query, found_positive, negatives, f"takes {told}")


def named_groups(columns: Sequence[str | list[str]] | str, owner: str) -> list[list[str]]:
    """Return the columns of negatives as groups, whose columns are joined to one text.

    A string is a group of one column; an inner list is a group.

    Args:
        columns: Columns as the user wrote them.
        owner: Name of the source, for messages.

    Raises:
        ConfigError: If there is no column, or if the name of a column is empty.
    """
    groups = [_listed(columns)] if isinstance(columns, str) else [_listed(group) for group in columns]
    if not groups or not all(group and all(group) for group in groups):
        raise ConfigError(f"negatives of '{owner}' is {columns!r}. Expected a column's name or a list of names.")
    return groups


def _negatives(there: Sequence[str]) -> list[list[str]]:
    kinds = [[found] for usual in _USUAL_NEGATIVES if (found := _those_of(usual, there))]
    if numbered := [[name] for name in there if _NUMBERED_NEGATIVE.fullmatch(name)]:
        kinds.append(numbered)
    return kinds[0] if len(kinds) == 1 else []


def _those_of(usual: str | list[str], there: Sequence[str]) -> list[str]:
    """Return the existing columns of a layout, or no columns if the last, which holds the text, is missing."""
    columns = _listed(usual)
    return [name for name in columns if name in there] if columns[-1] in there else []


def _listed(columns: str | list[str]) -> list[str]:
    return [columns] if isinstance(columns, str) else columns


def _plain(name: str) -> str:
    """Return a column's name in a form that YAML accepts: an ordinary name as it is, any other name quoted."""
    return name if re.fullmatch(r"[\w.-]{1,80}", name) else shown(name)


def _words(columns: Sequence[str]) -> str:
    return " with ".join(shown(name) for name in columns)


def _all_words(groups: Sequence[Sequence[str]]) -> str:
    return " and ".join(_words(group) for group in groups)
