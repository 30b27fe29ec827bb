"""Whatever bytes a data file has, its rows are used or counted, or one clear error says what is wrong."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from embedlab.data.evaluation.sets import RetrievalFiles, StsFile
from embedlab.data.sources import PairSource, read_pairs
from embedlab.errors import DataError, EmbedLabError
from embedlab.testing.backbones import tiny_tokenizer
from helpers.corpora import write_rows
from helpers.fuzzing import Fuzz

PIECES = st.sampled_from(
    [
        *('"', '""', ",", "\t", "\n", "\r\n", "\r", "\\", "{", "}", "[", "]", ":", " ", "\x00", "\ufeff", "é", "中"),
        *("null", "NaN", "1e999", "1", "1.0", "true", "query", "positive", '"query": "x"', "x" * 300, "[" * 2000),
        "\\ud800",
    ]
)
TEXTS = st.lists(st.one_of(PIECES, st.text(max_size=5)), min_size=1, max_size=4).map("".join)
VALUES = st.one_of(
    TEXTS,
    TEXTS,
    TEXTS,
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.lists(TEXTS, max_size=3),
    st.fixed_dictionaries({"text": TEXTS}),
    st.lists(st.fixed_dictionaries({"text": st.one_of(st.none(), TEXTS)}, optional={"title": TEXTS}), max_size=2),
)
NAMES = ("query", "positive", "id", "negative_1", "sentence1", "sentence2", "score", "_id", "text", "title")
WILD_ROWS = st.lists(st.dictionaries(st.sampled_from(NAMES), VALUES, min_size=2), min_size=1, max_size=6)
PLAIN_ROWS = st.lists(
    st.fixed_dictionaries(
        {"query": TEXTS, "positive": TEXTS, "text": TEXTS, "title": st.one_of(TEXTS, st.none())},
        optional={"negative_1": TEXTS, "id": st.integers(0, 3)},
    ),
    min_size=1,
    max_size=6,
)
ROWS = st.one_of(PLAIN_ROWS, PLAIN_ROWS, WILD_ROWS)
ENDINGS = ("jsonl", "csv", "tsv", "parquet", "jsonl.gz", "csv.gz", "tsv.gz")
ENCODINGS = ("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1", "utf-32")


class Mutation(NamedTuple):
    """A change of a file's bytes.

    Attributes:
        kind: What is done.
        at: Where, as a share of the length.
        piece: What is put there.
    """

    kind: str
    at: float
    piece: bytes


class Input(NamedTuple):
    """A file to write, and the options to read it with."""

    ending: str
    encoding: str
    quoting: int
    rows: list[dict[str, Any]]
    mutations: list[Mutation]
    before_packing: bool
    options: dict[str, Any]


MUTATIONS = st.lists(
    st.builds(
        Mutation,
        st.sampled_from(["insert", "replace", "delete", "cut", "flip"]),
        st.floats(0, 1),
        st.one_of(PIECES.map(lambda piece: piece.encode("utf-8", "surrogatepass")), st.binary(max_size=4)),
    ),
    max_size=2,
)
OPTIONS = st.fixed_dictionaries(
    {"on_error": st.sampled_from(["raise", "skip"]), "quoting": st.sampled_from(["auto", "auto", "csv", "none"])},
    optional={
        "query": st.sampled_from(["query", "text.title", ["title", "text"]]),
        "positive": st.sampled_from(["positive", "positive.text", ["positive.title", "positive.text"]]),
        "negatives": st.sampled_from(
            ["negative_1", "text", ["negative_1", "title"], [["title", "text"], "negative_1"]]
        ),
        "split_key": st.sampled_from(["id", "score"]),
        "max_rows": st.just(2),
    },
)
INPUTS = st.builds(
    Input,
    st.sampled_from(ENDINGS),
    st.sampled_from(ENCODINGS),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, -1]),
    ROWS,
    st.one_of(st.just([]), MUTATIONS),
    st.booleans(),
    OPTIONS,
)


def table_of(rows: list[dict[str, Any]], delimiter: str, quoting: int) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *([row.get(name, "") for name in names] for row in rows)]
    if quoting == -1:  # as one who knows nothing of quotes writes it
        return "".join(delimiter.join(map(str, line)) + "\n" for line in cells)
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, quoting=quoting).writerows(cells)  # type: ignore[arg-type]
    return text.getvalue()


def parquet_of(rows: list[dict[str, Any]]) -> bytes:
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = []
    for name in names:
        values = [row.get(name) for row in rows]
        try:
            columns.append(pa.array(values))
        except (pa.ArrowException, UnicodeEncodeError, OverflowError):  # of several types
            columns.append(pa.array([repr(value) for value in values]))
    file = io.BytesIO()
    pq.write_table(pa.table(columns, names=names), file)
    return file.getvalue()


def mutated(content: bytes, mutations: list[Mutation]) -> bytes:
    for kind, share, piece in mutations:
        at = int(share * len(content))
        if kind == "insert":
            content = content[:at] + piece + content[at:]
        elif kind == "replace":
            content = content[:at] + piece + content[at + len(piece) :]
        elif kind == "delete":
            content = content[:at] + content[at + len(piece) :]
        elif kind == "cut":
            content = content[:at]
        elif at < len(content):
            content = content[:at] + bytes([content[at] ^ 1 << (len(piece) % 8)]) + content[at + 1 :]
    return content


def written(folder: Path, name: str, given: Input) -> Path:
    """The file that an input describes."""
    form, _, packing = given.ending.partition(".")
    if form == "parquet":
        content = parquet_of(given.rows)
    elif form == "jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in given.rows)
        content = text.encode(given.encoding, "replace")
    else:
        text = table_of(given.rows, "\t" if form == "tsv" else ",", given.quoting)
        content = text.encode(given.encoding, "replace")
    if given.before_packing:
        content = mutated(content, given.mutations)
    if packing:
        content = gzip.compress(content)
    if not given.before_packing:
        content = mutated(content, given.mutations)
    file = folder / f"{name}.{given.ending}"
    file.write_bytes(content)
    return file


def num_lines(file: Path) -> int:
    """Lines of a file that has rows in lines, blank ones left out."""
    content = file.read_bytes()
    if file.suffix == ".gz":
        content = gzip.decompress(content)
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n" if b"\n" in content else b"\r")
    return sum(not line.isspace() and line != b"" for line in lines)


def test_every_row_of_a_source_is_used_or_counted_or_refused(tmp_path: Path, fuzz: Fuzz) -> None:
    def read(given: Input) -> None:
        file = written(tmp_path, "a", given)
        skipped: Counter[str] = Counter()
        pairs = list(read_pairs(PairSource(path=str(file), **given.options), skipped, []))
        assert pairs
        for pair in pairs:
            texts = (pair.query, pair.positive, *pair.negatives)
            assert all(isinstance(text, str) and text.strip() and text.encode() for text in texts)
            assert isinstance(pair.key, str)
        if given.options["on_error"] == "raise":
            assert not skipped
        if "max_rows" in given.options or given.encoding.startswith(("utf-16", "utf-32")):
            return
        num_rows = len(pairs) + sum(skipped.values())
        form = given.ending.split(".")[0]
        if form == "jsonl":
            assert num_rows == num_lines(file)
        elif form != "parquet" and given.options["quoting"] == "none":
            assert num_rows == num_lines(file) - 1
        elif form != "parquet":  # a quoted text may have several lines
            assert num_rows <= num_lines(file) - 1

    fuzz(INPUTS, read, examples=150)


def test_a_broken_line_costs_no_other_line(tmp_path: Path, fuzz: Fuzz) -> None:
    """A table of plain rows with stray pieces in some lines: all the others are used."""

    def read(given: tuple[str, int, dict[int, str]]) -> None:
        ending, num_rows, strays = given
        delimiter = "\t" if ending == "tsv" else ","
        lines = [f"question {number}{delimiter}answer {number}" for number in range(num_rows)]
        for number, piece in strays.items():
            lines[number % num_rows] = piece + lines[number % num_rows]
        file = tmp_path / f"a.{ending}"
        file.write_text("\n".join([f"query{delimiter}positive", *lines]), newline="")
        skipped: Counter[str] = Counter()
        pairs = list(read_pairs(PairSource(path=str(file), on_error="skip", quoting="csv"), skipped))
        assert len(pairs) + sum(skipped.values()) == num_rows
        assert sum(skipped.values()) <= len({number % num_rows for number in strays})

    strays = st.dictionaries(st.integers(0, 99), st.sampled_from(['"', '"x ', '""x"" "', ',"', '\t"', '"\t', "x,x,"]))
    fuzz(st.tuples(st.sampled_from(["csv", "tsv"]), st.integers(2, 100), strays), read, examples=100)


SET_OPTIONS = st.fixed_dictionaries(
    {"on_error": st.sampled_from(["raise", "skip", "skip"]), "quoting": st.sampled_from(["auto", "csv", "none"])}
)


def test_every_evaluation_set_is_measurable_or_refused(tmp_path: Path, fuzz: Fuzz) -> None:
    tokenizer = tiny_tokenizer()
    good = {
        "corpus": write_rows(tmp_path / "corpus.jsonl", [{"_id": n, "title": "", "text": f"d {n}"} for n in range(3)]),
        "queries": write_rows(tmp_path / "queries.jsonl", [{"_id": n, "text": f"q {n}"} for n in range(3)]),
        "qrels": write_rows(tmp_path / "qrels.jsonl", [{"query-id": n, "corpus-id": n, "score": 1} for n in range(3)]),
    }
    number = 0

    def measure(given: tuple[str, Input, dict[str, Any], bool]) -> None:
        nonlocal number
        which, file_input, options, keeps = given
        number += 1
        plain = [
            {
                "_id": n,
                "query-id": n,
                "corpus-id": n,
                "text": f"t {n}",
                "sentence1": "a",
                "sentence2": "b",
                "score": n + 1,
            }
            for n in range(3)
        ]
        ids = [{"_id": n + 3, "query-id": n, "corpus-id": (n + 1) % 3} for n in range(3)]
        extra = [
            {**usual, **row, **(own if keeps else {})}
            for usual, row, own in zip(plain, file_input.rows, ids, strict=False)
        ]
        file = str(written(tmp_path, which, file_input._replace(rows=[*plain, *extra])))
        arguments: dict[str, Any] = {"tokenizer": tokenizer, "max_length": 16, "cache_dir": tmp_path / str(number)}
        if which == "sts":
            similarity = StsFile(path=file, **options).task(**arguments)
            assert similarity.num_rows > 0
            return
        names = {name: str(path) for name, path in good.items()} | {which: file}
        retrieval = RetrievalFiles(**names, **options).task(**arguments).retrieval
        assert retrieval is not None
        assert retrieval.query_strings()
        assert all(text.strip() for text in [*retrieval.query_strings(), *retrieval.document_strings()])

    sets = st.sampled_from(["corpus", "queries", "qrels", "sts"])
    fuzz(st.tuples(sets, INPUTS, SET_OPTIONS, st.booleans()), measure, examples=60)


def test_errors_are_data_errors_by_name(tmp_path: Path, fuzz: Fuzz) -> None:
    def read(given: Input) -> None:
        source = PairSource(path=str(written(tmp_path, "a", given)), **given.options)
        try:
            list(read_pairs(source, Counter()))
        except EmbedLabError as error:
            assert type(error) is DataError
            assert "\n" not in str(error)
            raise

    fuzz(INPUTS, read, examples=50)
