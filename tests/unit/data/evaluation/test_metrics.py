"""The metrics are those of the libraries, and depend on neither chunks nor ranks."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn.functional import normalize
from torchmetrics.functional.retrieval import (
    retrieval_normalized_dcg,
    retrieval_recall,
    retrieval_reciprocal_rank,
)

from embedlab.data.evaluation.metrics import (
    LOSS_PROTOCOL,
    EmbeddingTable,
    alignment,
    pair_loss,
    retrieval_metrics,
    spearman,
    uniformity,
)
from embedlab.errors import DataError


def make_table(num_rows: int, dim: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(num_rows, dim, generator=generator), dim=-1)


def sparse(gain_QM: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    query_J, document_J = gain_QM.nonzero(as_tuple=True)
    return query_J, document_J, gain_QM[query_J, document_J]


def torchmetrics_on_dense(scores_QM: Tensor, gain_QM: Tensor) -> dict[str, float]:
    """Averages over the queries with a relevant document."""
    judged = [(scores + 2, gain) for scores, gain in zip(scores_QM, gain_QM, strict=True) if gain.any()]
    functions = {  # scores shifted above 0, since torchmetrics takes what scores below for irrelevant
        "mrr@10": lambda s, g: retrieval_reciprocal_rank(s, g > 0, top_k=10),
        "ndcg@10": lambda s, g: retrieval_normalized_dcg(s, g, top_k=10),
        "recall@1": lambda s, g: retrieval_recall(s, g > 0, top_k=1),
        "recall@10": lambda s, g: retrieval_recall(s, g > 0, top_k=10),
    }
    return {
        name: float(torch.stack([function(*query) for query in judged]).mean()) for name, function in functions.items()
    }


@settings(deadline=None, max_examples=60)
@given(
    num_queries=st.integers(1, 8),
    num_documents=st.integers(1, 40),
    density=st.sampled_from([0.05, 0.5, 1.0]),
    seed=st.integers(0, 1000),
    rows_per_chunk=st.integers(1, 10),
)
def test_retrieval_is_that_of_torchmetrics_for_any_chunking(
    num_queries: int, num_documents: int, density: float, seed: int, rows_per_chunk: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    gain = torch.randint(1, 5, (num_queries, num_documents), generator=generator)
    gain *= torch.rand(num_queries, num_documents, generator=generator) < density
    gain[0, -1] = 2
    queries, documents = make_table(num_queries, 8, seed), make_table(num_documents, 8, seed + 1)
    order = torch.randperm(int((gain > 0).sum()), generator=generator)
    query_J, document_J, gain_J = (part[order] for part in sparse(gain))
    received = retrieval_metrics(queries, documents, (query_J, document_J, gain_J), rows_per_chunk=rows_per_chunk)
    assert received == pytest.approx(torchmetrics_on_dense(queries @ documents.T, gain), rel=1e-5)


def test_retrieval_of_a_case_done_by_hand() -> None:
    documents = normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [0.0, 1.0]]), dim=-1)
    # Query 0 ranks 0, 1, 2, 3; 1 is fairly relevant and 3 very. Query 1 ranks 3 first, and is the other way round.
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    relevance = (torch.tensor([0, 0, 1]), torch.tensor([1, 3, 3]), torch.tensor([1, 3, 1]))
    ndcg = (1 / math.log2(3) + 3 / math.log2(5)) / (3 / math.log2(2) + 1 / math.log2(3))
    assert retrieval_metrics(queries, documents, relevance) == pytest.approx(
        {"mrr@10": (1 / 2 + 1) / 2, "ndcg@10": (ndcg + 1) / 2, "recall@1": (0 + 1) / 2, "recall@10": 1.0}
    )


@pytest.mark.parametrize("num_documents", [1, 40])
def test_a_relevant_document_outside_the_corpus_is_never_found(num_documents: int) -> None:
    gain = torch.randint(0, 3, (6, num_documents + 12), generator=torch.Generator().manual_seed(0))
    gain[0, :num_documents] = 0  # nothing of the first query can be found
    queries, documents = make_table(6, 8), make_table(num_documents, 8, seed=1)
    received = retrieval_metrics(queries, documents, sparse(gain), rows_per_chunk=2)
    last = torch.full((6, 12), -1.5)  # behind all documents, and behind ten that are irrelevant
    scores = torch.cat([queries @ documents.T, last.new_full((6, 10), -1.2), last], dim=1)
    padded = torch.cat([gain[:, :num_documents], gain.new_zeros(6, 10), gain[:, num_documents:]], dim=1)
    assert received == pytest.approx(torchmetrics_on_dense(scores, padded), rel=1e-5)


def test_a_collapsed_or_broken_model_does_not_score() -> None:
    relevance = (torch.arange(30), torch.arange(30), torch.ones(30))
    for value in (0.5, math.nan):
        table = torch.full((30, 4), value)
        assert set(retrieval_metrics(table, table, relevance).values()) == {0.0}


def test_ties_between_relevant_documents_cost_nothing_but_their_order() -> None:
    table = torch.full((1, 4), 0.5)
    documents = table.expand(2, 4)
    relevance = (torch.tensor([0, 0]), torch.tensor([0, 1]), torch.tensor([2, 1]))
    received = retrieval_metrics(table, documents, relevance)
    worst_order = (1 + 2 / math.log2(3)) / (2 + 1 / math.log2(3))
    assert received == pytest.approx({"mrr@10": 1.0, "ndcg@10": worst_order, "recall@1": 0.5, "recall@10": 1.0})


def test_the_order_of_documents_does_not_matter() -> None:
    # Entries of ±1/2 make scores exact, so that equal documents tie whatever column they are computed in.
    queries, documents = make_table(20, 4).sign() / 2, make_table(20, 4, seed=1).sign() / 2
    relevance = (torch.arange(20), torch.arange(20), torch.ones(20))
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    moved = (torch.arange(20), torch.argsort(order), torch.ones(20))
    assert retrieval_metrics(queries, documents, relevance) == retrieval_metrics(queries, documents[order], moved)


def test_relevance_that_says_nothing_or_contradicts_itself_is_refused() -> None:
    table = make_table(3, 4)
    nothing = torch.empty(0, dtype=torch.int64)
    with pytest.raises(DataError, match="No document is relevant"):
        retrieval_metrics(table, table, (nothing, nothing, nothing))
    twice = (torch.tensor([0, 2, 1, 2]), torch.tensor([0, 1, 1, 1]), torch.tensor([1, 1, 1, 2]))
    with pytest.raises(DataError, match="Document 1 is judged more than once for query 2"):
        retrieval_metrics(table, table, twice)


@pytest.mark.parametrize("levels", [5, 1000])
def test_spearman_is_that_of_scipy(levels: int) -> None:
    left, right = make_table(300, 16), make_table(300, 16, seed=1)
    scores = torch.randint(0, levels, (300,), generator=torch.Generator().manual_seed(0))
    cosines = (left * right).sum(dim=1)
    scores = scores.double() / levels + cosines.double() / 3
    expected = spearmanr(cosines, scores.round(decimals=2)).statistic
    assert spearman(left, right, scores.round(decimals=2)) == pytest.approx(expected, abs=1e-5)


def test_spearman_of_constant_cosines_is_zero() -> None:
    table = torch.full((5, 4), 0.5)
    assert spearman(table, table, torch.arange(5)) == 0.0


@pytest.mark.parametrize("scores", [[3.0] * 5, [1.0, 2.0, 3.0, 4.0, math.nan], [1.0]])
def test_spearman_with_scores_that_say_nothing_is_refused(scores: list[float]) -> None:
    table = make_table(len(scores), 4)
    with pytest.raises(DataError, match="are all the same or not finite"):
        spearman(table, table, torch.tensor(scores))


def test_alignment_is_the_mean_squared_distance() -> None:
    queries = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    positives = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    assert alignment(queries, positives) == pytest.approx((0 + 4 + 2) / 3)


@settings(deadline=None, max_examples=30)
@given(num_texts=st.integers(2, 40), rows_per_chunk=st.integers(1, 50), seed=st.integers(0, 1000))
def test_uniformity_is_over_all_pairs_for_any_chunking(num_texts: int, rows_per_chunk: int, seed: int) -> None:
    table = make_table(num_texts, 6, seed)
    expected = math.log((-2 * torch.from_numpy(pdist(table.double().numpy(), "sqeuclidean"))).exp().mean())
    assert uniformity(table, rows_per_chunk=rows_per_chunk) == pytest.approx(expected, abs=1e-5)


def test_one_text_has_no_uniformity() -> None:
    with pytest.raises(DataError, match="1 text"):
        uniformity(make_table(1, 4))


def symmetric_loss(queries: Tensor, positives: Tensor) -> Tensor:
    """Per pair, straight from the definition, at temperature 0.025."""
    scores = queries.double() @ positives.double().T / 0.025
    return -(scores.log_softmax(dim=1).diagonal() + scores.log_softmax(dim=0).diagonal()) / 2


@pytest.mark.parametrize(("num_pairs", "num_blocks"), [(256, 1), (300, 1), (600, 2), (1024, 4)])
def test_pair_loss_is_the_mean_over_whole_blocks(num_pairs: int, num_blocks: int) -> None:
    queries = make_table(num_pairs, 8)
    positives = normalize(queries + 0.5 * make_table(num_pairs, 8, seed=1), dim=-1)
    blocks = [slice(256 * block, 256 * (block + 1)) for block in range(num_blocks)]
    losses = torch.stack([symmetric_loss(queries[block], positives[block]) for block in blocks])
    clusters = losses.mean(dim=1) if num_blocks > 1 else losses[0]
    mean, error = pair_loss(queries, positives)
    assert mean == pytest.approx(float(losses.mean()), rel=1e-5)
    assert error == pytest.approx(float(clusters.std()) / math.sqrt(len(clusters)), rel=1e-4)


def test_pair_loss_uses_an_incomplete_block_that_is_the_only_one() -> None:
    queries, positives = make_table(10, 8), make_table(10, 8, seed=1)
    assert pair_loss(queries, positives)[0] == pytest.approx(float(symmetric_loss(queries, positives).mean()))
    with pytest.raises(DataError, match="1 pair"):
        pair_loss(queries[:1], positives[:1])


def test_the_loss_protocol_can_be_recorded() -> None:
    assert json.loads(json.dumps(LOSS_PROTOCOL)) == LOSS_PROTOCOL
    assert LOSS_PROTOCOL["temperature"] == 0.025


def test_the_table_is_in_row_order_and_in_float32() -> None:
    expected = make_table(7, 4).to(torch.bfloat16)
    table = EmbeddingTable(7)
    for rows in torch.tensor([6, 0, 3, 2, 5, 1, 4]).split(3):
        table.update(rows, expected[rows])
    assert table.compute().dtype == torch.float32
    assert torch.equal(table.compute(), expected.float())


@pytest.mark.parametrize(("rows", "message"), [([0, 1, 1], "1 of 3 rows"), ([0, 1, 2, 3], "3 of 3")])
def test_a_table_with_a_hole_or_a_row_too_many_is_a_bug(rows: list[int], message: str) -> None:
    table = EmbeddingTable(3)
    table.update(torch.tensor(rows), torch.ones(len(rows), 2))
    with pytest.raises(AssertionError, match=message):
        table.compute()
