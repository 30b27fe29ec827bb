"""Every format gives the same rows, each with its place; what is broken is named with file and line."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedlab.data.files import FileRows
from embedlab.data.rows import RejectedRow, Row
from embedlab.errors import DataError
from helpers.corpora import write_rows

ROWS = [
    {"query": "a b", "positive": 'x, "y"'},
    {"query": "tab\there", "positive": "two\nlines"},
    {"query": "é中", "positive": "z" * 200_000},
]
COLUMNS = ["query", "positive"]


def read(*files: Path, columns: list[str] = COLUMNS) -> list[tuple[str, Row | RejectedRow]]:
    return list(FileRows(files).rows(columns))


def delimited(delimiter: str) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


def write_parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([{**row, "number": 1} for row in ROWS]), path, row_group_size=2)


WRITERS: dict[str, Callable[[Path], object]] = {
    "a.jsonl": lambda path: write_rows(path, ROWS),
    "a.ndjson": lambda path: write_rows(path, ROWS),
    "a.json": lambda path: write_rows(path, ROWS),
    "a.jsonl.gz": lambda path: write_rows(path, ROWS),
    "a.csv": lambda path: path.write_bytes(delimited(",")),
    "a.tsv": lambda path: path.write_bytes(delimited("\t")),
    "a.csv.gz": lambda path: path.write_bytes(gzip.compress(delimited(","))),
    "a.TSV.GZ": lambda path: path.write_bytes(gzip.compress(delimited("\t"))),
    "a.parquet": write_parquet,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    assert [row for _, row in read(tmp_path / name)] == ROWS


@pytest.mark.parametrize(("name", "places"), [("a.jsonl", [1, 2, 3]), ("a.csv", [2, 3, 5])])
def test_a_place_is_the_line_on_which_a_row_begins(tmp_path: Path, name: str, places: list[int]) -> None:
    WRITERS[name](tmp_path / name)
    assert [place for place, _ in read(tmp_path / name)] == [f"{tmp_path / name}:{line}" for line in places]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_byte_order_mark_and_blank_lines_are_no_part_of_the_rows(tmp_path: Path, name: str) -> None:
    rows = {"a.jsonl": '{"query": "a", "positive": "b"}', "a.csv": "query,positive\n\na,b\n"}[name]
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + rows.encode() + b"\r\n\r\n")
    assert [row for _, row in read(tmp_path / name)] == [{"query": "a", "positive": "b"}]


def test_files_are_read_one_after_the_other(tmp_path: Path) -> None:
    files = [write_rows(tmp_path / f"{name}.jsonl", [{"query": name}]) for name in "ba"]
    assert [row for _, row in read(*files, columns=["query"])] == [{"query": "b"}, {"query": "a"}]


@pytest.mark.parametrize(
    ("line", "reason", "message"),
    [
        (b'{"query": "a"', "malformed line", "a.jsonl:2 is malformed: Expecting"),
        (b'{"query": "\xff"}', "malformed line", "a.jsonl:2 is malformed: 'utf-8' codec can't decode"),
        (b"[" * 100_000, "malformed line", "a.jsonl:2 is malformed: "),
        (b'["a", "b"]', "not an object", "a.jsonl:2 holds ['a', 'b'], a list. Expected one JSON object per line"),
        (b"3", "not an object", "a.jsonl:2 holds 3, a int."),
    ],
)
def test_a_malformed_json_line_is_named_and_the_next_is_read(
    tmp_path: Path, line: bytes, reason: str, message: str
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"query": "a"}\n' + line + b'\n{"query": "b"}\n')
    first, broken, last = (row for _, row in read(file, columns=["query"]))
    assert (first, last) == ({"query": "a"}, {"query": "b"})
    assert isinstance(broken, RejectedRow)
    assert broken.reason == reason
    assert message in str(broken)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"a", "a.csv:2 has 1 fields, the header has 2."),
        (b"a,b,c", "a.csv:2 has 3 fields, the header has 2."),
        (b'"a"b,c', "a.csv:2 is malformed: ',' expected after '\"'."),
        (b"\xff,c", "a.csv:2 is malformed: it is not in UTF-8."),
    ],
)
def test_a_malformed_csv_line_is_named_and_the_next_is_read(tmp_path: Path, line: bytes, message: str) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(b"query,positive\n" + line + b"\nc,d\n")
    broken, last = (row for _, row in read(file))
    assert isinstance(broken, RejectedRow)
    assert broken.reason == "malformed line"
    assert message in str(broken)
    assert last == {"query": "c", "positive": "d"}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.csv.gz"])
def test_a_byte_order_mark_says_the_encoding(tmp_path: Path, name: str, encoding: str) -> None:
    WRITERS[name](tmp_path / name)
    content = (tmp_path / name).read_bytes()
    text = (gzip.decompress(content) if name.endswith(".gz") else content).decode()
    marked = ("" if encoding in ("utf-8-sig", "utf-16", "utf-32") else "\ufeff") + text
    content = marked.encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert [row for _, row in read(tmp_path / name)] == ROWS


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_quoted_header_is_read_after_a_byte_order_mark(tmp_path: Path, mark: bytes) -> None:
    (tmp_path / "a.csv").write_bytes(mark + b'"query, long","positive"\r\n"a","b"\r\n')
    assert [row for _, row in read(tmp_path / "a.csv", columns=["query, long"])] == [
        {"query, long": "a", "positive": "b"}
    ]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_utf_16_without_a_mark_is_named_with_a_remedy(tmp_path: Path, name: str, encoding: str) -> None:
    (tmp_path / name).write_bytes('{"query": "a", "positive": "b"}\n'.encode(encoding))
    with pytest.raises(
        DataError, match=rf"{encoding[:6]}.*iconv -f UTF-16{encoding[-2:].upper()} -t UTF-8".replace("utf", "UTF")
    ):
        read(tmp_path / name)


def test_half_a_character_of_utf_16_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("query,positive\na,b\n".encode("utf-16") + b"x")
    with pytest.raises(DataError, match=r"a\.csv has the byte-order mark of UTF-16-LE but is not valid"):
        read(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"{}", mtime=0), r"compressed by gzip.*Add \.gz"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_what_is_no_text_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "a.jsonl")


def test_lines_of_old_macs_are_lines(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"query,positive\ra,b\rc,d\r")
    assert [row for _, row in read(tmp_path / "a.csv")] == [
        {"query": "a", "positive": "b"},
        {"query": "c", "positive": "d"},
    ]


def test_a_stray_quote_costs_one_row(tmp_path: Path) -> None:
    lines = ["query,positive", *(f"question {n},answer {n}" for n in range(1000))]
    lines[10] = '"question 9,answer 9'
    (tmp_path / "a.csv").write_text("\n".join(lines))
    rows = read(tmp_path / "a.csv")
    ((place, broken),) = [(place, row) for place, row in rows if isinstance(row, RejectedRow)]
    assert len(rows) == 1000
    assert place.endswith("a.csv:11")
    assert "a.csv:11 opens a quote that is never closed." in str(broken)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.parquet"])
def test_a_column_that_is_there_twice_is_refused_if_it_is_used(tmp_path: Path, name: str) -> None:
    delimiter = "\t" if name == "a.tsv" else ","
    if name == "a.parquet":
        table = pa.table([pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], names=["query", "positive", "positive"])
        pq.write_table(table, tmp_path / name)
    else:
        lines = (["query", "positive", "positive"], ["a", "b", "c"])
        (tmp_path / name).write_text("".join(delimiter.join(line) + "\n" for line in lines))
    with pytest.raises(DataError, match="has 2 columns named 'positive'"):
        read(tmp_path / name)
    ((_, row),) = read(tmp_path / name, columns=["query"])
    assert isinstance(row, dict)
    assert row["query"] == "a"


@pytest.mark.parametrize("column", ["query", "frage·é"])
def test_a_name_that_an_object_has_twice_is_rejected_if_it_is_used(tmp_path: Path, column: str) -> None:
    twice = f'{{"{column}": "a", "id": 1, "{column}": "b", "id": 2}}\n'
    nested = f'{{"{column}": "{column}", "id": [{{"{column}": 1}}]}}\n'
    (tmp_path / "a.jsonl").write_text(twice + nested)
    (_, broken), (_, whole) = read(tmp_path / "a.jsonl", columns=[column])
    assert isinstance(broken, RejectedRow)
    assert broken.reason == "column twice"
    assert whole == {column: column, "id": [{column: 1}]}
    assert not any(isinstance(row, RejectedRow) for _, row in read(tmp_path / "a.jsonl", columns=[]))


def test_a_column_that_no_object_has_is_an_error(tmp_path: Path) -> None:
    files = [write_rows(tmp_path / f"{n}.jsonl", [{"query": "a", "title": "t"}, {"query": "b"}]) for n in range(2)]
    assert len(read(*files, columns=["query", "title"])) == 4
    with pytest.raises(DataError, match=r"0\.jsonl and 1 other files has no column 'titel'\. .*mean 'title'"):
        read(*files, columns=["query", "titel"])
    assert len(list(FileRows(files).rows(["query"], ["titel"]))) == 4


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["a", "b"], pa.string_view()),
        pa.array(["a", "b"], pa.large_string()),
        pa.array(["a", "b"]).dictionary_encode(),
    ],
)
def test_strings_are_read_however_arrow_holds_them(tmp_path: Path, column: pa.Array) -> None:
    pq.write_table(pa.table({"query": column}), tmp_path / "a.parquet")
    assert [row for _, row in read(tmp_path / "a.parquet", columns=["query"])] == [{"query": "a"}, {"query": "b"}]


def test_a_value_that_python_cannot_have_costs_one_row(tmp_path: Path) -> None:
    bad = pa.array([b"a", b"\xff", b"c"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"query": bad}), tmp_path / "a.parquet")
    first, (place, broken), last = read(tmp_path / "a.parquet", columns=["query"])
    assert (first[1], last[1]) == ({"query": "a"}, {"query": "c"})
    assert place.endswith("a.parquet: row 1")
    assert isinstance(broken, RejectedRow)


def test_an_array_of_json_is_named_with_a_remedy(tmp_path: Path) -> None:
    for content in ('[\n{"query": "a"},\n{"query": "b"}\n]\n', '[{"query": "a"}]'):
        (tmp_path / "a.json").write_text(content)
        assert "jq -c '.[]'" in str(read(tmp_path / "a.json", columns=["query"])[0][1])


def test_the_beginning_tells_the_columns(tmp_path: Path) -> None:
    row = {"query": "a", "passages": [{"title": "t", "text": "x"}]}
    write_rows(tmp_path / "a.jsonl", [row, {"late": 1}])
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text('\ufeff"query, long",positive\n')
    fields = ["query", "passages", "passages.title", "passages.text"]
    assert FileRows([tmp_path / "a.jsonl"]).columns() == [*fields, "late"]
    assert FileRows([tmp_path / "a.parquet"]).columns() == fields
    assert FileRows([tmp_path / "a.csv"]).columns() == ["query, long", "positive"]


def test_a_malformed_header_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('"query"x,positive\na,b\n')
    with pytest.raises(DataError, match=r"a\.csv:1 is malformed"):
        read(tmp_path / "a.csv")


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.parquet"])
def test_a_table_without_the_column_is_an_error_that_lists_the_columns(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    with pytest.raises(DataError, match=r"has no column 'querry'. Its columns: 'query', 'positive'.*mean 'query'"):
        read(tmp_path / name, columns=["querry", "positive"])


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.jsonl.gz"])
@pytest.mark.parametrize("content", [b"", b"\n"])
def test_an_empty_file_is_an_error(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(DataError, match=r"has no rows\. Expected at least one"):
        read(tmp_path / name)


def test_a_table_with_a_header_only_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("query,positive\n")
    pq.write_table(pa.table({"query": pa.array([], pa.string())}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no rows"):
        read(tmp_path / "a.csv")
    with pytest.raises(DataError, match="no rows"):
        read(tmp_path / "a.parquet", columns=["query"])


def test_an_empty_file_among_others_is_named(tmp_path: Path) -> None:
    full = write_rows(tmp_path / "full.jsonl", [{"query": "a"}])
    empty = write_rows(tmp_path / "empty.jsonl", [])
    with pytest.raises(DataError, match=r"empty\.jsonl has no rows"):
        read(full, empty)


def test_a_truncated_gzip_file_is_an_error(tmp_path: Path) -> None:
    whole = write_rows(tmp_path / "whole.jsonl.gz", [{"query": str(n)} for n in range(1000)]).read_bytes()
    for name, content in (("cut", whole[:-100]), ("plain", b'{"query": "a"}\n'), ("broken", whole[:99] + whole[120:])):
        file = tmp_path / f"{name}.jsonl.gz"
        file.write_bytes(content)
        with pytest.raises(DataError, match=f"{name}.jsonl.gz is not a complete gzip file"):
            read(file)


def test_a_broken_parquet_file_is_an_error(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-50])
    with pytest.raises(DataError, match=r"b\.parquet is not a complete Parquet file"):
        read(tmp_path / "b.parquet")


def test_a_format_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_bytes(b"x")
    with pytest.raises(DataError, match=r"a\.xlsx ends in '\.xlsx'.*Expected \.jsonl"):
        read(tmp_path / "a.xlsx")


@pytest.mark.parametrize("name", ["gone.jsonl", "gone.parquet"])
def test_a_file_that_vanished_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"could not be read: .*No such file"):
        read(tmp_path / name)
    with pytest.raises(DataError, match=r"could not be read: .*No such file"):
        FileRows([tmp_path / name]).fingerprint()


def test_the_fingerprint_is_of_the_content_alone(tmp_path: Path) -> None:
    first = write_rows(tmp_path / "a.jsonl", [{"query": "a"}])
    moved = write_rows(tmp_path / "b.jsonl", [{"query": "a"}])
    changed = write_rows(tmp_path / "c.jsonl", [{"query": "b"}])
    other_format = tmp_path / "d.csv"
    other_format.write_bytes(first.read_bytes())
    fingerprints = [FileRows([file]).fingerprint() for file in (first, moved, changed, other_format)]
    assert fingerprints[0] == fingerprints[1]
    assert len(set(fingerprints)) == 3
    assert FileRows([first, changed]).fingerprint() != FileRows([changed, first]).fingerprint()
