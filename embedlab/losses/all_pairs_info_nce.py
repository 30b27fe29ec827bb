"""The loss of GTE, which contrasts a pair with all other texts of the batch."""

from __future__ import annotations

from embedlab.losses.core import Block, ContrastiveLoss


class AllPairsInfoNCE(ContrastiveLoss):
    """Put the scores of a query and of its positive with all other texts into one softmax.

    Source: GTE, Li et al. 2023, arXiv:2308.03281. As in GTE, the pair's own score is in the softmax twice, once from
    each side, so the loss stays above log 2. Hard negatives are candidates for queries only: a hard negative was chosen
    because it is near a query, which does not say how far it should be from the query's positive.
    """

    terms = (
        (
            Block("queries", "documents"),
            Block("queries", "queries"),
            Block("positives", "queries"),
            Block("positives", "positives"),
        ),
    )
