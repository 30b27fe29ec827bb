"""embedlab: compute-optimal training of text-embedding models from decoder-only language models."""
