"""Defines the tasks that a model is evaluated on: texts to encode, and metrics of their embeddings.

Axes in names: U texts of a task, Q queries, M documents, J relevance judgments, P pairs, N scored pairs of texts,
D dimensions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from embedlab.data.evaluation.metrics import CANDIDATES, pair_loss, retrieval_metrics, spearman
from embedlab.data.texts import TokenizedTexts
from embedlab.data.tokenized import TokenizedPairs
from embedlab.errors import DataError
from embedlab.gradcache.chunking import Chunk, cut_chunks, pad_chunk


class TextChunks(Dataset[Chunk]):
    """Data set of a rank's chunks of texts, longest texts first.

    Every rank has the same number of chunks, so that no rank waits for another. A chunk may therefore be on two ranks.

    Args:
        texts: Tokenized texts.
        rows_U: Rows in ``texts`` of the texts to encode. The rows in a chunk are positions in this array.
        max_tokens: Maximum number of tokens per chunk, padding included.
        max_padding: Maximum number of padding tokens per real token, over all chunks.
        pad_token_id: Token id that fills the padding.
        rank: Rank of this process.
        world_size: Number of processes.
    """

    def __init__(
        self,
        texts: TokenizedTexts,
        rows_U: np.ndarray,
        *,
        max_tokens: int,
        max_padding: float,
        pad_token_id: int,
        rank: int,
        world_size: int,
    ) -> None:
        self._texts = texts
        self._rows_U = rows_U
        self._pad_token_id = pad_token_id
        chunks = cut_chunks(texts.lengths_U[rows_U], max_tokens=max_tokens, max_padding=max_padding)
        per_rank = -(-len(chunks) // world_size)
        self._chunks = [chunks[(rank + number * world_size) % len(chunks)] for number in range(per_rank)]

    def __len__(self) -> int:
        return len(self._chunks)

    def __getitem__(self, number: int) -> Chunk:
        """Return one chunk, whose rows are the positions of its texts in ``rows_U``."""
        rows = self._chunks[number]
        tokens = [self._texts.tokens(row) for row in self._rows_U[rows].tolist()]
        return pad_chunk(tokens, rows, pad_token_id=self._pad_token_id)


class TextRows:
    """Texts to encode.

    Args:
        texts: Tokenized texts.
        rows_U: Rows in ``texts`` of the texts to encode, in the order of the embeddings.
        left_out: Remarks for the user about data that were left out of the files or assumptions in reading them. Empty
            if there are none.
    """

    def __init__(self, texts: TokenizedTexts, rows_U: np.ndarray, *, left_out: str = "") -> None:
        self.texts = texts
        self.rows_U = rows_U
        self.left_out = left_out

    @property
    def num_rows(self) -> int:
        """Number of texts to encode."""
        return len(self.rows_U)

    def chunks(
        self, *, max_tokens: int, pad_token_id: int, rank: int = 0, world_size: int = 1, max_padding: float = 0.05
    ) -> TextChunks:
        """Return a rank's chunks of the texts. The arguments are those of ``TextChunks``."""
        return TextChunks(
            self.texts,
            self.rows_U,
            max_tokens=max_tokens,
            max_padding=max_padding,
            pad_token_id=pad_token_id,
            rank=rank,
            world_size=world_size,
        )


