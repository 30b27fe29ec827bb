"""A row gives text, or says why it cannot."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal

import pytest

from embedlab.data.rows import (
    RejectedRow,
    Row,
    column_names,
    elements_of,
    found_value,
    key_of,
    shown,
    text_of,
    usable_rows,
    value_of,
)
from embedlab.errors import ConfigError, DataError


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
        ({"text": "a"}, "not a text", "a dict. Expected a string, or the name of a field as 'query.field'."),
        ("\ud800", "not a text", "which contains half of a surrogate pair. Expected valid Unicode."),
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
    assert len(shown([["x" * 1000] * 1000] * 1000)) <= 80


def test_a_value_of_any_depth_is_shown() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert len(shown(deep)) <= 80
    while deep:  # freed from the inside out, for whoever frees by recursion
        deep = deep[0]  # type: ignore[assignment]


@pytest.mark.parametrize("row", [{"title": None, "text": "a"}, {"text": "a"}, {"title": "", "text": "a"}])
def test_null_and_missing_are_blank_among_several_columns(row: Row) -> None:
    assert text_of(row, ["title", "text"], "here") == "a"


@pytest.mark.parametrize("row", [{"title": None}, {}, {"title": "", "text": None}])
def test_a_row_with_nothing_but_blanks_is_rejected(row: Row) -> None:
    with pytest.raises(RejectedRow, match="the text in column 'title' and 'text' is empty or blank"):
        text_of(row, ["title", "text"], "here")


PASSAGES: Row = {"p": [{"title": "t", "text": "a"}, {"text": "b"}], "d": {"x.y": 1, "x": {"z": 2}}, "d.e": 3, "s": "x"}


@pytest.mark.parametrize(
    ("column", "value"),
    [("p.text", ["a", "b"]), ("p.title", ["t", None]), ("d.x.y", 1), ("d.x.z", 2), ("d.e", 3), ("s", "x")],
)
def test_a_field_is_named_after_its_column(column: str, value: object) -> None:
    assert value_of(PASSAGES, column, "here") == value


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("p.txt", "here: column 'p' holds .* with a field 'txt'"),
        ("s.text", "here: column 's' holds 'x'. Expected an object"),
        ("q.text", "here has no column 'q.text'. Its columns: 'p', 'd', 'd.e', 's'"),
    ],
)
def test_a_field_that_is_not_there_is_named(column: str, message: str) -> None:
    with pytest.raises(RejectedRow, match=message):
        value_of(PASSAGES, column, "here")
    assert found_value(PASSAGES, column) is None


def test_the_elements_of_lists_stay_together() -> None:
    assert [text_of(row, ["p.title", "p.text"], "") for row in elements_of(PASSAGES, ["p.title", "p.text"], "")] == [
        "t a",
        "b",
    ]
    with pytest.raises(RejectedRow, match="the lists in 'a' and 'b' differ in length"):
        elements_of({"a": ["x"], "b": ["y", "z"]}, ["a", "b"], "here")


@pytest.mark.parametrize(
    "values", [("1", 1, 1.0, Decimal("1.00")), ("0.5", 0.5, Decimal("0.50")), ("-3", -3, -3.0), ("0", 0, -0.0)]
)
def test_equal_keys_are_one_text(values: tuple[object, ...]) -> None:
    assert {key_of({"id": value}, "id", "", reason="") for value in values} == {values[0]}


@pytest.mark.parametrize("value", [None, True, float("nan"), float("inf"), Decimal("nan"), [], {}, b"x", "\ud800"])
def test_what_is_no_key_is_rejected(value: object) -> None:
    with pytest.raises(RejectedRow, match=r"here: column 'id' holds .*\. Expected a text or a number"):
        key_of({"id": value}, "id", "here", reason="no id")


ROWS: list[tuple[str, Row | RejectedRow]] = [("1", {}), ("2", RejectedRow("bad", "2 is bad.")), ("3", {})]


def test_a_row_that_cannot_be_used_is_a_data_error_by_name() -> None:
    with pytest.raises(DataError, match=r"^2 is bad\. Do so\.$") as caught:
        list(usable_rows(ROWS, lambda _, place: place, path="a", remedy="Do so."))
    assert type(caught.value) is DataError


def test_rows_left_out_are_counted_by_reason() -> None:
    skipped: Counter[str] = Counter()
    assert list(usable_rows(ROWS, lambda _, place: place, path="a", skipped=skipped)) == ["1", "3"]
    assert skipped == {"bad": 1}
    with pytest.raises(DataError, match=r"Every row of 'a' was skipped \(2 bad\)\. The first: 2 is bad\.") as caught:
        list(usable_rows(ROWS[1:2], lambda _, place: place, path="a", skipped=skipped))
    assert type(caught.value) is DataError
