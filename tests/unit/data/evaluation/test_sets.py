"""Evaluation files are read, checked and found again in the cache."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import normalizers

from embedlab.data.evaluation.sets import RetrievalFiles, StsFile, TextFile
from embedlab.data.evaluation.tasks import RetrievalTask
from embedlab.errors import DataError
from embedlab.testing.backbones import tiny_tokenizer
from helpers.corpora import write_rows
from helpers.paths import SHARED

CORPUS = [
    {"_id": "d1", "title": "One", "text": "first"},
    {"_id": "d2", "title": "Two", "text": ""},
    {"_id": "d3", "title": "One", "text": "first"},
]
QUERIES = [{"_id": "q1", "text": "which?"}, {"_id": "q2", "text": "what?"}, {"_id": "q3", "text": "unjudged"}]
QRELS: list[tuple[object, ...]] = [("q2", "d1", 2), ("q1", "d2", 1), ("q2", "d3", 1), ("q1", "d1", 0)]


def write_qrels(path: Path, rows: list[tuple[object, ...]], header: tuple[str, ...]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([header, *rows])


@pytest.fixture
def files(tmp_path: Path) -> RetrievalFiles:
    folder = tmp_path / "toy"
    folder.mkdir()
    write_rows(folder / "corpus.jsonl.gz", CORPUS)
    write_rows(folder / "queries.jsonl", QUERIES)
    write_qrels(folder / "qrels.tsv", QRELS, ("query-id", "corpus-id", "score"))
    return RetrievalFiles(
        corpus=str(folder / "corpus.jsonl.gz"), queries=str(folder / "queries.jsonl"), qrels=str(folder / "qrels.tsv")
    )


def options(tmp_path: Path) -> dict[str, Any]:
    return {"tokenizer": tiny_tokenizer(), "max_length": 64, "cache_dir": tmp_path / "cache"}


def judged(task: RetrievalTask) -> dict[tuple[str, str, int], float]:
    assert task.retrieval is not None
    queries, documents = task.retrieval.query_strings(), task.retrieval.document_strings()
    return {
        (queries[query], documents[document], document): gain
        for query, document, gain in zip(*(part.tolist() for part in task.retrieval.relevance), strict=True)
    }


def test_a_retrieval_set_is_read_as_beir_writes_it(files: RetrievalFiles, tmp_path: Path) -> None:
    task = files.task(**options(tmp_path))
    assert task.name == "toy"
    assert judged(task) == {("what?", "One first", 0): 2, ("which?", "Two", 1): 1, ("what?", "One first", 2): 1}
    assert {task.texts.string(row) for row in task.rows_U} == {"which?", "what?", "One first", "Two"}


def test_prompts_are_encoded_and_left_out_of_the_strings(files: RetrievalFiles, tmp_path: Path) -> None:
    task = replace(files, query_prompt="Q: ", document_prompt="D: ", name="mine").task(**options(tmp_path))
    assert task.name == "mine"
    assert {task.texts.string(row) for row in task.rows_U} == {"Q: which?", "Q: what?", "D: One first", "D: Two"}
    assert ("which?", "Two", 1) in judged(task)


def test_a_retrieval_set_is_tokenized_once(files: RetrievalFiles, tmp_path: Path) -> None:
    for _ in range(2):
        files.task(**options(tmp_path))
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 1
    changed = replace(files, corpus_text="title").task(**options(tmp_path))
    assert ("which?", "Two", 1) in judged(changed)
    assert ("what?", "One", 0) in judged(changed)


@pytest.mark.parametrize(
    ("qrels", "message"),
    [
        ([("q9", "d1", 1)], r"qrels\.tsv:2: query-id 'q9' is not among the 3 ids of .*queries\.jsonl\. Did you mean"),
        (
            [("q1", "d1", 1), ("q1", "x", 1), ("q2", "y", 1)],
            r"2 of 3 judged documents of .*qrels\.tsv:3: corpus-id 'x' is not among the 3 ids of .*corpus",
        ),
        ([("q1", "x", 1)], r"1 of 1 judged documents of .* are missing or blank in .*corpus"),
        ([("", "d1", 1)], "query-id '' is not among"),
        ([("q1", "d1", 0)], r"names no relevant document\. Expected at least one score above 0"),
        ([("q1", "d1", "high")], r"qrels\.tsv:2: column 'score' holds 'high'\. Expected a number"),
        ([("q1", "d1", "nan")], r"column 'score' holds 'nan'\. Expected a number"),
        ([("q1", "d1", 1), ("q1", "d1", 2)], r"qrels\.tsv:3 judges document 'd1' for query 'q1' again"),
        ([], "has no rows"),
    ],
)
def test_judgments_that_make_no_sense_are_an_error(
    files: RetrievalFiles, tmp_path: Path, qrels: list[tuple[object, ...]], message: str
) -> None:
    write_qrels(Path(files.qrels), qrels, ("query-id", "corpus-id", "score"))
    with pytest.raises(DataError, match=message):
        files.task(**options(tmp_path))


def test_judgments_without_a_header_are_an_error_that_shows_what_was_read(
    files: RetrievalFiles, tmp_path: Path
) -> None:
    write_qrels(Path(files.qrels), [("q1", 0, "d1", 1)], ("q1", "0", "d2", "1"))
    with pytest.raises(DataError, match=r"no column 'query-id'\. Its columns: 'q1', '0', 'd2', '1'"):
        files.task(**options(tmp_path))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"_id": "d1", "title": "again", "text": "x"}, r"corpus\.jsonl\.gz:4: the id 'd1' is already in use"),
        ({"_id": "d4"}, r":4: the text in column 'title' and 'text' is empty or blank"),
        ({"_id": None, "title": "a", "text": "b"}, r":4: column '_id' holds None, a NoneType"),
        ({"_id": True, "title": "a", "text": "b"}, r":4: column '_id' holds True, a bool"),
        ({"id": "d4", "title": "a", "text": "b"}, r":4 has no column '_id'\. .* Did you mean 'id'"),
        ({"_id": "d4", "title": 1, "text": "b"}, r":4: column 'title' holds 1, a int"),
    ],
)
def test_a_bad_document_is_named(files: RetrievalFiles, tmp_path: Path, row: dict[str, object], message: str) -> None:
    write_rows(Path(files.corpus), [*CORPUS, row])
    with pytest.raises(DataError, match=message) as caught:
        files.task(**options(tmp_path))
    assert type(caught.value) is DataError
    assert "set on_error: skip" in str(caught.value)
    assert replace(files, on_error="skip").task(**options(tmp_path)).left_out.startswith("1 ")


BLANK_DOCUMENTS: list[dict[str, object]] = [
    {"_id": "e", "title": "", "text": ""},
    {"_id": "e", "title": None, "text": " "},
    {"_id": "e", "text": ""},
    {"_id": "e", "title": "", "text": None},
]


@pytest.mark.parametrize("row", BLANK_DOCUMENTS)
def test_a_blank_document_is_left_out_and_said(files: RetrievalFiles, tmp_path: Path, row: dict[str, object]) -> None:
    whole = files.task(**options(tmp_path))
    write_rows(Path(files.corpus), [row, *CORPUS])
    for _ in range(2):  # the second time from the cache
        task = files.task(**options(tmp_path))
        assert judged(task) == judged(whole)
        assert task.left_out == "1 blank document left out"


@pytest.mark.parametrize("row", [{"_id": "e", "title": None, "text": "words"}, {"_id": "e", "text": "words"}])
@pytest.mark.parametrize("others", [CORPUS, []])
def test_a_document_needs_no_title(
    files: RetrievalFiles, tmp_path: Path, row: dict[str, object], others: list[dict[str, object]]
) -> None:
    write_rows(Path(files.corpus), [*others, row])
    write_qrels(Path(files.qrels), [("q1", "e", 1)], ("query-id", "corpus-id", "score"))
    task = files.task(**options(tmp_path))
    assert list(judged(task)) == [("which?", "words", len(others))]
    assert task.left_out == ""


@pytest.mark.parametrize("row", [None, *BLANK_DOCUMENTS])
def test_a_relevant_document_that_is_not_there_counts_as_not_found(
    files: RetrievalFiles, tmp_path: Path, row: dict[str, object] | None
) -> None:
    """As trec_eval counts a relevant document that no run can have."""
    write_rows(Path(files.corpus), [row, *CORPUS] if row else CORPUS)
    qrels = [("q1", "d1", 2), ("q1", "e", 3), ("q2", "d2", 1), ("q3", "gone", 1), ("q3", "d9", 0)]
    write_qrels(Path(files.qrels), qrels, ("query-id", "corpus-id", "score"))
    task = files.task(**options(tmp_path))
    assert "2 judged document missing or blank and counted as not found" in task.left_out
    assert task.retrieval is not None
    texts = [task.texts.string(text) for text in task.rows_U]
    axis = {"which?": 0, "One first": 0, "what?": 1, "Two": 1, "unjudged": 2}  # each query finds its own document
    metrics = task.metrics(torch.eye(3)[[axis[text] for text in texts]])
    ideal = (3 + 2 / math.log2(3), 1.0)
    # "One first" is the text of d1 and of the irrelevant d3, which is put above it.
    assert metrics["ndcg@10"] == pytest.approx((2 / math.log2(3) / ideal[0] + 1 + 0) / 3)
    assert metrics["recall@10"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert metrics["recall@1"] == pytest.approx((0 + 1 + 0) / 3)
    assert metrics["mrr@10"] == pytest.approx((0.5 + 1 + 0) / 3)


def test_mostly_blank_documents_are_an_error_unless_skipped(files: RetrievalFiles, tmp_path: Path) -> None:
    write_rows(Path(files.corpus), [*CORPUS, *({"_id": f"e{n}", "text": ""} for n in range(4))])
    with pytest.raises(DataError, match=r"4 of 7 documents of .*corpus.* are blank"):
        files.task(**options(tmp_path))
    assert replace(files, on_error="skip").task(**options(tmp_path)).left_out == "4 blank document left out"


def test_rows_of_a_retrieval_set_are_skipped_and_counted(files: RetrievalFiles, tmp_path: Path) -> None:
    whole = files.task(**options(tmp_path))
    write_rows(Path(files.corpus), [*CORPUS, {"_id": "d1", "text": "again"}, {"_id": None, "text": "x"}])
    write_rows(Path(files.queries), [*QUERIES, {"_id": "q4", "text": ""}, {"_id": "q5", "text": 5}])
    bad: list[tuple[object, ...]] = [
        ("q9", "d1", 1),
        ("q1", "d2", 1),
        ("q4", "d1", 1),
        ("q1", "d1", "x"),
        ("q5", "d1", 1),
    ]
    write_qrels(Path(files.qrels), [*QRELS, *bad], ("query-id", "corpus-id", "score"))
    with pytest.raises(DataError):
        files.task(**options(tmp_path))
    task = replace(files, on_error="skip").task(**options(tmp_path))
    assert judged(task) == judged(whole)
    assert task.left_out == (
        "2 judgment of an unknown query, 1 id twice, 1 no id, 1 not a text, 1 document judged twice, "
        "1 judgment of a blank query, 1 no number"
    )


def test_ids_are_the_same_as_numbers_and_as_texts(files: RetrievalFiles, tmp_path: Path) -> None:
    corpus = pa.table({"_id": [1.0, 2.0], "title": ["", None], "text": ["one", "two"]})
    pq.write_table(corpus, tmp_path / "corpus.parquet")
    write_rows(Path(files.queries), [{"_id": 7, "text": "which?"}])
    write_qrels(Path(files.qrels), [("7", "2", 1)], ("query-id", "corpus-id", "score"))
    task = replace(files, corpus=str(tmp_path / "corpus.parquet")).task(**options(tmp_path))
    assert list(judged(task)) == [("which?", "two", 1)]


@pytest.mark.parametrize("which", ["corpus", "queries", "qrels"])
def test_a_missing_file_is_named(files: RetrievalFiles, tmp_path: Path, which: str) -> None:
    broken = replace(files, **{which: str(tmp_path / "toy" / f"{which}.missing.jsonl")})
    with pytest.raises(DataError, match=rf"There is no file or folder '.*{which}\.missing\.jsonl'"):
        broken.task(**options(tmp_path))


def test_a_malformed_line_is_named(files: RetrievalFiles, tmp_path: Path) -> None:
    Path(files.queries).write_text('{"_id": "q1", "text": "a"}\n{"_id"\n')
    with pytest.raises(DataError, match=r"queries\.jsonl:2 is malformed"):
        files.task(**options(tmp_path))


def test_a_similarity_file_is_read(tmp_path: Path) -> None:
    rows = [{"sentence1": "a", "sentence2": "b", "score": 4.5}, {"sentence1": "b", "sentence2": "c", "score": "1"}]
    file = StsFile(path=str(write_rows(tmp_path / "stsb_dev.jsonl.gz", rows)), prompt="S: ")
    task = file.task(**options(tmp_path))
    assert task.name == "stsb_dev"
    assert sorted(task.texts.string(row) for row in task.rows_U) == ["S: a", "S: b", "S: c"]
    assert replace(file, name="mine").task(**options(tmp_path)).name == "mine"


def test_similarity_rows_are_skipped_and_counted(tmp_path: Path) -> None:
    rows = [{"sentence1": "a", "sentence2": second, "score": score} for second, score in (("b", 1), ("", 2), ("c", 3))]
    file = StsFile(path=str(write_rows(tmp_path / "sts.jsonl", [*rows, {"sentence1": "a", "sentence2": "b"}])))
    with pytest.raises(DataError, match=r"sts\.jsonl:2.*set on_error: skip"):
        file.task(**options(tmp_path))
    task = replace(file, on_error="skip").task(**options(tmp_path))
    assert (task.num_rows, task.left_out) == (3, "1 empty text, 1 missing column")


def test_a_similarity_file_without_quotes_gives_all_rows(tmp_path: Path) -> None:
    lines = ['"Hello," he said\tHello\t1', '"Open\tshut\t2', 'a\t"b"\t3', 'c "\td\t4']
    (tmp_path / "sts.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *lines]))
    task = StsFile(path=str(tmp_path / "sts.tsv")).task(**options(tmp_path))
    assert task.num_rows == 8
    assert '"b"' in {task.texts.string(row) for row in task.rows_U}
    assert task.left_out.startswith("read without quoting")


@pytest.mark.parametrize("num_rows", [1, 5])
def test_scores_that_are_all_the_same_are_an_error(tmp_path: Path, num_rows: int) -> None:
    rows = [{"sentence1": f"a{n}", "sentence2": "b", "score": 3} for n in range(num_rows)]
    file = StsFile(path=str(write_rows(tmp_path / "sts.jsonl", rows)))
    for _ in range(2):
        with pytest.raises(DataError, match=rf"all {num_rows} pairs have the score 3, .*in column 'score'"):
            file.task(**options(tmp_path))


@pytest.mark.parametrize("score", [None, "high", float("nan"), [1], True, 10**400])
def test_a_score_that_is_no_number_is_named(tmp_path: Path, score: object) -> None:
    rows = [{"sentence1": "a", "sentence2": "b", "score": score}]
    with pytest.raises(DataError, match=r"sts\.jsonl:1: column 'score' holds .*\. Expected a number"):
        StsFile(path=str(write_rows(tmp_path / "sts.jsonl", rows))).task(**options(tmp_path))


def test_texts_to_encode_keep_their_order_and_their_repetitions(tmp_path: Path) -> None:
    rows = [{"title": "t", "text": text} for text in ("long text", "b", "long text", "a")]
    file = TextFile(path=str(write_rows(tmp_path / "a.jsonl", rows)), column=["title", "text"], prompt="E: ")
    texts = file.task(**options(tmp_path))
    assert texts.num_rows == 4
    assert [texts.texts.string(row) for row in texts.rows_U] == ["E: t long text", "E: t b", "E: t long text", "E: t a"]


def test_a_text_without_tokens_is_an_error(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("~", "")
    file = TextFile(path=str(write_rows(tmp_path / "a.jsonl", [{"text": "~"}])))
    with pytest.raises(DataError, match=r"a\.jsonl: the tokenizer makes no token of the text '~'"):
        file.task(tokenizer, max_length=8, cache_dir=tmp_path / "cache")


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
@pytest.mark.parametrize(
    ("name", "num_queries", "num_documents", "num_judgments"), [("cisi", 76, 1460, 3114), ("cacm", 52, 3204, 796)]
)
def test_real_retrieval_sets_are_read(
    tmp_path: Path, name: str, num_queries: int, num_documents: int, num_judgments: int
) -> None:
    folder = SHARED / "data" / "eval" / name
    corpus, queries, qrels = (str(folder / file) for file in ("corpus.jsonl.gz", "queries.jsonl.gz", "qrels.tsv.gz"))
    task = RetrievalFiles(corpus=corpus, queries=queries, qrels=qrels).task(**options(tmp_path))
    assert task.name == name
    assert task.retrieval is not None
    assert len(task.retrieval.query_strings()) == num_queries
    assert len(task.retrieval.document_strings()) == num_documents
    assert {len(part) for part in task.retrieval.relevance} == {num_judgments}


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_a_real_similarity_file_is_read(tmp_path: Path) -> None:
    task = StsFile(path=str(SHARED / "data" / "eval" / "sts" / "stsb_dev.jsonl.gz")).task(**options(tmp_path))
    assert 1500 < task.num_rows < 3000
