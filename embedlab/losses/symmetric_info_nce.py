"""InfoNCE in both directions, as in CLIP and in the paper that embedlab follows."""

from __future__ import annotations

from embedlab.losses.core import Block, ContrastiveLoss


class SymmetricInfoNCE(ContrastiveLoss):
    """Average InfoNCE and its mirror image, which finds the query of each positive among all queries.

    Source: Radford et al. 2021, arXiv:2103.00020, and Ziarko et al. 2024, arXiv:2406.04165. Neither paper has hard
    negatives. Here hard negatives take part from queries to documents only: a hard negative is a document, so it is no
    candidate for a positive, and there is no query that it should find.
    """

    terms = ((Block("queries", "documents"),), (Block("positives", "queries"),))
