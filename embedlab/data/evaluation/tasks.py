"""What a model is measured on while it trains: texts to encode, and what their embeddings should say.

Axes in names: U texts of a task, Q queries, M documents, J relevance judgments, P pairs, N scored pairs of texts,
D dimensions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from embedlab.data.evaluation.metrics import PAIR_LOSS_BLOCK, pair_loss, retrieval_metrics, spearman
from embedlab.data.texts import TokenizedTexts
from embedlab.data.tokenized import TokenizedPairs
from embedlab.errors import DataError
from embedlab.gradcache.chunking import Chunk, cut_chunks, pad_chunk


class TextChunks(Dataset[Chunk]):
    """A rank's chunks of a set of texts, longest first.

    Every rank has the same number of chunks, so that none waits for another: a last one may be on two ranks.

    Args:
        texts: where the tokens are.
        rows_U: the texts to encode; the rows in a chunk count among these.
        max_tokens: padded tokens a chunk, at most.
        max_padding: padding tokens a real token, at most.
        pad_token_id: fills the padding.
        rank: of this process.
        world_size: number of processes.
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
        """One chunk; its rows are the texts' numbers in ``rows_U``."""
        rows = self._chunks[number]
        tokens = [self._texts.tokens(row) for row in self._rows_U[rows].tolist()]
        return pad_chunk(tokens, rows, pad_token_id=self._pad_token_id)


class TextRows:
    """Texts to encode.

    Args:
        texts: where the tokens are.
        rows_U: which of them, in the order that embeddings are wanted in.
        left_out: What of the files was left out or assumed, for people; empty if there is nothing to say.
    """

    def __init__(self, texts: TokenizedTexts, rows_U: np.ndarray, *, left_out: str = "") -> None:
        self.texts = texts
        self.rows_U = rows_U
        self.left_out = left_out

    @property
    def num_rows(self) -> int:
        """How many texts there are to encode."""
        return len(self.rows_U)

    def chunks(
        self, *, max_tokens: int, pad_token_id: int, rank: int = 0, world_size: int = 1, max_padding: float = 0.05
    ) -> TextChunks:
        """A rank's chunks: see ``TextChunks``."""
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
    """Which documents answer which queries: for embeddings, and for any other searcher to be measured on the same.

    Args:
        texts: all of them.
        query_rows_Q: row of each query in ``texts``.
        document_rows_M: row of each document.
        relevance: number of the query, number of the document, and gain above 0, each (J,). A number past the
            documents is that of one that is not in the corpus: relevant, and never found.
        query_prompt: what each query's text begins with.
        document_prompt: what each document's text begins with.
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
        """Rows of queries and documents, each once, ascending."""
        return np.union1d(self._query_rows_Q, self._document_rows_M)

    def query_strings(self) -> list[str]:
        """The queries without their prompts."""
        return [self._texts.string(row)[len(self._query_prompt) :] for row in self._query_rows_Q]

    def document_strings(self) -> list[str]:
        """The documents without their prompts."""
        return [self._texts.string(row)[len(self._document_prompt) :] for row in self._document_rows_M]

    def metrics(self, embeddings_UD: Tensor) -> dict[str, float]:
        """``mrr@10``, ``ndcg@10``, ``recall@1`` and ``recall@10`` over all documents.

        Args:
            embeddings_UD: of ``rows_to_encode``, in that order.
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
        name: for logs.
        texts: where the tokens are.
        rows_U: the texts to encode.
        retrieval: the queries and documents among them, if there are any.
        left_out: As in ``TextRows``.
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
        """The metrics, by name, of unit-norm embeddings (num_rows, dim) in float32."""


class RetrievalTask(EvaluationTask):
    """Retrieval over a corpus.

    Args:
        name: for logs.
        texts: of queries and documents.
        retrieval: which are which.
        left_out: As in ``TextRows``.
    """

    def __init__(self, name: str, texts: TokenizedTexts, retrieval: Retrieval, *, left_out: str = "") -> None:
        super().__init__(name, texts, retrieval.rows_to_encode(), retrieval, left_out=left_out)
        self._retrieval = retrieval

    def metrics(self, embeddings_UD: Tensor) -> dict[str, float]:
        """See ``Retrieval.metrics``."""
        return self._retrieval.metrics(embeddings_UD)


class SimilarityTask(EvaluationTask):
    """Human scores of how alike two texts are.

    Args:
        name: for logs.
        texts: where the tokens are.
        left_rows_N: row of each pair's first text.
        right_rows_N: row of its second.
        scores_N: the more alike, the higher.
        left_out: As in ``TextRows``.
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
        """``spearman``: the rank correlation of cosines and scores."""
        left_N, right_N = (rows.to(embeddings_UD.device) for rows in (self._left_N, self._right_N))
        return {"spearman": spearman(embeddings_UD[left_N], embeddings_UD[right_N], self._scores_N)}


class HeldOutPairs(EvaluationTask):
    """Held-out pairs: the contrastive loss on them, and retrieval of each query's positive among all positives.

    In retrieval, identical positives are one document, relevant to the queries of all of them. The loss, which has no
    such means, leaves out a pair whose query or positive was in an earlier one, as training batches do.

    Args:
        store: the source.
        pairs: those that are held out.

    Attributes:
        fingerprint: of the texts that the loss is over, in their order.
        num_candidates: texts that the loss tells each one's partner apart from, itself included.

    Raises:
        DataError: if there are fewer than two.
    """

    def __init__(self, store: TokenizedPairs, pairs: np.ndarray) -> None:
        queries_P, positives_P = store.queries_N[pairs], store.positives_N[pairs]
        is_new = np.isin(np.arange(len(pairs)), np.unique(positives_P, return_index=True)[1])
        first = np.flatnonzero(is_new)[np.sort(np.unique(queries_P[is_new], return_index=True)[1])]
        if len(first) < 2:
            raise DataError(
                f"{len(pairs)} of the {len(store)} pairs of source '{store.name}' are held out in this split, "
                f"{len(first)} of them with different texts. Expected at least 2, better some hundreds: raise "
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
        self.num_candidates = min(PAIR_LOSS_BLOCK, len(first))
        self._queries_P, self._positives_P = (
            torch.from_numpy(np.searchsorted(self.rows_U, rows[first])) for rows in (queries_P, positives_P)
        )

    def metrics(self, embeddings_UD: Tensor) -> dict[str, float]:
        """``loss``, ``loss_standard_error`` (see ``pair_loss``), and those of ``Retrieval``."""
        queries_P, positives_P = (rows.to(embeddings_UD.device) for rows in (self._queries_P, self._positives_P))
        loss, standard_error = pair_loss(embeddings_UD[queries_P], embeddings_UD[positives_P])
        return {"loss": loss, "loss_standard_error": standard_error, **self._retrieval.metrics(embeddings_UD)}