class Retrieval:
    """Queries, documents and relevance judgments, to measure embeddings and other search methods on equal terms.

    Args:
        texts: Tokenized texts of queries and documents.
        query_rows_Q: Row of each query in ``texts``.
        document_rows_M: Row of each document in ``texts``.
        relevance: Number of the query, number of the document, and gain above 0 of each judgment, each of shape (J,). A
            number of M or more stands for a document that is not in the corpus, so it is relevant but never found.
        query_prompt: Prompt that each query's text begins with.
        document_prompt: Prompt that each document's text begins with.
    """

    def __init__(
        self,
        texts: TokenizedTexts,
        query_rows_Q: np.ndarray,
        document_rows_M: np.ndarray,
        relevance: tuple[Tensor, Tensor, Tensor],
        *,
        query_prompt: str = "",
        document_prompt: str = "",
    ) -> None:
        self.relevance = relevance
        self._texts = texts
        self._query_rows_Q = query_rows_Q
        self._document_rows_M = document_rows_M
        self._query_prompt = query_prompt
        self._document_prompt = document_prompt

    def rows_to_encode(self) -> np.ndarray:
        """Return the rows of queries and documents in the tokenized texts, each row once, in ascending order."""
        return np.union1d(self._query_rows_Q, self._document_rows_M)

    def query_strings(self) -> list[str]:
        """Return the texts of the queries without their prompts."""
        return [self._texts.string(row)[len(self._query_prompt) :] for row in self._query_rows_Q]

    def document_strings(self) -> list[str]:
        """Return the texts of the documents without their prompts."""
        return [self._texts.string(row)[len(self._document_prompt) :] for row in self._document_rows_M]

    def metrics(self, embeddings_UD: Tensor) -> dict[str, float]:
        """Return ``mrr@10``, ``ndcg@10``, ``recall@1`` and ``recall@10`` over all documents.

        Args:
            embeddings_UD: Unit-norm embeddings of the texts in ``rows_to_encode``, in the order of these rows.
        """
        rows_U = self.rows_to_encode()
        queries_QD, documents_MD = (
            embeddings_UD[torch.from_numpy(np.searchsorted(rows_U, rows)).to(embeddings_UD.device)]
            for rows in (self._query_rows_Q, self._document_rows_M)
        )
        return retrieval_metrics(queries_QD, documents_MD, self.relevance)


class EvaluationTask(TextRows, ABC):
    """Texts to encode, and metrics of their embeddings.

    Args:
        name: Name of the task in logs.
        texts: Tokenized texts.
        rows_U: Rows in ``texts`` of the texts to encode.
        retrieval: Queries and documents among the texts. None if the task is not about retrieval.
        left_out: Remarks for the user about data that were left out or assumptions in reading. Empty if there are none.
    """

    def __init__(
        self,
        name: str,
        texts: TokenizedTexts,
        rows_U: np.ndarray,
        retrieval: Retrieval | None = None,
        *,
        left_out: str = "",
    ) -> None:
        super().__init__(texts, rows_U, left_out=left_out)
        self.name = name
        self.retrieval = retrieval

    @abstractmethod
    def metrics(self, embeddings_UD: Tensor) -> dict[str, float]:
        """Return metrics by name, given the unit-norm embeddings of the texts, shape (num_rows, dim), float32."""


class RetrievalTask(EvaluationTask):
    """Retrieval over a corpus.

    Args:
        name: Name of the task in logs.
        texts: Tokenized texts of queries and documents.
        retrieval: Queries, documents and relevance judgments.
        left_out: Remarks for the user about data that were left out or assumptions in reading. Empty if there are none.
    """

    def __init__(self, name: str, texts: TokenizedTexts, retrieval: Retrieval, *, left_out: str = "") -> None:
        super().__init__(name, texts, retrieval.rows_to_encode(), retrieval, left_out=left_out)
        self._retrieval = retrieval

    def metrics(self, embeddings_UD: Tensor) -> dict[str, float]:
        """Return the retrieval metrics by name, from the embeddings of the U texts of the task; see ``Retrieval``."""
        return self._retrieval.metrics(embeddings_UD)


