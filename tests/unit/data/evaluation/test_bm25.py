"""BM25 beside the model is BM25, measured as the model is."""

from __future__ import annotations

import random

import bm25s
import pytest
import torch

from embedlab.data.evaluation.bm25 import bm25_metrics


def test_bm25_metrics_are_those_of_its_whole_ranking() -> None:
    generator = random.Random(0)
    words = [f"word{number}" for number in range(60)]
    documents = [" ".join(generator.choices(words, k=30)) for _ in range(300)]
    queries = [" ".join(generator.sample(document.split(), 4)) for document in documents[:150]]
    relevance = (torch.arange(150), torch.arange(150), torch.ones(150))
    metrics = bm25_metrics(queries, documents, relevance)

    index = bm25s.BM25()
    index.index(bm25s.tokenize(documents, stopwords=None, show_progress=False), show_progress=False)
    ranks = []
    for number, query in enumerate(bm25s.tokenize(queries, stopwords=None, return_ids=False, show_progress=False)):
        scores = torch.from_numpy(index.get_scores(query))
        ranks.append(int((scores >= scores[number]).sum()))
    expected = sum(1 / rank for rank in ranks if rank <= 10) / len(ranks)
    assert 0.2 < expected < 1
    assert metrics["mrr@10"] == pytest.approx(expected, abs=1e-6)
    assert metrics["recall@1"] == pytest.approx(sum(rank == 1 for rank in ranks) / len(ranks), abs=1e-6)


def test_bm25_never_finds_a_relevant_document_outside_the_corpus() -> None:
    documents = [f"word{number} and more" for number in range(3)]
    relevance = (torch.tensor([0, 0, 1]), torch.tensor([4, 0, 3]), torch.ones(3))
    metrics = bm25_metrics(["word0", "word1"], documents, relevance)
    assert metrics["recall@10"] == pytest.approx((1 / 2 + 0) / 2)
    assert metrics["mrr@10"] == pytest.approx((1 + 0) / 2)
