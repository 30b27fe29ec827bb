"""Reads texts, turns them into tokens and batches, and measures embeddings of them."""
