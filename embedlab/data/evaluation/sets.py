"""Reads, checks and tokenizes the evaluation sets and texts that a configuration names."""

from __future__ import annotations

import json
import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from embedlab.data.evaluation.tasks import Retrieval, RetrievalTask, SimilarityTask, TextRows
from embedlab.data.readers import open_rows
from embedlab.data.rows import (
    SKIP_REMEDY,
    RejectedRow,
    Row,
    column_holding,
    column_names,
    counts_of,
    found_value,
    is_blank,
    key_of,
    shown,
    text_of,
    usable_rows,
    value_of,
)
from embedlab.data.tables import Quoting
from embedlab.data.texts import TextWriter, TokenizedTexts, cache_key, require_tokens, shown_progress
from embedlab.errors import DataError, suggestion
from embedlab.files import build_once

_QUERY_ID, _DOCUMENT_ID, _SCORE = "query-id", "corpus-id", "score"
_TITLE, _TEXT = "title", "text"
_LEFT_OUT = "left_out.json"
_BLANK_DOCUMENT = "blank document left out"
_MISSING_DOCUMENT = "judged document missing or blank and counted as not found"

_Taken = TypeVar("_Taken")


@dataclass(frozen=True, kw_only=True)
class RetrievalFiles:
    """A retrieval set in three files, in the layout of BEIR (Thakur et al. 2021, arXiv:2104.08663).

    Published sets are used without correction. Blank documents can never be found and are left out of the corpus. A
    relevant document that is blank or not in the corpus counts as never found, but is included in the ideal ranking and
    the recall, as in trec_eval. Both kinds are counted in a printed line. If more than half of the documents are blank,
    or more than half of the relevant documents are blank or missing, it is an error unless ``on_error`` is ``skip``. If
    all documents are blank, or no relevant document is there, it is an error in any case.

    Args:
        corpus: File of the documents, with an id and one or several columns of text.
        queries: File of the queries, with an id and a text. Queries without a relevant document are not encoded.
        qrels: File of the judgments, with columns ``query-id``, ``corpus-id`` and ``score``. A document with a score of
            0 or less is irrelevant.
        name: Name of the set in logs. By default the name of the folder of ``corpus``.
        query_prompt: Text put before each query.
        document_prompt: Text put before each document.
        corpus_text: Column or columns of a document's text. The texts of several columns are joined by spaces, without
            blank, null and missing texts. By default ``title`` (if the column exists) and ``text``.
        corpus_id: Column of a document's id.
        query_text: Column or columns of a query's text.
        query_id: Column of a query's id.
        on_error: ``raise`` stops at the first row that cannot be used. ``skip`` leaves out and counts all rows that
            cannot be used.
        quoting: How CSV and TSV files are quoted: ``csv``, ``none`` or ``auto``, as for training pairs.
    """

    corpus: str
    queries: str
    qrels: str
    name: str | None = None
    query_prompt: str = ""
    document_prompt: str = ""
    corpus_text: str | list[str] | None = None
    corpus_id: str = "_id"
    query_text: str | list[str] = _TEXT
    query_id: str = "_id"
    on_error: Literal["raise", "skip"] = "raise"
    quoting: Quoting = "auto"

    def task(self, tokenizer: PreTrainedTokenizerBase, *, max_length: int, cache_dir: Path) -> RetrievalTask:
        """Read and tokenize the files, or take the result from the cache.

        Args:
            tokenizer: Tokenizer, which adds its special tokens.
            max_length: Maximum number of tokens per text, special tokens included. Longer texts are cut at this length.
            cache_dir: Folder that holds the cache.

        Raises:
            DataError: If a file is missing, a row cannot be used, a judgment names an unknown query, or no document is
                relevant to any query.
        """
        paths = [self.corpus, self.queries, self.qrels]
        texts, arrays, left_out = _tokenized(self, paths, self._read, tokenizer, max_length, cache_dir)
        query_J, document_J, gain_J = (
            torch.from_numpy(arrays[name]) for name in ("judged_queries", "judged_documents", "gains")
        )
        retrieval = Retrieval(
            texts,
            arrays["queries"],
            arrays["documents"],
            (query_J, document_J, gain_J),
            query_prompt=self.query_prompt,
            document_prompt=self.document_prompt,
        )
        name = self.name or Path(self.corpus).absolute().parent.name
        return RetrievalTask(name, texts, retrieval, left_out=left_out)

    def _read(self, texts: TextWriter, reader: _SetReader) -> dict[str, np.ndarray]:
        document_rows = array("q")
        numbers: dict[str, int | None] = {}  # None for a blank document
        for identity, text in shown_progress(self._documents(reader), f"Tokenizing {self.corpus}"):
            numbers[identity] = None if text is None else len(document_rows)
            if text is not None:
                document_rows.append(texts.add(self.document_prompt + text))
        num_blank = len(numbers) - len(document_rows)
        reader.count_defects(_BLANK_DOCUMENT, num_blank, len(numbers), f"documents of {self.corpus} are blank")
        queries = dict(
            reader.texts_by_id(self.queries, self.query_id, column_names(self.query_text, _TEXT, self.queries))
        )

        query_numbers: dict[str, int] = {}
        not_found: dict[str, int] = {}
        first_not_found = ""
        gains: dict[tuple[int, int], float] = {}
        for place, query, document, gain in self._relevant(reader, queries):
            number = numbers.get(document)
            if number is None:
                first_not_found = first_not_found or _unknown(place, document, _DOCUMENT_ID, numbers, self.corpus)
                number = not_found.setdefault(document, len(document_rows) + len(not_found))
            gains[query_numbers.setdefault(query, len(query_numbers)), number] = gain
        if not gains:
            raise DataError(f"{self.qrels} names no relevant document. Expected at least one score above 0.")
        num_not_found = sum(number >= len(document_rows) for _, number in gains)
        reader.count_defects(
            _MISSING_DOCUMENT,
            num_not_found,
            len(gains),
            f"judged documents of {self.qrels} are missing or blank in {self.corpus}. {first_not_found}",
        )
        return {
            "queries": np.array([texts.add(f"{self.query_prompt}{queries[query]}") for query in query_numbers]),
            "documents": np.array(document_rows),
            "judged_queries": np.array([query for query, _ in gains]),
            "judged_documents": np.array([document for _, document in gains]),
            "gains": np.array(list(gains.values())),
        }

    def _documents(self, reader: _SetReader) -> Iterator[tuple[str, str | None]]:
        if self.corpus_text is None:
            return reader.texts_by_id(self.corpus, self.corpus_id, [_TITLE, _TEXT], optional=[_TITLE])
        return reader.texts_by_id(
            self.corpus, self.corpus_id, column_names(self.corpus_text, "corpus_text", self.corpus)
        )

    def _relevant(self, reader: _SetReader, queries: Mapping[str, str | None]) -> Iterator[tuple[str, str, str, float]]:
        """Yield place, query, document and gain of each judgment with a gain above 0."""
        judged: set[tuple[str, str]] = set()

        def take(row: Row, place: str) -> tuple[str, str, str, float]:
            query, document = (key_of(row, column, place, reason="no id") for column in (_QUERY_ID, _DOCUMENT_ID))
            gain = _number(row, _SCORE, place)
            if query not in queries:
                unknown = _unknown(place, query, _QUERY_ID, queries, self.queries, suggests=not reader.skips)
                raise RejectedRow("judgment of an unknown query", unknown)
            if gain > 0 and queries[query] is None:
                raise RejectedRow(
                    "judgment of a blank query", f"{place}: query {shown(query)} is blank in {self.queries}."
                )
            if gain > 0 and (query, document) in judged:
                raise RejectedRow(
                    "document judged twice",
                    f"{place} judges document {shown(document)} for query {shown(query)} again. Keep one judgment.",
                )
            if gain > 0:
                judged.add((query, document))
            return place, query, document, gain

        for judgment in reader.rows(self.qrels, [_QUERY_ID, _DOCUMENT_ID, _SCORE], take):
            if judgment[-1] > 0:
                yield judgment


