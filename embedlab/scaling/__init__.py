"""Scaling laws, which predict the losses of new runs from finished runs. This package does not import torch."""
