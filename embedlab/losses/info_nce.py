"""InfoNCE: the usual contrastive loss of retrieval, from queries to documents."""

from __future__ import annotations

from embedlab.losses.core import Block, ContrastiveLoss


class InfoNCE(ContrastiveLoss):
    """Find the positive of each query among all positives and hard negatives.

    Source: van den Oord et al. 2018, arXiv:1807.03748, eq. 4, with the other pairs of the batch as negatives.
    """

    terms = ((Block("queries", "documents"),),)