@dataclass(frozen=True, kw_only=True)
class StsFile:
    """A file of sentence pairs with human scores of their similarity.

    Args:
        path: Any file that training pairs can be read from.
        sentence1: Column of the first sentence.
        sentence2: Column of the second sentence.
        score: Column of the score, a number that is higher for more similar sentences.
        name: Name of the set in logs. By default the file's name without its ending.
        prompt: Text put before each sentence.
        on_error: ``raise`` stops at the first row that cannot be used. ``skip`` leaves out and counts all rows that
            cannot be used.
        quoting: How CSV and TSV files are quoted: ``csv``, ``none`` or ``auto``, as for training pairs.
    """

    path: str
    sentence1: str = "sentence1"
    sentence2: str = "sentence2"
    score: str = "score"
    name: str | None = None
    prompt: str = ""
    on_error: Literal["raise", "skip"] = "raise"
    quoting: Quoting = "auto"

    def task(self, tokenizer: PreTrainedTokenizerBase, *, max_length: int, cache_dir: Path) -> SimilarityTask:
        """Read and tokenize the file, or take the result from the cache.

        Args:
            tokenizer: Tokenizer, which adds its special tokens.
            max_length: Maximum number of tokens per text, special tokens included. Longer texts are cut at this length.
            cache_dir: Folder that holds the cache.

        Raises:
            DataError: If the file cannot be read, a row cannot be used, or all pairs have the same score.
        """
        texts, arrays, left_out = _tokenized(self, [self.path], self._read, tokenizer, max_length, cache_dir)
        name = self.name or Path(self.path).name.split(".")[0]
        scores_N = arrays["scores"]
        if scores_N.min() == scores_N.max():
            raise DataError(
                f"{self.path}: all {len(scores_N)} pairs have the score {scores_N[0]:g}, so no correlation exists. "
                f"Expected different scores in column '{self.score}': set score to the column that holds the scores."
            )
        return SimilarityTask(name, texts, arrays["left"], arrays["right"], scores_N, left_out=left_out)

    def _read(self, texts: TextWriter, reader: _SetReader) -> dict[str, np.ndarray]:
        left, right, scores = array("q"), array("q"), array("d")

        def take(row: Row, place: str) -> tuple[str, str, float]:
            first, second = (text_of(row, [column], place) for column in (self.sentence1, self.sentence2))
            return first, second, _number(row, self.score, place)

        for first, second, score in reader.rows(self.path, [self.sentence1, self.sentence2, self.score], take):
            left.append(texts.add(self.prompt + first))
            right.append(texts.add(self.prompt + second))
            scores.append(score)
        return {"left": np.array(left), "right": np.array(right), "scores": np.array(scores)}


