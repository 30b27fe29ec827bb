"""Measures BM25 on a retrieval set's queries and documents, as a baseline for a trained model."""

from __future__ import annotations

from collections.abc import Sequence

import bm25s
import numpy as np
import torch
from torch import Tensor

from embedlab.data.evaluation.metrics import retrieval_metrics

_QUERIES_PER_CHUNK = 64
_DEPTH = 10  # number of documents that the metrics look at


def bm25_metrics(
    queries: Sequence[str], documents: Sequence[str], relevance: tuple[Tensor, Tensor, Tensor]
) -> dict[str, float]:
    """Return the retrieval metrics of BM25, computed with bm25s.

    BM25 is Lucene's variant with k1 = 1.5 and b = 0.75, on lower-cased words without removal of stop words.

    Args:
        queries: Texts of the queries, without prompts.
        documents: Texts of the documents, without prompts.
        relevance: Three tensors of shape (J,), with one entry per judgment: index of the query in ``queries``, index of
            the document in ``documents``, and gain above 0. See ``retrieval_metrics``.

    Returns:
        The metrics that ``retrieval_metrics`` returns. Ties are broken against BM25, as they are for a model.
    """
    index = bm25s.BM25()
    index.index(bm25s.tokenize(list(documents), stopwords=None, show_progress=False), show_progress=False)
    words = bm25s.tokenize(list(queries), stopwords=None, return_ids=False, show_progress=False)
    query_J, document_J, gain_J = (part.numpy() for part in relevance)
    totals: dict[str, float] = {}
    num_judged = len(np.unique(query_J))
    for start in range(0, len(queries), _QUERIES_PER_CHUNK):
        judged = (query_J >= start) & (query_J < start + _QUERIES_PER_CHUNK)
        if not judged.any():
            continue
        scores = torch.from_numpy(np.stack([index.get_scores(query) for query in words[start:][:_QUERIES_PER_CHUNK]]))
        # A document that outranks a relevant one within the depth is among the best documents. The rest cannot matter.
        best = scores.topk(min(_DEPTH, len(documents)), dim=1).indices.flatten().numpy()
        is_there = document_J[judged] < len(documents)
        kept, where = np.unique(np.concatenate([document_J[judged][is_there], best]), return_inverse=True)
        number_J = document_J[judged].copy()  # a document outside the corpus keeps a number past the end
        number_J[is_there] = where[: is_there.sum()]
        chunk = retrieval_metrics(
            scores[:, kept].float(),
            torch.eye(len(kept)),  # so that the product of queries and documents gives the scores
            (
                torch.from_numpy(query_J[judged] - start),
                torch.from_numpy(number_J),
                torch.from_numpy(gain_J[judged]),
            ),
        )
        share = len(np.unique(query_J[judged])) / num_judged
        for name, value in chunk.items():
            totals[name] = totals.get(name, 0.0) + share * value
    return totals
