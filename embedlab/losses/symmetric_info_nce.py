"""InfoNCE in both directions, as in CLIP and in the paper that embedlab follows."""

from __future__ import annotations

from embedlab.losses.core import Block, ContrastiveLoss


class SymmetricInfoNCE(ContrastiveLoss):
    """Average two losses: find the positive of each query (InfoNCE), and the query of each positive among all queries.

    Source: Radford et al. 2021, arXiv:2103.00020, and Ziarko et al. 2024, arXiv:2406.04165. Neither paper has hard
    negatives. Here, hard negatives are candidates for queries only: a hard negative is a document, so a positive is not
    contrasted with it, and no query belongs to it.
    """

    terms = ((Block("queries", "documents"),), (Block("positives", "queries"),))