@dataclass(frozen=True, kw_only=True)
class TextFile:
    """A file of texts to encode. Each row gets an embedding, so no row can be left out.

    Args:
        path: Any file that training pairs can be read from.
        column: Column or columns of the text. The texts of several columns are joined by spaces, without blank texts.
        prompt: Text put before each text.
        quoting: How CSV and TSV files are quoted: ``csv``, ``none`` or ``auto``, as for training pairs.
    """

    path: str
    column: str | list[str] = _TEXT
    prompt: str = ""
    quoting: Quoting = "auto"

    def task(self, tokenizer: PreTrainedTokenizerBase, *, max_length: int, cache_dir: Path) -> TextRows:
        """Read and tokenize the file, or take the result from the cache.

        Args:
            tokenizer: Tokenizer, which adds its special tokens.
            max_length: Maximum number of tokens per text, special tokens included. Longer texts are cut at this length.
            cache_dir: Folder that holds the cache.

        Returns:
            One row per row of the file, in the order of the file. Identical texts are repeated as often as in the file.

        Raises:
            DataError: If the file cannot be read, or a row has no text.
        """
        texts, arrays, left_out = _tokenized(self, [self.path], self._read, tokenizer, max_length, cache_dir)
        return TextRows(texts, arrays["rows"], left_out=left_out)

    def _read(self, texts: TextWriter, reader: _SetReader) -> dict[str, np.ndarray]:
        columns = column_names(self.column, "column", self.path)
        rows = array("q")
        read = reader.rows(self.path, columns, lambda row, place: text_of(row, columns, place))
        for text in shown_progress(read, f"Tokenizing {self.path}"):
            rows.append(texts.add(self.prompt + text))
        return {"rows": np.array(rows)}


