"""Evaluation files are read, checked and found again in the cache."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import normalizers

from corpora import write_rows
from embedlab.data.evaluation import RetrievalFiles, StsFile, TextFile
from embedlab.data.tasks import RetrievalTask
from embedlab.errors import DataError
from embedlab.testing.backbones import tiny_tokenizer

SHARED = Path(__file__).resolve().parents[2].parent / "shared"

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


def test_a_retrieval_set_is_tokenised_once(files: RetrievalFiles, tmp_path: Path) -> None:
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
        ([("q1", "d1", 1), ("q1", "x", 1)], r"qrels\.tsv:3: corpus-id 'x' is not among the 3 ids of .*corpus"),
        ([("q1", "d1", 0)], r"names no relevant document\. Expected at least one score above 0"),
        ([("q1", "d1", "high")], r"qrels\.tsv:2: column 'score' holds 'high'\. Expected a number"),
        ([("q1", "d1", "nan")], r"column 'score' holds 'nan'\. Expected a number"),
        ([("q1", "d1", 1), ("q1", "d1", 2)], r"qrels\.tsv:3 judges document 'd1' for query 'q1' again"),
        ([], "has no rows"),
    ],
)
def test_judgements_that_make_no_sense_are_an_error(
    files: RetrievalFiles, tmp_path: Path, qrels: list[tuple[object, ...]], message: str
) -> None:
    write_qrels(Path(files.qrels), qrels, ("query-id", "corpus-id", "score"))
    with pytest.raises(DataError, match=message):
        files.task(**options(tmp_path))


def test_judgements_without_a_header_are_an_error_that_shows_what_was_read(
    files: RetrievalFiles, tmp_path: Path
) -> None:
    write_qrels(Path(files.qrels), [("q1", 0, "d1", 1)], ("q1", "0", "d2", "1"))
    with pytest.raises(DataError, match=r"no column 'query-id'\. Its columns: 'q1', '0', 'd2', '1'"):
        files.task(**options(tmp_path))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"_id": "d1", "title": "again", "text": "x"}, r"corpus\.jsonl\.gz:4: the id 'd1' was there before"),
        ({"_id": "d4", "title": "", "text": " "}, r":4: the text in column 'title' and 'text' is empty or blank"),
        ({"id": "d4", "title": "a", "text": "b"}, r":4 has no column '_id'\. .* Did you mean 'id'"),
        ({"_id": "d4", "title": 1, "text": "b"}, r":4: column 'title' holds 1, a int"),
    ],
)
def test_a_bad_document_is_named(files: RetrievalFiles, tmp_path: Path, row: dict[str, object], message: str) -> None:
    write_rows(Path(files.corpus), [*CORPUS, row])
    with pytest.raises(DataError, match=message):
        files.task(**options(tmp_path))


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


@pytest.mark.parametrize("score", [None, "high", float("nan"), [1]])
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
    ("name", "num_queries", "num_documents", "num_judgements"), [("cisi", 76, 1460, 3114), ("cacm", 52, 3204, 796)]
)
def test_real_retrieval_sets_are_read(
    tmp_path: Path, name: str, num_queries: int, num_documents: int, num_judgements: int
) -> None:
    folder = SHARED / "data" / "eval" / name
    corpus, queries, qrels = (str(folder / file) for file in ("corpus.jsonl.gz", "queries.jsonl.gz", "qrels.tsv.gz"))
    task = RetrievalFiles(corpus=corpus, queries=queries, qrels=qrels).task(**options(tmp_path))
    assert task.name == name
    assert task.retrieval is not None
    assert len(task.retrieval.query_strings()) == num_queries
    assert len(task.retrieval.document_strings()) == num_documents
    assert {len(part) for part in task.retrieval.relevance} == {num_judgements}


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_a_real_similarity_file_is_read(tmp_path: Path) -> None:
    task = StsFile(path=str(SHARED / "data" / "eval" / "sts" / "stsb_dev.jsonl.gz")).task(**options(tmp_path))
    assert 1500 < task.num_rows < 3000
