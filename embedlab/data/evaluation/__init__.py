"""Measures how good embeddings are: evaluation sets, metrics, and BM25 as a baseline."""
