"""Tasks encode every text they need, on any number of ranks, and measure what they say."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from embedlab.data.evaluation.metrics import EmbeddingTable, pair_loss
from embedlab.data.evaluation.tasks import HeldOutPairs, Retrieval, RetrievalTask, SimilarityTask, TextRows
from embedlab.data.texts import TextWriter, TokenizedTexts
from embedlab.errors import DataError
from embedlab.testing.backbones import tiny_tokenizer
from helpers.corpora import store_of

STRINGS = [f"{'x' * (number % 13)}{number}" for number in range(40)]


def texts_of(folder: Path, strings: list[str]) -> TokenizedTexts:
    folder.mkdir(parents=True, exist_ok=True)
    with TextWriter(folder, tiny_tokenizer(), max_length=64) as writer:
        for string in strings:
            writer.add(string)
    return TokenizedTexts(folder)


def embedding_of(string: str, dim: int = 16) -> Tensor:
    """A direction of its own for every text."""
    return normalize(torch.randn(dim, generator=torch.Generator().manual_seed(zlib.crc32(string.encode()))), dim=0)


def encoded(rows: TextRows, *, world_size: int = 1) -> Tensor:
    """What the trainer makes of a task's chunks: embeddings by row, gathered over the ranks."""
    table = EmbeddingTable(rows.num_rows)
    for rank in range(world_size):
        chunks = rows.chunks(max_tokens=50, pad_token_id=0, rank=rank, world_size=world_size)
        for number in range(len(chunks)):
            chunk = chunks[number]
            strings = [
                tiny_tokenizer().decode(tokens[mask.bool()])
                for tokens, mask in zip(chunk.input_ids_BL, chunk.attention_mask_BL, strict=True)
            ]
            table.update(chunk.rows_B, torch.stack([embedding_of(string) for string in strings]))
    return table.compute()


