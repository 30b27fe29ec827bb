"""How good embeddings are, in figures that do not depend on batches, ranks or chunks.

All tables are of unit-norm embeddings in float32.

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
PAIR_LOSS_BLOCK: Final = 256
LOSS_PROTOCOL: Final[dict[str, str | float | int | bool]] = {
    "loss": "symmetric InfoNCE",
    "temperature": PAIR_LOSS_TEMPERATURE,
    "block_size": PAIR_LOSS_BLOCK,
    "order": "as in the file",
    "incomplete_block": "dropped unless it is the only one",
    "hard_negatives": False,
    "false_negative_masking": False,
}
"""What ``pair_loss`` computes. Losses under another protocol are not comparable to it."""

_NEVER: Final = 1 << 40  # the rank of a document that is not in the corpus


class EmbeddingTable(Metric):
    """Collects the embeddings of a task's texts over batches and ranks into one table.

    Args:
        num_rows: texts of the task.
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
        """Adds a batch: each text's row in the table, and its embedding."""
        self.rows.append(rows_B)
        self.embeddings.append(embeddings_BD.detach().float())

    def compute(self) -> Tensor:
        """The table (U, D) in float32; a row that a distributed sampler repeated is in it once."""
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
    """Exact retrieval metrics over the whole corpus, averaged over the queries with a relevant document.

    The gain in nDCG is linear, as in trec_eval and torchmetrics; the ideal ranking has all relevant
    documents. Ties are broken against the model: where scores are equal, irrelevant documents come first,
    then relevant ones by rising gain. So a model that gives all texts one embedding scores worst, whatever
    the order of the files, and so does one that gives NaN.

    Args:
        queries_QD: unit-norm embeddings of the queries.
        documents_MD: unit-norm embeddings of the documents.
        relevance: row of the query, row of the document, and gain above 0, each (J,); what is not named is
            irrelevant. A row past the end of ``documents_MD`` is a document that is not in the corpus: it is never
            found, and the ideal ranking and the recall include it, as in trec_eval.
        rows_per_chunk: queries whose scores are in memory at a time.

    Returns:
        ``mrr@10``, ``ndcg@10``, ``recall@1`` and ``recall@10``.

    Raises:
        DataError: if no document is relevant to any query, or one is judged twice for a query.

    >>> texts = torch.eye(3)
    >>> relevance = (torch.tensor([0, 1]), torch.tensor([0, 2]), torch.tensor([1, 1]))
    >>> retrieval_metrics(texts[:2], texts, relevance)["recall@1"]
    0.5
    """
    query_J, document_J, gain_J = (part.to(documents_MD.device) for part in relevance)
    gain_J = gain_J.double()
    if len(query_J) == 0:
        raise DataError(
            "No document is relevant to any query, so there is no retrieval to measure. Expected at least "
            "one judgment with a gain above 0: look at the ids in the relevance file."
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
            f"(rows counted from 0), {int(repeated_J.sum())} repetitions in all. Keep one judgment of each."
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
    """Each judged document's score, and how many irrelevant documents score as high. ``query_J`` rises."""
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
            above_J[part] = len(documents_MD) - lower_J  # not "as high or higher": NaN must not win
    return score_J, above_J


def _positions(group_J: Tensor, keys: tuple[Tensor, ...]) -> Tensor:
    """Position of each element within its group, from 0, ordered by the last key, then by the one before."""
    order_J = torch.arange(len(group_J), device=group_J.device)
    for key_J in (*keys, group_J):
        order_J = order_J[torch.argsort(key_J[order_J], stable=True)]
    sorted_group_J = group_J[order_J]
    position_J = torch.arange(len(group_J), device=group_J.device)
    position_J -= torch.searchsorted(sorted_group_J, sorted_group_J)
    return torch.empty_like(position_J).index_copy_(0, order_J, position_J)


def spearman(left_ND: Tensor, right_ND: Tensor, scores_N: Tensor) -> float:
    """Return Spearman's rank correlation of cosines with human scores, tied ranks averaged; 0 for constant cosines.

    Args:
        left_ND: Unit-norm embeddings of the first texts.
        right_ND: Unit-norm embeddings of the second texts.
        scores_N: Human scores of how alike they are, on any scale.

    Raises:
        DataError: If the scores are all the same, or not finite.
    """
    if not scores_N.isfinite().all() or bool((scores_N == scores_N[:1]).all()):
        raise DataError(
            f"The {len(scores_N)} human scores are all the same or not finite: nothing can correlate with them. "
            "Expected at least two different numbers."
        )
    cosine_N = (left_ND * right_ND).sum(dim=1)
    return float(spearman_corrcoef(cosine_N, scores_N.to(cosine_N)))


def alignment(queries_PD: Tensor, positives_PD: Tensor) -> float:
    """Mean squared distance of the two texts of a pair; lower is better.

    Source: Wang & Isola 2020, arXiv:2005.10242, with their alpha = 2.
    """
    return float((queries_PD - positives_PD).square().sum(dim=1).mean())


def uniformity(embeddings_UD: Tensor, *, rows_per_chunk: int = 1024) -> float:
    """Log of the mean Gaussian potential over pairs of different texts; lower is more spread out.

    Source: Wang & Isola 2020, arXiv:2005.10242, with their t = 2.

    Raises:
        DataError: if there are fewer than two texts.
    """
    num_texts = len(embeddings_UD)
    if num_texts < 2:
        raise DataError(f"Uniformity is over pairs of different texts, got {num_texts} text. Give at least 2.")
    total = torch.zeros((), dtype=torch.float64, device=embeddings_UD.device)
    for start, rows_RD in _chunks(embeddings_UD, rows_per_chunk):
        exponent_RU = (rows_RD @ embeddings_UD.T).sub_(1).mul_(4)  # -2 · squared distance, for unit norm
        exponent_RU.diagonal(offset=start).fill_(-math.inf)
        total += exponent_RU.exp_().sum(dtype=torch.float64)
    return float(torch.log(total / (num_texts * (num_texts - 1))))


def pair_loss(queries_PD: Tensor, positives_PD: Tensor) -> tuple[float, float]:
    """The contrastive loss under ``LOSS_PROTOCOL``, the one loss that runs are compared by.

    Symmetric InfoNCE over consecutive blocks of 256 pairs, in the order given: a loss grows with the number
    of candidates, so that number may depend on neither the batch nor the ranks of a run.

    Returns:
        The mean over pairs and its standard error. Pairs of a block share their candidates, so blocks are the
        clusters of the standard error (deviation of the block means over the root of their number); a single
        block has only its pairs to go by, and what they share is left out.

    Raises:
        DataError: if there are fewer than two pairs.
    """
    num_pairs = len(queries_PD)
    assert num_pairs == len(positives_PD)
    if num_pairs < 2:
        raise DataError(
            f"The evaluation loss contrasts pairs with each other, got {num_pairs} pair. Give at least 2, "
            f"better several times {PAIR_LOSS_BLOCK}."
        )
    size = min(PAIR_LOSS_BLOCK, num_pairs)
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
    """Consecutive rows, each with the number of the first."""
    for start in range(0, len(table), rows_per_chunk):
        yield start, table[start : start + rows_per_chunk]
