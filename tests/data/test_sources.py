"""A source gives validated pairs; what is wrong with a row is said once and clearly, or counted."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from corpora import write_rows
from embedlab.data.sources import PairRow, PairSource, content_fingerprint, counts_of, read_pairs
from embedlab.errors import ConfigError, DataError

GOOD = {"query": "q", "positive": "d"}


def read(path: Path, **options: Any) -> tuple[list[PairRow], Counter[str]]:
    skipped: Counter[str] = Counter()
    return list(read_pairs(PairSource(path=str(path), **options), skipped)), skipped


def test_columns_may_have_any_name_and_be_several(tmp_path: Path) -> None:
    rows = [{"title": "Anarchism", "section": "", "text": "A."}, {"title": "Apple", "section": "Use", "text": "B."}]
    pairs, _ = read(write_rows(tmp_path / "a.jsonl", rows), query=["title", "section"], positive="text")
    assert pairs == [PairRow("Anarchism", "A.", (), "Anarchism"), PairRow("Apple Use", "B.", (), "Apple Use")]


@pytest.mark.parametrize(("negatives", "expected"), [(["a", "b"], ("a", "b")), ("a", ("a",)), ([], ()), (None, ())])
def test_negatives_are_a_list_or_one_text_or_none(tmp_path: Path, negatives: object, expected: tuple[str]) -> None:
    file = write_rows(tmp_path / "a.jsonl", [{**GOOD, "hard": negatives}])
    pairs, _ = read(file, negatives="hard")
    assert pairs == [PairRow("q", "d", expected, "q")]


def test_parquet_has_lists_of_negatives(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([{**GOOD, "hard": ["a", "b"]}, {**GOOD, "hard": None}]), tmp_path / "a.parquet")
    pairs, _ = read(tmp_path / "a.parquet", negatives="hard")
    assert [pair.negatives for pair in pairs] == [("a", "b"), ()]


@pytest.mark.parametrize(("key", "expected"), [("m", "m"), (7, "7"), (0.5, "0.5")])
def test_a_split_key_is_a_text_or_a_number(tmp_path: Path, key: object, expected: str) -> None:
    pairs, _ = read(write_rows(tmp_path / "a.jsonl", [{**GOOD, "id": key}]), split_key="id")
    assert [pair.key for pair in pairs] == [expected]


def test_the_standard_library_is_split_by_module() -> None:
    pairs, _ = read(Path("python-stdlib"), max_rows=3)
    assert len(pairs) == 3
    assert all(pair.key != pair.query and " " not in pair.key for pair in pairs)


def test_no_more_pairs_are_read_than_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text((json.dumps(GOOD) + "\n") * 3 + "broken\n")
    assert len(read(file, max_rows=3)[0]) == 3
    with pytest.raises(ConfigError, match=r"max_rows of source 'a' must be at least 1, got 0"):
        read(file, max_rows=0)


BAD_ROWS: list[tuple[str, str, str]] = [
    ('{"query": "q"', "malformed line", "a.jsonl:2 is malformed"),
    ('["q", "d"]', "not an object", "a.jsonl:2 holds ['q', 'd']"),
    ('{"query": "q", "positiv": "d"}', "missing column", "Its columns: 'query', 'positiv'. Did you mean 'positiv'?"),
    ('{"query": " ", "positive": "d"}', "empty text", "a.jsonl:2: the text in column 'query' is empty or blank"),
    ('{"query": "q", "positive": ""}', "empty text", "a.jsonl:2: the text in column 'positive' is empty or blank"),
    ('{"query": 3, "positive": "d"}', "not a text", "a.jsonl:2: column 'query' holds 3, a int"),
    ('{"query": "q", "positive": null}', "not a text", "a.jsonl:2: column 'positive' holds None"),
    ('{"query": "q", "positive": "\\ud800"}', "not a text", "half of a surrogate pair"),
    (
        '{"query": "q", "positive": "d", "hard": [1]}',
        "negatives not a list of texts",
        "a.jsonl:2: column 'hard' holds [1]. Expected a list of strings, one string, or null.",
    ),
    (
        '{"query": "q", "positive": "d", "hard": {"a": 1}}',
        "negatives not a list of texts",
        "a.jsonl:2: column 'hard' holds {'a': 1}.",
    ),
    ('{"query": "q", "positive": "d", "hard": ["a", " "]}', "empty text", "a.jsonl:2: the text in column 'hard'"),
    ('{"query": "q", "positive": "d"}', "missing column", "has no column 'hard'"),
    ('{"query": "q", "positive": "d", "hard": []}', "missing column", "has no column 'id'"),
    ('{"query": "q", "positive": "d", "hard": [], "id": null}', "no split key", "a.jsonl:2: column 'id' holds None"),
]
COMPLETE = {**GOOD, "hard": [], "id": 1}


@pytest.mark.parametrize(("line", "reason", "message"), BAD_ROWS)
def test_a_bad_row_stops_with_its_place_and_a_remedy(tmp_path: Path, line: str, reason: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(COMPLETE)}\n{line}\n")
    with pytest.raises(DataError) as caught:
        read(tmp_path / "a.jsonl", negatives="hard", split_key="id")
    assert message in str(caught.value)
    assert str(tmp_path / "a.jsonl") + ":2" in str(caught.value)
    assert "on_error: skip" in str(caught.value)


@pytest.mark.parametrize(("line", "reason", "message"), BAD_ROWS)
def test_a_bad_row_is_skipped_and_counted_if_asked_for(tmp_path: Path, line: str, reason: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(COMPLETE)}\n{line}\n{line}\n{json.dumps(COMPLETE)}\n")
    pairs, skipped = read(tmp_path / "a.jsonl", negatives="hard", split_key="id", on_error="skip")
    assert pairs == [PairRow("q", "d", (), "1")] * 2
    assert skipped == {reason: 2}


def test_if_every_row_is_skipped_that_is_an_error(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", [{"query": "q", "text": "d"}, {"query": "", "positive": "d"}])
    with pytest.raises(DataError) as caught:
        read(file, on_error="skip")
    assert f"Every row of '{file}' was skipped (1 missing column, 1 empty text)." in str(caught.value)
    assert "The first: " in str(caught.value)
    assert "Its columns: 'query', 'text'" in str(caught.value)


def test_a_missing_file_is_an_error_even_when_skipping(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no file or folder"):
        read(tmp_path / "a.jsonl", on_error="skip")


@pytest.mark.parametrize(
    ("path", "label"),
    [("data/pairs.jsonl.gz", "pairs"), ("python-stdlib", "python-stdlib"), ("owner/name", "name"), ("..", "..")],
)
def test_a_source_is_called_by_its_file(path: str, label: str) -> None:
    assert PairSource(path=path).label == label
    assert PairSource(path=path, name="mine").label == "mine"


def test_the_content_fingerprint_follows_the_file(tmp_path: Path) -> None:
    source = PairSource(path=str(write_rows(tmp_path / "a.jsonl", [GOOD])))
    before = content_fingerprint(source)
    assert content_fingerprint(source) == before
    write_rows(tmp_path / "a.jsonl", [GOOD, GOOD])
    assert content_fingerprint(source) != before


def test_counts_are_shown_largest_first() -> None:
    assert counts_of({"empty text": 2, "malformed line": 30}) == "30 malformed line, 2 empty text"
