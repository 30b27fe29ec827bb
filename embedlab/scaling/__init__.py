"""Scaling laws: what finished runs say of runs that were not made. Needs no torch."""
