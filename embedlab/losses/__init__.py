"""Contrastive losses: a core that all losses share, and one file per loss.

A new loss is a subclass of ``ContrastiveLoss`` in a file of its own.
"""

from embedlab.losses.all_pairs_info_nce import AllPairsInfoNCE
from embedlab.losses.core import MAX_INVERSE_TEMPERATURE, Block, ContrastiveLoss, LossGradient, PairRows, Term
from embedlab.losses.info_nce import InfoNCE
from embedlab.losses.symmetric_info_nce import SymmetricInfoNCE

__all__ = [
    "MAX_INVERSE_TEMPERATURE",
    "AllPairsInfoNCE",
    "Block",
    "ContrastiveLoss",
    "InfoNCE",
    "LossGradient",
    "PairRows",
    "SymmetricInfoNCE",
    "Term",
]
