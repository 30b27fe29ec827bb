"""Batches larger than memory with the exact gradient (GradCache, Gao et al. 2021, arXiv:2101.06983)."""
