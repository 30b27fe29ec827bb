"""A source gives validated pairs; what is wrong with a row is said once and clearly, or counted."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedlab.data.sources import PairRow, PairSource, content_fingerprint, counts_of, read_pairs
from embedlab.errors import ConfigError, DataError
from helpers.corpora import write_rows

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


@pytest.mark.parametrize("negatives", [["hard", "harder"], ["hard", ["title", "harder"]]])
def test_negatives_of_several_columns_leave_out_the_blank_ones(tmp_path: Path, negatives: list[str]) -> None:
    rows = [
        {**GOOD, "hard": "a", "harder": "b", "title": ""},
        {**GOOD, "hard": None, "harder": " ", "title": None},
        {**GOOD, "hard": ["c", "d"], "title": ""},
    ]
    pairs, _ = read(write_rows(tmp_path / "a.jsonl", rows), negatives=negatives)
    assert [pair.negatives for pair in pairs] == [("a", "b"), (), ("c", "d")]


def test_a_blank_cell_is_no_negative(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("query,positive,hard\nq,d,\nq,d,n\n")
    assert [pair.negatives for pair in read(tmp_path / "a.csv", negatives="hard")[0]] == [(), ("n",)]


def test_of_several_positives_the_first_is_taken_and_said(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", [{"query": "q", "positive": texts} for texts in (["a"], ["b", "c"], "d")])
    notes: list[str] = []
    pairs = list(read_pairs(PairSource(path=str(file)), Counter(), notes))
    assert [pair.positive for pair in pairs] == ["a", "b", "d"]
    assert notes == ["1 of 3 rows have several positives, of which only the first is used"]
    write_rows(file, [{"query": "q", "positive": []}])
    with pytest.raises(DataError, match=r"the list in column 'positive' is empty"):
        read(file)


LAYOUTS: dict[str, tuple[dict[str, object], tuple[str, str, tuple[str, ...]]]] = {
    "sentence transformers": (
        {"anchor": "q", "positive": "p", "negative_1": "n", "negative_2": "m", "id": 1},
        ("q", "p", ("n", "m")),
    ),
    "triplets": ({"anchor": "q", "positive": "p", "negative": "n"}, ("q", "p", ("n",))),
    "FlagEmbedding": ({"query": "q", "pos": ["p"], "neg": ["n", "m"]}, ("q", "p", ("n", "m"))),
    "Tevatron": (
        {
            "query_id": "1",
            "query": "q",
            "positive_passages": [{"docid": "2", "title": "t", "text": "p"}],
            "negative_passages": [{"docid": "3", "title": "u", "text": "n"}, {"docid": "4", "title": "", "text": "m"}],
        },
        ("q", "t p", ("u n", "m")),
    ),
    "Tevatron without titles": (
        {"query": "q", "positive_passages": [{"text": "p"}], "negative_passages": [{"text": "n"}]},
        ("q", "p", ("n",)),
    ),
    "questions": ({"question": "q", "answer": "p", "label": 1}, ("q", "p", ())),
    "sentences": ({"sentence1": "q", "sentence2": "p"}, ("q", "p", ())),
    "as named": ({"query": "q", "positive": "p", "anchor": "x", "question": "x", "answer": "x"}, ("q", "p", ())),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_the_usual_layouts_need_no_names(tmp_path: Path, layout: str, ending: str) -> None:
    row, (query, positive, negatives) = LAYOUTS[layout]
    file = tmp_path / f"a.{ending}"
    if ending == "jsonl":
        write_rows(file, [row])
    else:
        pq.write_table(pa.Table.from_pylist([row]), file)
    notes: list[str] = []
    assert list(read_pairs(PairSource(path=str(file)), Counter(), notes)) == [
        PairRow(query, positive, negatives, query)
    ]
    assert len(notes) == (layout != "as named")
    assert all(note.startswith("takes '") for note in notes)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["text", "label"], r"has no column 'query'\. Its columns: 'text', 'label'\..*query: text, positive: label}\]"),
        (["sentence1", "sentence2", "score"], "has no column 'query'"),
        (
            ["anchor", "positive", "question", "answer"],
            "It could be 'anchor' and 'positive' or 'question' and 'answer'",
        ),
        (["query", "answer", "document"], r"has no column 'positive'.*'query' and 'answer' or 'query' and 'document'"),
    ],
)
def test_what_is_no_usual_layout_is_an_error_with_the_line_to_write(
    tmp_path: Path, columns: list[str], message: str
) -> None:
    file = write_rows(tmp_path / "a.jsonl", [dict.fromkeys(columns, "x")])
    for on_error in ("raise", "skip"):
        with pytest.raises(DataError, match=message):
            read(file, on_error=on_error)


def test_what_the_user_names_is_not_guessed(tmp_path: Path) -> None:
    row = {"anchor": "a", "question": "q", "answer": "w", "positive": "p", "negative": "n"}
    file = write_rows(tmp_path / "a.jsonl", [row])
    assert read(file, query="question")[0] == [PairRow("q", "p", (), "q")]
    assert read(file, query="question", positive="answer")[0] == [PairRow("q", "w", (), "q")]
    with pytest.raises(DataError, match="It could be 'anchor' and 'answer' or 'question' and 'answer'"):
        read(file, positive="answer")
    with pytest.raises(DataError, match="has no column 'query'"):
        read(file, query="query")


def test_negatives_that_are_not_used_are_said(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", [{**GOOD, "negative": "n"}])
    notes: list[str] = []
    assert [pair.negatives for pair in read_pairs(PairSource(path=str(file)), Counter(), notes)] == [()]
    assert notes == ["'negative' not used as negatives (set negatives to do so)"]
    assert read(file, negatives="negative")[0][0].negatives == ("n",)


@pytest.mark.parametrize("negatives", ["", [], ["a", ""], [["a", ""]], [[]]])
def test_negatives_without_a_name_are_an_error(tmp_path: Path, negatives: Any) -> None:
    with pytest.raises(ConfigError, match="negatives of 'a' is"):
        read(write_rows(tmp_path / "a.jsonl", [GOOD]), negatives=negatives)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_rows_used_and_rows_skipped_are_all_rows(tmp_path: Path, name: str) -> None:
    delimiter = "\t" if name == "a.tsv" else ","
    lines = [f"question {n}{delimiter}answer {n}" for n in range(1000)]
    for stray in (9, 500, 501, 998):
        lines[stray] = f'"{lines[stray]}'
    (tmp_path / name).write_text("\n".join([f"query{delimiter}positive", *lines]))
    pairs, skipped = read(tmp_path / name, on_error="skip", quoting="csv")
    assert len(pairs) == 996
    assert skipped == {"malformed line": 4}
    with pytest.raises(DataError, match=rf"{name}:11 opens a quote .*set quoting: none.*set on_error: skip"):
        read(tmp_path / name, quoting="csv")
    assert len(read(tmp_path / name, quoting="none")[0]) == 1000


def test_a_key_is_split_alike_from_every_format(tmp_path: Path) -> None:
    keys = [1, 2, None]
    pq.write_table(
        pa.table({"query": ["a"] * 3, "positive": ["b"] * 3, "id": [1.0, 2.0, None]}), tmp_path / "a.parquet"
    )
    write_rows(tmp_path / "a.jsonl", [{"query": "a", "positive": "b", "id": key} for key in keys])
    (tmp_path / "a.csv").write_text("query,positive,id\na,b,1\na,b,2\n")
    for name in ("a.parquet", "a.jsonl", "a.csv"):
        pairs, _ = read(tmp_path / name, split_key="id", on_error="skip")
        assert [pair.key for pair in pairs] == ["1", "2"]


@pytest.mark.parametrize(("key", "expected"), [("m", "m"), (7, "7"), (0.5, "0.5"), (7.0, "7")])
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
