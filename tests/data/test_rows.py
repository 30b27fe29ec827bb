"""A row gives text, or says why it cannot."""

from __future__ import annotations

import pytest

from embedlab.data.rows import RejectedRow, column_names, shown, text_of, value_of
from embedlab.errors import ConfigError


def test_several_columns_are_joined_without_blank_ones() -> None:
    row = {"title": "Anarchism", "section": " ", "text": "A philosophy."}
    assert text_of(row, ["title", "section", "text"], "here") == "Anarchism A philosophy."


@pytest.mark.parametrize(
    ("value", "reason", "message"),
    [
        ("", "empty text", "pairs.jsonl:3: the text in column 'query' is empty or blank."),
        (" \n\t", "empty text", "pairs.jsonl:3: the text in column 'query' is empty or blank."),
        (None, "not a text", "pairs.jsonl:3: column 'query' holds None, a NoneType. Expected a string."),
        (7, "not a text", "pairs.jsonl:3: column 'query' holds 7, a int. Expected a string."),
        (["a"], "not a text", "pairs.jsonl:3: column 'query' holds ['a'], a list. Expected a string."),
        ("\ud800", "not a text", "which has half of a surrogate pair. Expected Unicode."),
    ],
)
def test_what_is_no_text_is_rejected(value: object, reason: str, message: str) -> None:
    with pytest.raises(RejectedRow) as caught:
        text_of({"query": value}, ["query"], "pairs.jsonl:3")
    assert caught.value.reason == reason
    assert message in str(caught.value)


def test_a_missing_column_is_named_beside_those_that_are_there() -> None:
    with pytest.raises(RejectedRow) as caught:
        value_of({"qeury": "a", "text": "b"}, "query", "pairs.jsonl:1")
    assert str(caught.value) == (
        "pairs.jsonl:1 has no column 'query'. Its columns: 'qeury', 'text'. Did you mean 'qeury'?"
    )


@pytest.mark.parametrize("columns", ["", [], ["title", ""]])
def test_columns_without_a_name_are_an_error(columns: str | list[str]) -> None:
    with pytest.raises(ConfigError, match=r"query of 'wiki' is .*Expected a column's name or a list of names"):
        column_names(columns, "query", "wiki")


def test_long_values_are_shortened_in_messages() -> None:
    assert len(shown("x" * 1000)) == 80
