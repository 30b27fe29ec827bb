"""Searches: which trials are run, where, and in which order. Needs no torch."""
