"""Searches: which trials to run, where, and in which order. This package does not import torch."""