class _SetReader:
    """Reader of the files of one set, which counts the data that are left out.

    Args:
        quoting: How CSV and TSV files are quoted.
        on_error: Whether a row that cannot be used is an error or left out. None if the set has no such option, which
            makes the row an error.

    Attributes:
        skips: Whether rows that cannot be used are left out.
        skipped: Number of rows, documents or judgments that were left out or count as not found, by reason.
        notes: Assumptions made in reading the files, one clause each.
    """

    def __init__(self, quoting: Quoting, on_error: Literal["raise", "skip"] | None) -> None:
        self.skips = on_error == "skip"
        self.skipped: Counter[str] = Counter()
        self.notes: list[str] = []
        self._quoting = quoting
        self._remedy = "" if on_error is None else SKIP_REMEDY

    def rows(
        self, path: str, columns: Sequence[str], take: Callable[[Row, str], _Taken], *, optional: Sequence[str] = ()
    ) -> Iterator[_Taken]:
        """Yield the results of ``take`` for the rows of a file, as ``usable_rows`` does."""
        source = open_rows(path, quoting=self._quoting)
        skipped: Counter[str] = Counter()
        rows = source.rows([column for column in columns if column not in optional], optional)
        yield from usable_rows(rows, take, path=path, skipped=skipped if self.skips else None, remedy=self._remedy)
        self.skipped += skipped
        self.notes += source.notes()

    def texts_by_id(
        self, path: str, id_column: str, columns: list[str], *, optional: Sequence[str] = ()
    ) -> Iterator[tuple[str, str | None]]:
        """Yield the id and the text of each row, with None for a blank or null text.

        Raises:
            DataError: If a row cannot be used, or an id occurs twice, unless such rows are skipped.
        """
        seen: set[str] = set()

        def take(row: Row, place: str) -> tuple[str, str | None]:
            identity = key_of(row, id_column, place, reason="no id")
            if identity in seen:
                raise RejectedRow(
                    "id twice", f"{place}: the id {shown(identity)} is already in use. Expected each id once."
                )
            has_column = any(column_holding(column, row) is not None for column in columns)
            is_empty = has_column and all(is_blank(found_value(row, column)) for column in columns)
            text = None if is_empty else text_of(row, columns, place)
            seen.add(identity)
            return identity, text

        return self.rows(path, [id_column, *columns], take, optional=optional)

    def count_defects(self, reason: str, number: int, total: int, message: str) -> None:
        """Count defects of a kind that a published set may have a few of.

        Args:
            reason: Name of the kind, by which the defects are counted.
            number: Number of defects.
            total: Number of things that can have the defect.
            message: Rest of the error message after "number of total".

        Raises:
            DataError: If all things have the defect, or more than half of them without ``on_error: skip``.
        """
        if number == total or (2 * number > total and not self.skips):
            raise DataError(f"{number} of {total} {message} Expected at most half: check the columns and the files.")
        if number:
            self.skipped[reason] += number


def _tokenized(
    options: RetrievalFiles | StsFile | TextFile,
    paths: Sequence[str],
    read: Callable[[TextWriter, _SetReader], dict[str, np.ndarray]],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    cache_dir: Path,
) -> tuple[TokenizedTexts, Mapping[str, np.ndarray], str]:
    """Read and tokenize the files of a set, or take the result from the cache.

    Args:
        options: Options of the set, which the cache key depends on.
        paths: Files of the set.
        read: Function that reads the files, adds their texts to the writer, and returns arrays to keep.
        tokenizer: Tokenizer, which adds its special tokens.
        max_length: Maximum number of tokens per text, special tokens included.
        cache_dir: Folder that holds the cache.

    Returns:
        Tokenized texts, the arrays by name, and remarks for the user about data that were left out or assumptions.
    """

    def build(folder: Path) -> None:
        reader = _SetReader(options.quoting, None if isinstance(options, TextFile) else options.on_error)
        (folder / "texts").mkdir()
        with TextWriter(folder / "texts", tokenizer, max_length=max_length) as texts:
            arrays = read(texts, reader)
        require_tokens(TokenizedTexts(folder / "texts"), paths[0])
        for name, values in arrays.items():
            np.save(folder / f"{name}.npy", values)
        clauses = [counts_of(reader.skipped), *dict.fromkeys(reader.notes)]
        (folder / _LEFT_OUT).write_text(json.dumps("; ".join(filter(None, clauses))))

    content = {"content": [open_rows(path).fingerprint() for path in paths], **asdict(options)}
    for without_effect in ("path", "corpus", "queries", "qrels", "name"):
        content.pop(without_effect, None)
    folder = build_once(cache_dir / cache_key(type(options).__name__, content, tokenizer, max_length), build)
    arrays = {file.stem: np.load(file) for file in folder.glob("*.npy")}
    return TokenizedTexts(folder / "texts"), arrays, json.loads((folder / _LEFT_OUT).read_text())


def _number(row: Row, column: str, place: str) -> float:
    value: Any = value_of(row, column, place)
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise RejectedRow("no number", f"{place}: column '{column}' holds {shown(value)}. Expected a number.")
    return number


def _unknown(
    place: str, identity: str, column: str, known: Mapping[str, object], file: str, *, suggests: bool = True
) -> str:
    compared = [name for name in islice(known, 10_000) if len(name) <= len(identity) + 10 <= 100] if suggests else []
    close = suggestion(identity, compared)
    return f"{place}: {column} {shown(identity)} is not among the {len(known)} ids of {file}.{close}"
