"""Scaling laws, one per file: how the loss depends on model size and data.

A new law is a subclass of ``Law`` in a file of its own.
"""

from embedlab.scaling.laws.bounded import Bounded
from embedlab.scaling.laws.chinchilla import Chinchilla
from embedlab.scaling.laws.law import IRREDUCIBLE, Law, LawShape, Points, Terms
from embedlab.scaling.laws.multiplicative import Multiplicative
from embedlab.scaling.laws.rectified import Rectified
from embedlab.scaling.laws.repeated import Repeated

__all__ = [
    "IRREDUCIBLE",
    "Bounded",
    "Chinchilla",
    "Law",
    "LawShape",
    "Multiplicative",
    "Points",
    "Rectified",
    "Repeated",
    "Terms",
]
