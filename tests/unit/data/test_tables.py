"""A table's broken records cost what they are, each counted, and a TSV is found to be written without quotes."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedlab.data.files import FileRows
from embedlab.data.rows import RejectedRow
from embedlab.data.tables import is_unquoted, plain_records, quoted_records
from helpers.fuzzing import CPU_SECONDS

HEADER = "query,positive\n"


def split(text: str, delimiter: str = ",") -> list[list[str] | int]:
    """Fields of the whole records, and the numbers of the lines where the broken ones begin."""
    records = quoted_records(io.StringIO(text, newline="\n"), delimiter)
    return [record.number if record.fields is None else record.fields for record in records][1:]


@given(
    st.lists(
        st.lists(st.text(alphabet='ab "\n,\r', min_size=1), min_size=2, max_size=2), min_size=1, max_size=8
    ).filter(lambda rows: all("".join(row).strip() for row in rows))
)
def test_what_csv_writes_is_read_as_it_was(rows: list[list[str]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([["query", "positive"], *rows])
    assert split(text.getvalue()) == rows


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ('a,"b\nc,d\n', [2, ["c", "d"]]),  # never closed
        ('"a,b\nc,d\n"e,f\ng,h\n', [2, ["c", "d"], 4, ["g", "h"]]),  # closed where the next begins
        ('"a,b\nc,d\n5"" e,f\n', [2, ["c", "d"], 4]),
        ('"a,b\nc,d\nsay ""e"" to,f\ng,h\n', [2, ["c", "d"], 4, ["g", "h"]]),
        ('a,b\n"c,d\ne",f,g\nh,i\n', [["a", "b"], 3, 4, ["h", "i"]]),  # closed by luck, with a field too many
        ('a,"b\nc","d\ne"\nf,g\n', [2, 3, 4, ["f", "g"]]),
        ('a,"b\n\nc"\n\nd,e\n', [["a", "b\n\nc"], ["d", "e"]]),
        ('a,"b"c\nd,e\n', [2, ["d", "e"]]),
        ('a,5" b\nc,d\n', [["a", '5" b'], ["c", "d"]]),
        ('"a,b\n', [2]),
        ('"', [2]),
    ],
)
def test_reading_goes_on_at_the_line_after_a_broken_record_began(lines: str, expected: list[list[str] | int]) -> None:
    assert split(HEADER + lines) == expected


def test_a_quote_that_closes_by_luck_gives_back_the_rows_within() -> None:
    rows = [f"question {n},answer {n}" for n in range(100)]
    rows[10], rows[60] = '"question 10,answer 10', 'foo 5",answer 60'
    assert split(HEADER + "\n".join(rows)).count(12) == 1
    assert len(split(HEADER + "\n".join(rows))) == 100


@pytest.mark.parametrize("text", ["Roses, red\n" * 9 + "Violets", '{\n ""a"": 1,\n' + ' ""b"": 2,\n' * 9 + "}"])
def test_a_text_of_many_lines_with_a_comma_each_is_one_field(text: str) -> None:
    (record,) = split(f'{HEADER}q,"{text}"\n')
    assert record == ["q", text.replace('""', '"')]


@pytest.mark.parametrize("line", ['b","c\n', '"x\n', '""\n', 'a,"b\n', 'a""b,"c\n', '"\n', ',"""\n'])
def test_many_stray_quotes_take_no_longer_than_many_lines(line: str) -> None:
    began = time.process_time()
    assert len(split(HEADER + '"' + line * 50_000)) >= 25_000
    assert time.process_time() - began < CPU_SECONDS / 10


def tsv(*rows: str) -> list[str]:
    return [f"{row}\n" for row in ("query\tpositive", *rows)]


@pytest.mark.parametrize(
    "rows",
    [
        ['"Hello, she said\ta'],
        ['"Hello," she said\ta'],
        ['a\t"Hello, she said', "b\tc"],
        ['"Hello\ta', 'b"\tc'],  # closed by luck
        ['"whole"\ta', '"Hello, she said\ta'],
        ['"Hello," he said, ""\ta'] * 2 + ['"a ""b"""\tc'],
    ],
)
def test_quotes_that_csv_cannot_read_say_that_a_table_has_none(rows: list[str]) -> None:
    assert is_unquoted(tsv(*rows), "\t")


@pytest.mark.parametrize(
    "rows",
    [
        ["a\tb"],
        ['"whole"\ta'],
        ['"a ""b"""\tc'],
        ['"a\tb"\tc'],
        ['"two\n', 'lines"\tc'],
        ['a\t"two\n', '\tlines"'],
        ['"a ""b"""\tc', '"stray\td'],
        ["a\tb\tc"],
        ['a 5" b\tc'],
    ],
)
def test_quotes_that_are_needed_say_that_a_table_is_quoted(rows: list[str]) -> None:
    assert not is_unquoted(tsv(*rows), "\t")


def test_a_quoted_header_says_that_a_table_is_quoted() -> None:
    assert not is_unquoted(['"query"\t"positive"\n', '"stray\ta\n', '"stray\tb\n'], "\t")


def test_records_without_quotes_are_lines() -> None:
    records = list(plain_records(["q\tp\r\n", "\n", '"a\tb"\n', "c\n", "d\te\tf\n"], "\t"))
    assert [record.fields for record in records] == [["q", "p"], ['"a', 'b"'], None, None]
    assert [record.number for record in records] == [1, 3, 4, 5]


@pytest.mark.parametrize(("quoting", "num_rows"), [("auto", 3), ("none", 3), ("csv", 2), (None, 3)])
def test_a_tsv_is_read_by_its_quoting(tmp_path: Path, quoting: str, num_rows: int) -> None:
    (tmp_path / "a.tsv").write_text("".join(tsv('"Hello, she said\ta', "b\tc", "d\te")))
    source = FileRows([tmp_path / "a.tsv"], quoting)  # type: ignore[arg-type]
    rows = [row for _, row in source.rows(["query", "positive"]) if not isinstance(row, RejectedRow)]
    assert len(rows) == num_rows
    assert bool(source.notes()) == (quoting in ("auto", None))
