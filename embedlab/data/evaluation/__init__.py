"""How good embeddings are: evaluation sets, the metrics on them, and BM25 to compare with."""
