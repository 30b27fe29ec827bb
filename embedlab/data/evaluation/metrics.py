"""Computes metrics of embeddings that do not depend on batches, ranks or chunks.

All tables hold unit-norm embeddings in float32.

Axes in names: U texts of a task, B texts of a batch, Q queries, M documents, J relevance judgments, P pairs,
N scored pairs of texts, R rows of a chunk, D dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics import Metric
from torchmetrics.functional.regression import spearman_corrcoef
from torchmetrics.utilities import dim_zero_cat

from embedlab.errors import DataError

PAIR_LOSS_TEMPERATURE: Final = 0.025
LOSS_PROTOCOL: Final[dict[str, str | float | bool]] = {
    "loss": "symmetric InfoNCE",
    "temperature": PAIR_LOSS_TEMPERATURE,
    "order": "as in the file",
    "incomplete_block": "dropped unless it is the only one",
    "hard_negatives": False,
    "false_negative_masking": False,
}
"""Definition of the loss that ``pair_loss`` computes, except for its number of candidates."""

CANDIDATES: Final = 256
"""Default number of documents among which ``pair_loss`` looks for the document of a query."""

_NEVER: Final = 1 << 40  # rank given to a document that is not in the corpus


class EmbeddingTable(Metric):
    """Metric that collects the embeddings of a task's texts over batches and ranks into one table.

    Args:
        num_rows: Number of texts of the task.
    """

    is_differentiable = False
    full_state_update = False

    rows: list[Tensor]
    embeddings: list[Tensor]

    def __init__(self, num_rows: int) -> None:
        super().__init__()
        self.num_rows = num_rows
        self.add_state("rows", default=[], dist_reduce_fx="cat")
        self.add_state("embeddings", default=[], dist_reduce_fx="cat")

    def update(self, rows_B: Tensor, embeddings_BD: Tensor) -> None:
        """Add a batch of embeddings.

        Args:
            rows_B: Row of each text in the table, int64.
            embeddings_BD: Embedding of each text.
        """
        self.rows.append(rows_B)
        self.embeddings.append(embeddings_BD.detach().float())

    def compute(self) -> Tensor:
        """Return the table of embeddings, shape (U, D), float32. A text that several ranks encoded has one row."""
        rows = dim_zero_cat(self.rows)
        embeddings = dim_zero_cat(self.embeddings)
        times_seen_U = torch.bincount(rows, minlength=self.num_rows)
        assert len(times_seen_U) == self.num_rows, f"a row past the end: {int(rows.max())} of {self.num_rows}"
        missing = int((times_seen_U == 0).sum())
        assert missing == 0, f"{missing} of {self.num_rows} rows were never encoded"
        table_UD = embeddings.new_empty(self.num_rows, embeddings.shape[1])
        table_UD[rows] = embeddings
        return table_UD


def retrieval_metrics(
    queries_QD: Tensor,
    documents_MD: Tensor,
    relevance: tuple[Tensor, Tensor, Tensor],
    *,
    rows_per_chunk: int = 1024,
) -> dict[str, float]:
    """Return exact retrieval metrics over the whole corpus, averaged over the queries with a relevant document.

    The gain in nDCG is linear, as in trec_eval and torchmetrics, and the ideal ranking contains all relevant documents.
    Ties are broken against the model: among equal scores, irrelevant documents come first, then relevant documents in
    ascending order of gain. A model that gives all texts the same embedding, or NaN, therefore gets the worst result,
    whatever the order of the files.

    Args:
        queries_QD: Unit-norm embeddings of the queries.
        documents_MD: Unit-norm embeddings of the documents.
        relevance: Row of the query, row of the document, and gain above 0 of each judgment, each of shape (J,). A
            document without a judgment is irrelevant. A row past the end of ``documents_MD`` stands for a document that
            is not in the corpus. The document is never found, but counts in the ideal ranking and the recall, as in
            trec_eval.
        rows_per_chunk: Number of queries whose scores are in memory at the same time.

    Returns:
        ``mrr@10``, ``ndcg@10``, ``recall@1`` and ``recall@10``, each between 0 and 1.

    Raises:
        DataError: If no document is relevant to any query, or if a document is judged twice for a query.

    >>> texts = torch.eye(3)
    >>> relevance = (torch.tensor([0, 1]), torch.tensor([0, 2]), torch.tensor([1, 1]))
    >>> retrieval_metrics(texts[:2], texts, relevance)["recall@1"]
    0.5
    """
    query_J, document_J, gain_J = (part.to(documents_MD.device) for part in relevance)
    gain_J = gain_J.double()
    if len(query_J) == 0:
        raise DataError(
            "No document is relevant to any query, so retrieval cannot be measured. Expected at least "
            "one judgment with a gain above 0: check the ids in the relevance file."
        )
    assert bool((gain_J > 0).all())
    num_numbers = max(len(documents_MD), int(document_J.max()) + 1)
    order_J = torch.argsort(query_J * num_numbers + document_J)
    query_J, document_J, gain_J = query_J[order_J], document_J[order_J], gain_J[order_J]
    repeated_J = (query_J[1:] == query_J[:-1]) & (document_J[1:] == document_J[:-1])
    if repeated_J.any():
        first = int(repeated_J.nonzero()[0])
        raise DataError(
            f"Document {int(document_J[first])} is judged more than once for query {int(query_J[first])} "
            f"(rows counted from 0), {int(repeated_J.sum())} repetitions in all. Keep one judgment per pair."
        )

    is_there_J = document_J < len(documents_MD)
    score_J = queries_QD.new_full((len(query_J),), -math.inf)
    irrelevant_above_J = torch.full_like(query_J, len(documents_MD))
    score_J[is_there_J], irrelevant_above_J[is_there_J] = _scores_and_irrelevant_above(
        queries_QD, documents_MD, query_J[is_there_J], document_J[is_there_J], rows_per_chunk
    )
    judged_Q, judged_J, num_relevant_Q = torch.unique_consecutive(query_J, return_inverse=True, return_counts=True)
    rank_J = 1 + irrelevant_above_J + _positions(judged_J, (gain_J, -score_J))
    rank_J = rank_J.masked_fill(~is_there_J, _NEVER)
    ideal_rank_J = 1 + _positions(judged_J, (-gain_J,))

    def per_query(values_J: Tensor, within_J: Tensor) -> Tensor:
        return values_J.new_zeros(len(judged_Q)).index_add_(0, judged_J, values_J * within_J)

    def discounted_gain(ranks_J: Tensor) -> Tensor:
        return per_query(gain_J / torch.log2(1.0 + ranks_J.double()), ranks_J <= 10)

    best_rank_Q = torch.zeros_like(judged_Q).scatter_reduce_(0, judged_J, rank_J, "amin", include_self=False)
    ones_J = torch.ones_like(gain_J)
    per_query_metrics = {
        "mrr@10": (best_rank_Q <= 10) / best_rank_Q.double(),
        "ndcg@10": discounted_gain(rank_J) / discounted_gain(ideal_rank_J),
        "recall@1": per_query(ones_J, rank_J <= 1) / num_relevant_Q,
        "recall@10": per_query(ones_J, rank_J <= 10) / num_relevant_Q,
    }
    return {name: float(values_Q.mean()) for name, values_Q in per_query_metrics.items()}


def _scores_and_irrelevant_above(
    queries_QD: Tensor, documents_MD: Tensor, query_J: Tensor, document_J: Tensor, rows_per_chunk: int
) -> tuple[Tensor, Tensor]:
    """Return each judged document's score, and the number of irrelevant documents that score as high or higher.

    Args:
        queries_QD: Unit-norm embeddings of the queries.
        documents_MD: Unit-norm embeddings of the documents.
        query_J: Row of each judgment's query, in ascending order.
        document_J: Row of each judgment's document.
        rows_per_chunk: Number of queries, and of judgments, that are processed at the same time.
    """
    score_J = queries_QD.new_empty(len(query_J))
    above_J = torch.empty_like(query_J)
    for start, rows_RD in _chunks(queries_QD, rows_per_chunk):
        limits = query_J.new_tensor([start, start + len(rows_RD)])
        begin, end = torch.searchsorted(query_J, limits).tolist()
        row = query_J[begin:end] - start
        scores_RM = rows_RD @ documents_MD.T
        score_J[begin:end] = scores_RM[row, document_J[begin:end]]
        scores_RM[row, document_J[begin:end]] = -math.inf
        for first in range(begin, end, rows_per_chunk):  # a query may have many relevant documents
            part = slice(first, min(first + rows_per_chunk, end))
            lower_J = (scores_RM[query_J[part] - start] < score_J[part, None]).sum(dim=1)
            above_J[part] = len(documents_MD) - lower_J  # not a count of "as high or higher", in which NaN would win
    return score_J, above_J


def _positions(group_J: Tensor, keys: tuple[Tensor, ...]) -> Tensor:
    """Return the position of each element in its group, from 0, sorted by the last key, ties by the key before it."""
    order_J = torch.arange(len(group_J), device=group_J.device)
    for key_J in (*keys, group_J):
        order_J = order_J[torch.argsort(key_J[order_J], stable=True)]
    sorted_group_J = group_J[order_J]
    position_J = torch.arange(len(group_J), device=group_J.device)
    position_J -= torch.searchsorted(sorted_group_J, sorted_group_J)
    return torch.empty_like(position_J).index_copy_(0, order_J, position_J)


def spearman(left_ND: Tensor, right_ND: Tensor, scores_N: Tensor) -> float:
    """Return Spearman's rank correlation between cosines and human scores.

    Ties get their average rank. The correlation is 0 if all cosines are equal.

    Args:
        left_ND: Unit-norm embeddings of the first texts.
        right_ND: Unit-norm embeddings of the second texts.
        scores_N: Human scores of the similarity of the two texts, on any scale.

    Raises:
        DataError: If all scores are equal, or a score is not finite.
    """
    if not scores_N.isfinite().all() or bool((scores_N == scores_N[:1]).all()):
        raise DataError(
            f"The {len(scores_N)} human scores are all the same or not finite, so no correlation exists. "
            "Expected at least two different finite numbers."
        )
    cosine_N = (left_ND * right_ND).sum(dim=1)
    return float(spearman_corrcoef(cosine_N, scores_N.to(cosine_N)))


def alignment(queries_PD: Tensor, positives_PD: Tensor) -> float:
    """Return the mean squared distance between the two texts of a pair. Lower is better.

    Source: Wang & Isola 2020, arXiv:2005.10242, with their alpha = 2.
    """
    return float((queries_PD - positives_PD).square().sum(dim=1).mean())


def uniformity(embeddings_UD: Tensor, *, rows_per_chunk: int = 1024) -> float:
    """Return the log of the mean Gaussian potential over pairs of different texts. Lower means more spread out.

    Source: Wang & Isola 2020, arXiv:2005.10242, with their t = 2.

    Raises:
        DataError: If there are fewer than two texts.
    """
    num_texts = len(embeddings_UD)
    if num_texts < 2:
        raise DataError(f"Uniformity needs pairs of different texts, got {num_texts} text. Give at least 2 texts.")
    total = torch.zeros((), dtype=torch.float64, device=embeddings_UD.device)
    for start, rows_RD in _chunks(embeddings_UD, rows_per_chunk):
        exponent_RU = (rows_RD @ embeddings_UD.T).sub_(1).mul_(4)  # -2 · squared distance, since norms are 1
        exponent_RU.diagonal(offset=start).fill_(-math.inf)
        total += exponent_RU.exp_().sum(dtype=torch.float64)
    return float(torch.log(total / (num_texts * (num_texts - 1))))


def pair_loss(queries_PD: Tensor, positives_PD: Tensor, candidates: int = CANDIDATES) -> tuple[float, float]:
    """Return the contrastive loss under ``LOSS_PROTOCOL``, the loss that runs are compared by.

    The loss is symmetric InfoNCE over consecutive blocks of pairs, in the given order. Since the loss grows with the
    number of candidates, that number must not depend on the batch size or the number of ranks of a run, and losses with
    different numbers of candidates are not comparable.

    Args:
        queries_PD: Unit-norm embeddings of the queries.
        positives_PD: Unit-norm embeddings of the positives.
        candidates: Number of pairs in a block, which is the number of documents among which the document of a query is
            looked for. With fewer pairs in all, they are one block.

    Returns:
        Mean loss over the pairs in nats, and the standard error of the mean. Pairs of a block share their candidates,
        so the standard error is the standard deviation of the block means divided by the square root of the number of
        blocks. With a single block, the losses of the pairs are used in place of block means, as if independent.

    Raises:
        DataError: If there are fewer than two pairs.
    """
    num_pairs = len(queries_PD)
    assert num_pairs == len(positives_PD)
    if num_pairs < 2:
        raise DataError(
            f"The evaluation loss contrasts pairs with each other, got {num_pairs} pair. Give at least 2 pairs, "
            f"better several times {candidates}."
        )
    size = min(candidates, num_pairs)
    own = torch.arange(size, device=queries_PD.device)
    losses = []
    for start in range(0, num_pairs - size + 1, size):
        block = slice(start, start + size)
        scores = queries_PD[block] @ positives_PD[block].T / PAIR_LOSS_TEMPERATURE
        forward, backward = (cross_entropy(side, own, reduction="none") for side in (scores, scores.T))
        losses.append((forward + backward).double() / 2)
    clusters = torch.stack(losses).mean(dim=1) if len(losses) > 1 else losses[0]
    return float(clusters.mean()), float(clusters.std() / math.sqrt(len(clusters)))


def _chunks(table: Tensor, rows_per_chunk: int) -> Iterator[tuple[int, Tensor]]:
    """Yield consecutive chunks of rows, each preceded by the number of its first row."""
    for start in range(0, len(table), rows_per_chunk):
        yield start, table[start : start + rows_per_chunk]
