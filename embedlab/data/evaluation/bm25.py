"""What a trained model is judged against: BM25 on the same queries and documents."""

from __future__ import annotations

from collections.abc import Sequence

import bm25s
import numpy as np
import torch
from torch import Tensor

from embedlab.data.evaluation.metrics import retrieval_metrics

_QUERIES_PER_CHUNK = 64
_DEPTH = 10  # of every metric


def bm25_metrics(
    queries: Sequence[str], documents: Sequence[str], relevance: tuple[Tensor, Tensor, Tensor]
) -> dict[str, float]:
    """Retrieval metrics of BM25 (Lucene's variant, k1 1.5, b 0.75, lower-cased words, no stop words) by bm25s.

    Args:
        queries: texts.
        documents: texts.
        relevance: row of the query, row of the document, and gain, as in ``retrieval_metrics``.

    Returns:
        The same metrics as ``retrieval_metrics``, ties broken against BM25 too.
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
        # Whatever outranks a relevant document within the depth is among the best: the rest cannot matter.
        best = scores.topk(min(_DEPTH, len(documents)), dim=1).indices.flatten().numpy()
        is_there = document_J[judged] < len(documents)
        kept, where = np.unique(np.concatenate([document_J[judged][is_there], best]), return_inverse=True)
        number_J = document_J[judged].copy()  # of a document that is not there, past the kept ones as past all
        number_J[is_there] = where[: is_there.sum()]
        chunk = retrieval_metrics(
            scores[:, kept].float(),
            torch.eye(len(kept)),  # so that the product of queries and documents is the scores themselves
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