class SimilarityTask(EvaluationTask):
    """Similarity of two texts, compared with human scores.

    Args:
        name: Name of the task in logs.
        texts: Tokenized texts.
        left_rows_N: Row in ``texts`` of each pair's first text.
        right_rows_N: Row in ``texts`` of each pair's second text.
        scores_N: Human score of each pair. More similar texts have a higher score.
        left_out: Remarks for the user about data that were left out or assumptions in reading. Empty if there are none.
    """

    def __init__(
        self,
        name: str,
        texts: TokenizedTexts,
        left_rows_N: np.ndarray,
        right_rows_N: np.ndarray,
        scores_N: np.ndarray,
        *,
        left_out: str = "",
    ) -> None:
        rows_U, numbers = np.unique(np.concatenate([left_rows_N, right_rows_N]), return_inverse=True)
        super().__init__(name, texts, rows_U, left_out=left_out)
        self._left_N, self._right_N = (torch.from_numpy(part) for part in np.split(numbers, 2))
        self._scores_N = torch.from_numpy(scores_N)

    def metrics(self, embeddings_UD: Tensor) -> dict[str, float]:
        """Return ``spearman``, the rank correlation between the cosines of the pairs and their human scores."""
        left_N, right_N = (rows.to(embeddings_UD.device) for rows in (self._left_N, self._right_N))
        return {"spearman": spearman(embeddings_UD[left_N], embeddings_UD[right_N], self._scores_N)}


class HeldOutPairs(EvaluationTask):
    """Held-out pairs of a source: their contrastive loss, and retrieval of each query's positive among all positives.

    In retrieval, identical positives are one document that is relevant to the queries of all these pairs. The loss
    cannot do so, and leaves out pairs whose query or positive occurs in an earlier pair. Training batches do not repeat
    texts either.

    Args:
        store: Tokenized source.
        pairs: Rows of the source's held-out pairs.
        candidates: Maximum number of documents among which the loss looks for the document of a query.

    Attributes:
        fingerprint: Hexadecimal digits that identify the texts in the loss and their order.
        num_candidates: Number of texts among which the loss identifies each text's partner, the partner included.

    Raises:
        DataError: If fewer than two held-out pairs have different texts.
    """

    def __init__(self, store: TokenizedPairs, pairs: np.ndarray, candidates: int = CANDIDATES) -> None:
        queries_P, positives_P = store.queries_N[pairs], store.positives_N[pairs]
        is_new = np.isin(np.arange(len(pairs)), np.unique(positives_P, return_index=True)[1])
        first = np.flatnonzero(is_new)[np.sort(np.unique(queries_P[is_new], return_index=True)[1])]
        if len(first) < 2:
            raise DataError(
                f"{len(pairs)} of the {len(store)} pairs of source '{store.name}' are held out in this split, "
                f"{len(first)} of them with different texts. Expected at least 2, better several hundred: raise "
                "data.validation_fraction or data.test_fraction, or set a split_key with more different values."
            )
        query_rows_Q, query_P = np.unique(queries_P, return_inverse=True)
        document_rows_M, document_P = np.unique(positives_P, return_inverse=True)
        query_J, document_J = torch.unique(torch.from_numpy(np.stack([query_P, document_P])), dim=1)
        self._retrieval = Retrieval(
            store.texts,
            query_rows_Q,
            document_rows_M,
            (query_J, document_J, torch.ones_like(query_J)),
            query_prompt=store.source.query_prompt,
            document_prompt=store.source.document_prompt,
        )
        super().__init__(store.name, store.texts, self._retrieval.rows_to_encode(), self._retrieval)
        self.fingerprint = store.texts.fingerprint(np.concatenate([queries_P[first], positives_P[first]]))
        self.num_candidates = min(candidates, len(first))
        self._queries_P, self._positives_P = (
            torch.from_numpy(np.searchsorted(self.rows_U, rows[first])) for rows in (queries_P, positives_P)
        )

    def metrics(self, embeddings_UD: Tensor) -> dict[str, float]:
        """Return ``loss`` and ``loss_standard_error`` of ``pair_loss``, and the metrics of ``Retrieval.metrics``."""
        queries_P, positives_P = (rows.to(embeddings_UD.device) for rows in (self._queries_P, self._positives_P))
        loss, standard_error = pair_loss(
            embeddings_UD[queries_P], embeddings_UD[positives_P], candidates=self.num_candidates
        )
        return {"loss": loss, "loss_standard_error": standard_error, **self._retrieval.metrics(embeddings_UD)}
