"""The evaluation sets and texts that a configuration names: read, checked and tokenised once."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from embedlab.data.readers import open_rows
from embedlab.data.rows import RejectedRow, Row, column_names, shown, text_of, value_of
from embedlab.data.tasks import Retrieval, RetrievalTask, SimilarityTask, TextRows
from embedlab.data.texts import TextWriter, TokenisedTexts, cache_key, require_tokens, shown_progress
from embedlab.errors import DataError, suggestion
from embedlab.files import build_once

_QUERY_ID, _DOCUMENT_ID, _SCORE = "query-id", "corpus-id", "score"


@dataclass(frozen=True, kw_only=True)
class RetrievalFiles:
    """A retrieval set in three files, as BEIR writes them (Thakur et al. 2021, arXiv:2104.08663).

    Args:
        corpus: documents, with an id and one or several columns of text.
        queries: queries, with an id and a text; those without a relevant document are not encoded.
        qrels: judgements, with columns ``query-id``, ``corpus-id`` and ``score``; 0 and less is irrelevant.
        name: in logs; by default that of the corpus' folder.
        query_prompt: put before each query.
        document_prompt: put before each document.
        corpus_text: column of a document's text; of several, the texts are joined by spaces, blank ones left out.
        corpus_id: column of a document's id.
        query_text: column or columns of a query's text.
        query_id: column of a query's id.
    """

    corpus: str
    queries: str
    qrels: str
    name: str | None = None
    query_prompt: str = ""
    document_prompt: str = ""
    corpus_text: str | list[str] = field(default_factory=lambda: ["title", "text"])
    corpus_id: str = "_id"
    query_text: str | list[str] = "text"
    query_id: str = "_id"

    def task(self, tokenizer: PreTrainedTokenizerBase, *, max_length: int, cache_dir: Path) -> RetrievalTask:
        """Reads and tokenises the files, or finds that done in the cache.

        Args:
            tokenizer: adds its special tokens.
            max_length: tokens of a text; longer ones are cut there.
            cache_dir: where the cache is kept.

        Raises:
            DataError: if a file is missing, a row cannot be used, a judgement names an id that is not there, or no
                document is relevant to any query.
        """
        texts, arrays = _tokenised(
            self, [self.corpus, self.queries, self.qrels], self._read, tokenizer, max_length, cache_dir
        )
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
        return RetrievalTask(self.name or Path(self.corpus).absolute().parent.name, texts, retrieval)

    def _read(self, texts: TextWriter) -> dict[str, np.ndarray]:
        documents = _texts_by_id(self.corpus, self.corpus_id, self.corpus_text, self.document_prompt)
        document_rows = array("q")
        document_numbers: dict[str, int] = {}
        for identity, text in shown_progress(documents, f"Tokenising {self.corpus}"):
            document_numbers[identity] = len(document_rows)
            document_rows.append(texts.add(text))
        queries = dict(_texts_by_id(self.queries, self.query_id, self.query_text, self.query_prompt))
        query_numbers: dict[str, int] = {}
        gains: dict[tuple[int, int], float] = {}
        for place, query, document, gain in _judgements(self.qrels):
            _require_known(query, queries, f"{place}: query-id", self.queries)
            _require_known(document, document_numbers, f"{place}: corpus-id", self.corpus)
            if gain <= 0:
                continue
            judged = (query_numbers.setdefault(query, len(query_numbers)), document_numbers[document])
            if judged in gains:
                raise DataError(f"{place} judges document '{document}' for query '{query}' again. Keep one of the two.")
            gains[judged] = gain
        if not gains:
            raise DataError(f"{self.qrels} names no relevant document. Expected at least one score above 0.")
        return {
            "queries": np.array([texts.add(queries[query]) for query in query_numbers]),
            "documents": np.array(document_rows),
            "judged_queries": np.array([query for query, _ in gains]),
            "judged_documents": np.array([document for _, document in gains]),
            "gains": np.array(list(gains.values())),
        }


@dataclass(frozen=True, kw_only=True)
class StsFile:
    """A file of sentence pairs with human scores of their similarity.

    Args:
        path: any file that training pairs can be read from.
        sentence1: column of the first sentence.
        sentence2: column of the second.
        score: column of a number, higher for more alike.
        name: in logs; by default that of the file.
        prompt: put before each sentence.
    """

    path: str
    sentence1: str = "sentence1"
    sentence2: str = "sentence2"
    score: str = "score"
    name: str | None = None
    prompt: str = ""

    def task(self, tokenizer: PreTrainedTokenizerBase, *, max_length: int, cache_dir: Path) -> SimilarityTask:
        """As in ``RetrievalFiles``."""
        texts, arrays = _tokenised(self, [self.path], self._read, tokenizer, max_length, cache_dir)
        name = self.name or Path(self.path).name.split(".")[0]
        return SimilarityTask(name, texts, arrays["left"], arrays["right"], arrays["scores"])

    def _read(self, texts: TextWriter) -> dict[str, np.ndarray]:
        left, right, scores = array("q"), array("q"), array("d")
        for place, row in _rows(self.path, [self.sentence1, self.sentence2, self.score]):
            left.append(texts.add(self.prompt + text_of(row, [self.sentence1], place)))
            right.append(texts.add(self.prompt + text_of(row, [self.sentence2], place)))
            scores.append(_number(row, self.score, place))
        return {"left": np.array(left), "right": np.array(right), "scores": np.array(scores)}


@dataclass(frozen=True, kw_only=True)
class TextFile:
    """Texts to encode.

    Args:
        path: any file that training pairs can be read from.
        column: of the text; of several, the texts are joined by spaces, blank ones left out.
        prompt: put before each text.
    """

    path: str
    column: str | list[str] = "text"
    prompt: str = ""

    def task(self, tokenizer: PreTrainedTokenizerBase, *, max_length: int, cache_dir: Path) -> TextRows:
        """As in ``RetrievalFiles``; the rows are in the order of the file, identical texts as often as there."""
        texts, arrays = _tokenised(self, [self.path], self._read, tokenizer, max_length, cache_dir)
        return TextRows(texts, arrays["rows"])

    def _read(self, texts: TextWriter) -> dict[str, np.ndarray]:
        columns = column_names(self.column, "column", self.path)
        rows = array("q")
        for place, row in shown_progress(_rows(self.path, columns), f"Tokenising {self.path}"):
            rows.append(texts.add(self.prompt + text_of(row, columns, place)))
        return {"rows": np.array(rows)}


def _tokenised(
    options: RetrievalFiles | StsFile | TextFile,
    paths: Sequence[str],
    read: Callable[[TextWriter], dict[str, np.ndarray]],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    cache_dir: Path,
) -> tuple[TokenisedTexts, Mapping[str, np.ndarray]]:
    """What ``read`` makes of the files, from the cache if it was made before."""

    def build(folder: Path) -> None:
        (folder / "texts").mkdir()
        with TextWriter(folder / "texts", tokenizer, max_length=max_length) as texts:
            arrays = read(texts)
        require_tokens(TokenisedTexts(folder / "texts"), paths[0])
        for name, values in arrays.items():
            np.save(folder / f"{name}.npy", values)

    content = {"content": [open_rows(path).fingerprint() for path in paths], **asdict(options)}
    for without_effect in ("path", "corpus", "queries", "qrels", "name"):
        content.pop(without_effect, None)
    folder = build_once(cache_dir / cache_key(type(options).__name__, content, tokenizer, max_length), build)
    return TokenisedTexts(folder / "texts"), {file.stem: np.load(file) for file in folder.glob("*.npy")}


def _rows(path: str, columns: Sequence[str]) -> Iterator[tuple[str, Row]]:
    for place, row in open_rows(path).rows(columns):
        if isinstance(row, RejectedRow):
            raise row
        yield place, row


def _texts_by_id(path: str, id_column: str, text: str | list[str], prompt: str) -> Iterator[tuple[str, str]]:
    columns = column_names(text, "text", path)
    seen: set[str] = set()
    for place, row in _rows(path, [id_column, *columns]):
        identity = str(value_of(row, id_column, place))
        if identity in seen:
            raise DataError(f"{place}: the id '{identity}' was there before. Expected each id once.")
        seen.add(identity)
        yield identity, prompt + text_of(row, columns, place)


def _judgements(path: str) -> Iterator[tuple[str, str, str, float]]:
    for place, row in _rows(path, [_QUERY_ID, _DOCUMENT_ID, _SCORE]):
        query, document = (str(value_of(row, column, place)) for column in (_QUERY_ID, _DOCUMENT_ID))
        yield place, query, document, _number(row, _SCORE, place)


def _number(row: Row, column: str, place: str) -> float:
    value: Any = value_of(row, column, place)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{place}: column '{column}' holds {shown(value)}. Expected a number.")
    return number


def _require_known(identity: str, known: Mapping[str, object], what: str, file: str) -> None:
    if identity not in known:
        close = suggestion(identity, list(known)[:10_000])
        raise DataError(f"{what} '{identity}' is not among the {len(known)} ids of {file}.{close}")