@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 50])
def test_every_rank_has_as_many_chunks_and_together_they_have_every_text(tmp_path: Path, world_size: int) -> None:
    rows = TextRows(texts_of(tmp_path, STRINGS), np.arange(40)[::-1])
    ranks = [rows.chunks(max_tokens=60, pad_token_id=0, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert len({len(chunks) for chunks in ranks}) == 1
    chunks = [chunks[number] for chunks in ranks for number in range(len(chunks))]
    assert {row for chunk in chunks for row in chunk.rows_B.tolist()} == set(range(40))
    assert all(chunk.num_padded_tokens <= 60 for chunk in chunks)
    num_repeated = sum(len(chunk.rows_B) for chunk in chunks) - 40
    assert (num_repeated == 0) == (len(chunks) == len({tuple(chunk.rows_B.tolist()) for chunk in chunks}))


@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_embeddings_come_back_in_the_order_of_the_rows(tmp_path: Path, world_size: int) -> None:
    texts = texts_of(tmp_path, STRINGS)
    wanted = np.array([7, 3, 3, 39, 0, 7])  # a text may be asked for more than once
    embeddings = encoded(TextRows(texts, wanted), world_size=world_size)
    expected = torch.stack([embedding_of(STRINGS[row]) for row in wanted])
    assert torch.equal(embeddings, expected)


PAIRS: list[tuple[str, str, list[str]]] = [
    ("q0", "d0", ["n0"]),
    ("q1", "d1", []),
    ("q2", "d1", []),  # the same document for another query
    ("q0", "d3", []),  # another document for the same query
    ("q4", "d4", []),
    ("q5", "d5", []),
]


def test_held_out_pairs_search_each_document_once(tmp_path: Path) -> None:
    task = HeldOutPairs(store_of(tmp_path, PAIRS, query_prompt="Q ", document_prompt="D "), np.array([0, 1, 2, 3, 4]))
    assert task.retrieval is not None
    queries, documents = task.retrieval.query_strings(), task.retrieval.document_strings()
    assert sorted(queries) == ["q0", "q1", "q2", "q4"]
    assert sorted(documents) == ["d0", "d1", "d3", "d4"]
    judged = {
        (queries[query], documents[document]): gain
        for query, document, gain in zip(*(part.tolist() for part in task.retrieval.relevance), strict=True)
    }
    assert judged == {("q0", "d0"): 1, ("q1", "d1"): 1, ("q2", "d1"): 1, ("q0", "d3"): 1, ("q4", "d4"): 1}
    encodes = {task.texts.string(row) for row in task.rows_U}
    assert encodes == {f"Q {query}" for query in queries} | {f"D {document}" for document in documents}
    assert task.name == "pairs"


def test_the_loss_of_held_out_pairs_takes_each_text_once(tmp_path: Path) -> None:
    store = store_of(tmp_path, PAIRS)
    task = HeldOutPairs(store, np.arange(6))
    embeddings = encoded(task)
    kept = [("q0", "d0"), ("q1", "d1"), ("q4", "d4"), ("q5", "d5")]
    sides = [torch.stack([embedding_of(pair[side]) for pair in kept]) for side in (0, 1)]
    loss, standard_error = pair_loss(sides[0], sides[1])
    metrics = task.metrics(embeddings)
    assert metrics["loss"] == pytest.approx(loss, rel=1e-6)
    assert metrics["loss_standard_error"] == pytest.approx(standard_error, rel=1e-6)


def test_the_loss_of_held_out_pairs_says_over_which_texts_it_is(tmp_path: Path) -> None:
    task = HeldOutPairs(store_of(tmp_path / "some", PAIRS), np.arange(6))
    alike = HeldOutPairs(store_of(tmp_path / "cut", PAIRS[::-1], max_length=3), np.arange(6)[::-1])
    other = HeldOutPairs(store_of(tmp_path / "prompt", PAIRS, query_prompt="Q "), np.arange(6))
    assert task.num_candidates == 4
    assert task.fingerprint == alike.fingerprint != other.fingerprint


def test_the_loss_of_held_out_pairs_has_as_many_candidates_as_it_is_told(tmp_path: Path) -> None:
    store = store_of(tmp_path, PAIRS)
    few, all_of_them = HeldOutPairs(store, np.arange(6), candidates=2), HeldOutPairs(store, np.arange(6), candidates=9)
    assert (few.num_candidates, all_of_them.num_candidates) == (2, 4)
    assert few.metrics(encoded(few))["loss"] < all_of_them.metrics(encoded(all_of_them))["loss"]


def test_perfect_embeddings_of_held_out_pairs_score_one(tmp_path: Path) -> None:
    task = HeldOutPairs(store_of(tmp_path, PAIRS), np.array([1, 4, 5]))
    directions = torch.eye(3)
    number = {"1": 0, "4": 1, "5": 2}
    embeddings = torch.stack([directions[number[task.texts.string(row)[1]]] for row in task.rows_U])
    metrics = task.metrics(embeddings)
    assert {metrics[name] for name in ("mrr@10", "ndcg@10", "recall@1", "recall@10")} == {1.0}
    assert metrics["loss"] < 1e-6
    assert metrics.keys() == {"loss", "loss_standard_error", "mrr@10", "ndcg@10", "recall@1", "recall@10"}


@pytest.mark.parametrize("pairs", [[], [0], [1, 2]])
def test_too_few_held_out_pairs_are_an_error(tmp_path: Path, pairs: list[int]) -> None:
    with pytest.raises(
        DataError, match=rf"{len(pairs)} of the 6 pairs of source 'pairs' are held out.*Expected at least 2"
    ):
        HeldOutPairs(store_of(tmp_path, PAIRS), np.array(pairs, dtype=np.int64))


def test_retrieval_may_have_documents_with_the_same_text(tmp_path: Path) -> None:
    texts = texts_of(tmp_path, ["query", "double", "single", "unused"])
    relevance = (torch.tensor([0]), torch.tensor([2]), torch.tensor([1.0]))
    task = RetrievalTask("set", texts, Retrieval(texts, np.array([0]), np.array([1, 1, 2]), relevance))
    assert task.num_rows == 3
    embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])  # both doubles stand before the relevant one
    assert task.metrics(embeddings)["mrr@10"] == pytest.approx(1 / 3)


def test_similarity_is_the_rank_correlation_with_the_scores(tmp_path: Path) -> None:
    texts = texts_of(tmp_path, ["a", "b", "c", "d"])
    left, right = np.array([0, 0, 0]), np.array([1, 2, 3])
    embeddings = normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.5], [1.0, 2.0]]), dim=1)
    for scores, expected in (([5.0, 3.0, 1.0], 1.0), ([1.0, 3.0, 5.0], -1.0)):
        task = SimilarityTask("sts", texts, left, right, np.array(scores))
        assert task.metrics(embeddings) == {"spearman": pytest.approx(expected, abs=1e-4)}
        assert task.retrieval is None
