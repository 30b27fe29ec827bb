"""Exact gradients of batches that are larger than memory (GradCache, Gao et al. 2021, arXiv:2101.06983)."""
