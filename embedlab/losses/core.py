"""Computes contrastive losses with closed-form gradients, so that no autograd graph over scores limits the batch size.

A loss declares which blocks of scores share a softmax (see ``SymmetricInfoNCE``). This module computes, masks,
normalizes and differentiates the scores of every loss, in chunks of rows and over ranks.

Axes in names: U unique texts of a rank's batch, P pairs of a rank, N hard negatives of a rank, X texts of the pool
(queries, positives and hard negatives of all ranks), R anchors of a chunk, M candidates, D dimensions.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from embedlab.errors import ConfigError, DataError, PluginError

MAX_INVERSE_TEMPERATURE = 100.0
"""Maximum of a learnable inverse temperature, as in CLIP (Radford et al. 2021, arXiv:2103.00020)."""

_COLDEST, _HOTTEST = 1e-6, 1e6  # outside, float32 cannot tell cosines divided by the temperature from infinity or 0


@dataclass
class PairRows:
    """The pairs of this rank, as rows among the rank's unique texts.

    Attributes:
        queries_P: Row of each pair's query, int64.
        positives_P: Row of each pair's positive, int64.
        negatives_N: Rows of the hard negatives of all pairs, int64. Their number may differ between ranks.
        text_hashes_U: Hash of each unique text, int64. Two texts are identical, also across ranks, exactly if their
            hashes are equal.
    """

    queries_P: Tensor
    positives_P: Tensor
    negatives_N: Tensor
    text_hashes_U: Tensor

    def stacked(self) -> Tensor:
        """Return the rows of the queries, then of the positives, then of the hard negatives."""
        return torch.cat([self.queries_P, self.positives_P, self.negatives_N])


@dataclass(frozen=True)
class LossGradient:
    """A loss over the batches of all ranks and its gradient, both already reduced over the ranks.

    Attributes:
        loss: Mean loss over the pairs of all ranks and over the terms of the loss, each of which is one softmax, for
            example from queries to documents. A zero-dimensional tensor, equal on every rank.
        embeddings_UD: Gradient with respect to the embeddings of this rank's U unique texts, including what the anchors
            of other ranks contribute. The data type is float32, or float64 for float64 embeddings.
        log_scale: Derivative with respect to the log inverse temperature. A zero-dimensional tensor, equal on every
            rank.
        num_candidates: Number of negatives in a softmax after masking, without the positive, as a mean over pairs and
            terms.
        flops: FLOPs that this rank executed for the loss and its gradient: three matrix products per block of scores.
    """

    loss: Tensor
    embeddings_UD: Tensor
    log_scale: Tensor
    num_candidates: float
    flops: int


class Block(NamedTuple):
    """The kind of a block of scores, which contrasts this rank's anchors (one per pair) with candidates of all ranks.

    Attributes:
        anchors: Texts of each pair that are the anchors: its query or its positive.
        candidates: Texts that the anchors are contrasted with: all queries, all positives, or all ``documents``, which
            are the positives and the hard negatives.
    """

    anchors: Literal["queries", "positives"]
    candidates: Literal["queries", "positives", "documents"]

    @property
    def holds_positive(self) -> bool:
        """Whether the block contains each pair's own score.

        In a block within one side, the anchor's score with itself is in this place, and is left out.
        """
        return (self.anchors == "queries") != (self.candidates == "queries")


Term = tuple[Block, ...]
"""Blocks whose scores share one softmax per pair."""


class ContrastiveLoss(nn.Module, ABC):
    """Cross-entropy of each pair's own score in a softmax over candidates, averaged over terms and pairs.

    A score is the cosine of two texts divided by the temperature. A new loss is a subclass that states ``terms``.

    The loss is computed in float32 (float64 for float64 embeddings), whatever autocast says. On a GPU, the matrix
    products follow ``torch.set_float32_matmul_precision``.

    Args:
        temperature: Temperature that divides the cosines. The default is 0.025, as in Ziarko et al. 2024,
            arXiv:2406.04165.
        learnable_temperature: Whether to train the logarithm of the inverse temperature, starting from
            ``temperature``. A learned temperature is never below 0.01.
        mask_identical: Whether to leave out candidates that are known not to be negatives: texts identical to the
            anchor or to its partner in the pair, and partners of texts that are identical to the anchor.
        false_negative_margin: Difference of cosines beyond which a candidate is left out as a probable false negative:
            its cosine with the anchor exceeds the cosine of the pair by more than this margin. Zhang et al. 2025,
            arXiv:2506.05176, use 0.1. The margin may be negative. None masks nothing by score.
        rows_per_chunk: Number of anchors whose scores are in memory at the same time.
    """

    log_scale: Tensor

    def __init__(
        self,
        *,
        temperature: float = 0.025,
        learnable_temperature: bool = False,
        mask_identical: bool = True,
        false_negative_margin: float | None = None,
        rows_per_chunk: int = 1024,
    ) -> None:
        super().__init__()
        if not _COLDEST <= temperature <= _HOTTEST:
            raise ConfigError(
                f"temperature must be a number above 0, from {_COLDEST:g} to {_HOTTEST:g}, got {temperature}. "
                "Usual values lie between 0.01 and 0.1; leave the option out for the default of 0.025."
            )
        if learnable_temperature and 1 / temperature > MAX_INVERSE_TEMPERATURE:
            raise ConfigError(
                f"A learnable temperature must start at {1 / MAX_INVERSE_TEMPERATURE} or above, got temperature="
                f"{temperature}. Raise temperature, or set learnable_temperature to false."
            )
        if false_negative_margin is not None and not math.isfinite(false_negative_margin):
            raise ConfigError(
                "false_negative_margin must be a finite difference of cosines, for example 0.1, got "
                f"{false_negative_margin}. Leave the option out to mask nothing by score."
            )
        if rows_per_chunk < 1:
            raise ConfigError(
                f"rows_per_chunk must be at least 1, got {rows_per_chunk}. Leave it out for the default of 1024."
            )
        for term in self.terms:
            if not any(block.holds_positive for block in term):
                raise PluginError(
                    f"{type(self).__name__} has the term {term}, whose softmax does not contain the pair's own "
                    "score. Add a block across both sides to the term, for example Block('queries', 'documents')."
                )
        self.mask_identical = mask_identical
        self.false_negative_margin = false_negative_margin
        self.rows_per_chunk = rows_per_chunk
        log_scale = -math.log(temperature)
        if learnable_temperature:
            self.log_scale = nn.Parameter(torch.tensor(log_scale))
        else:  # not a buffer, because casting the module to bfloat16 would round a buffer
            self.log_scale = torch.tensor(log_scale, dtype=torch.float64)

    def extra_repr(self) -> str:
        """Return the options as text, with the current temperature."""
        learnable = isinstance(self.log_scale, nn.Parameter)
        return (
            f"temperature={math.exp(-float(self.log_scale)):.6g}, learnable_temperature={learnable}, "
            f"mask_identical={self.mask_identical}, false_negative_margin={self.false_negative_margin}"
        )

    @property
    @abstractmethod
    def terms(self) -> tuple[Term, ...]:
        """The terms of the loss, each with one softmax. A subclass states the terms as a class attribute."""

    @torch.no_grad()
    def gradient(
        self, embeddings_UD: Tensor, rows: PairRows, *, group: dist.ProcessGroup | None = None
    ) -> LossGradient:
        """Return the loss over the batches of all ranks, and its gradient.

        Args:
            embeddings_UD: Unit-norm embeddings of this rank's unique texts. The gradient is with respect to these
                embeddings, not with respect to the vectors before their normalization.
            rows: Pairs of this rank. Every rank must have an equal number of pairs.
            group: Process group of the ranks that share the batch. None means that this process has the whole batch.

        Raises:
            DataError: If there is only one pair over all ranks and no hard negative.
        """
        with torch.autocast(embeddings_UD.device.type, enabled=False):
            return self._gradient(embeddings_UD, rows, group)

    def _gradient(self, embeddings_UD: Tensor, rows: PairRows, group: dist.ProcessGroup | None) -> LossGradient:
        embeddings_UD = embeddings_UD.to(torch.promote_types(embeddings_UD.dtype, torch.float32))
        pool = _gather(embeddings_UD, rows, group)
        if len(pool.embeddings_XD) == 2:
            raise DataError(
                "A batch of one pair without hard negatives has nothing to contrast with, got 1 pair over "
                "all ranks. Use a batch of at least 2 pairs, or give the pair hard negatives."
            )
        if self.log_scale.requires_grad:
            self.log_scale.clamp_(max=math.log(MAX_INVERSE_TEMPERATURE))
        scale = self.log_scale.exp().to(embeddings_UD)

        gradient_XD = torch.zeros_like(pool.embeddings_XD)
        sums = embeddings_UD.new_zeros(3)
        for term in self.terms:
            for start in range(0, pool.num_local, self.rows_per_chunk):
                pairs = range(start, min(start + self.rows_per_chunk, pool.num_local))
                sums += self._accumulate(term, pool, pairs, scale, gradient_XD)
        if group is not None:
            dist.all_reduce(sums, group=group)
            dist.all_reduce(gradient_XD, group=group)
        loss, derivative, num_candidates = (sums / (len(self.terms) * pool.num_pairs)).unbind()
        own_gradient = gradient_XD[pool.own] * (scale / (len(self.terms) * pool.num_pairs))
        return LossGradient(
            loss=loss,
            embeddings_UD=torch.zeros_like(embeddings_UD).index_add_(0, rows.stacked(), own_gradient),
            log_scale=derivative * scale,
            num_candidates=float(num_candidates),
            flops=6 * pool.num_local * pool.embeddings_XD.shape[1] * self._num_scores(pool),
        )

    def _num_scores(self, pool: _Pool) -> int:
        """Return the number of scores of one pair over all terms."""
        sides = [pool.side(block.candidates) for term in self.terms for block in term]
        return sum(side.stop - side.start for side in sides)

    def _accumulate(self, term: Term, pool: _Pool, pairs: range, scale: Tensor, gradient_XD: Tensor) -> Tensor:
        """Add one chunk's share of the gradient, and return the chunk's loss, derivative and number of negatives.

        Let p be the softmax of a pair's scores s = scale <a, c>, and let y be one at the pair's own score and zero
        elsewhere. The derivative of the loss with respect to s is W = p - y. The gradient is therefore scale W C with
        respect to the anchors A, and scale W^T A with respect to the candidates C. The derivative with respect to
        log scale is sum(W s) = scale <A, W C>, which needs no scores.

        Args:
            term: Blocks that share one softmax.
            pool: Texts of all ranks.
            pairs: Numbers of the chunk's pairs among this rank's pairs.
            scale: Inverse temperature, a zero-dimensional tensor.
            gradient_XD: Sum of the gradients of the chunks so far, to which this chunk's gradient is added in place.
                The caller multiplies by ``scale`` and divides by the number of pairs and terms.

        Returns:
            Sums over the chunk, shape (3,): the loss, the derivative with respect to log scale divided by ``scale``,
            and the number of negatives.
        """
        anchors = [pool.embeddings_XD[pool.local(block.anchors, pairs)] for block in term]
        candidates = [pool.embeddings_XD[pool.side(block.candidates)] for block in term]
        widths = [len(candidates_MD) for candidates_MD in candidates]
        row_R = torch.arange(len(pairs), device=scale.device)
        diagonal_R = row_R + (pool.first_pair + pairs.start)  # column of the pair itself in each block

        scores_RM = gradient_XD.new_empty(len(pairs), sum(widths))
        num_negatives = gradient_XD.new_zeros(())
        for block, anchors_RD, candidates_MD, scores in zip(
            term, anchors, candidates, torch.split(scores_RM, widths, dim=1), strict=True
        ):
            torch.mm(anchors_RD * scale, candidates_MD.T, out=scores)
            num_negatives += len(pairs) * (len(candidates_MD) - 1)
            excluded_RM = self._false_negatives(block, pool, pairs, scores, scale)
            if excluded_RM is not None:
                excluded_RM[row_R, diagonal_R] = False
                scores.masked_fill_(excluded_RM, -math.inf)
                num_negatives -= excluded_RM.sum()
            if not block.holds_positive:
                scores[row_R, diagonal_R] = -math.inf

        weights_RM = torch.log_softmax(scores_RM, dim=1)
        position = [block.holds_positive for block in term].index(True)
        own_score_R = (row_R, diagonal_R + sum(widths[:position]))
        loss = -weights_RM[own_score_R].sum()
        weights_RM.exp_()
        weights_RM[own_score_R] -= 1

        derivative = torch.zeros_like(loss)
        for block, anchors_RD, candidates_MD, weights in zip(
            term, anchors, candidates, torch.split(weights_RM, widths, dim=1), strict=True
        ):
            gradient_RD = weights @ candidates_MD
            derivative += (gradient_RD * anchors_RD).sum()
            gradient_XD[pool.local(block.anchors, pairs)] += gradient_RD
            gradient_MD = gradient_XD[pool.side(block.candidates)]
            torch.addmm(gradient_MD, weights.T, anchors_RD, out=gradient_MD)  # FLOP counters do not know addmm_
        return torch.stack([loss, derivative, num_negatives])

    def _false_negatives(
        self, block: Block, pool: _Pool, pairs: range, scores_RM: Tensor, scale: Tensor
    ) -> Tensor | None:
        """Return a mask (R, M) of the candidates to leave out, or None to leave out none.

        The mask may also leave out the pair itself (the diagonal), which the caller corrects.
        """
        excluded_RM: Tensor | None = None
        if self.mask_identical and pool.repeats_texts:
            texts_M = pool.text_hashes_X[pool.side(block.candidates)]
            anchor_R1 = pool.text_hashes_X[pool.local(block.anchors, pairs), None]
            partner_R1 = pool.text_hashes_X[pool.local(_partner(block.anchors), pairs), None]
            excluded_RM = (texts_M == anchor_R1).logical_or_(texts_M == partner_R1)
            # The columns of the pairs come first. The hard negatives after them have no partner.
            partners_M = pool.text_hashes_X[pool.side(_partner(block.candidates))]
            excluded_RM[:, : pool.num_pairs].logical_or_(partners_M == anchor_R1)
        if self.false_negative_margin is not None:
            queries_RD = pool.embeddings_XD[pool.local("queries", pairs)]
            positives_RD = pool.embeddings_XD[pool.local("positives", pairs)]
            cosine_R1 = (queries_RD * positives_RD).sum(dim=1, keepdim=True)
            exceeds_RM = scores_RM > (cosine_R1 + self.false_negative_margin) * scale
            excluded_RM = exceeds_RM if excluded_RM is None else excluded_RM.logical_or_(exceeds_RM)
        return excluded_RM


@dataclass(frozen=True)
class _Pool:
    """The texts of all ranks: queries, then positives, then hard negatives, each in the order of the ranks."""

    embeddings_XD: Tensor
    text_hashes_X: Tensor
    repeats_texts: bool
    num_pairs: int  # number of pairs of all ranks
    num_local: int  # number of pairs of this rank
    first_pair: int  # number of this rank's first pair among the pairs of all ranks
    own: Tensor  # rows of this rank's texts

    def side(self, name: str) -> slice:
        """Return the rows of one side of the pairs of all ranks. The side ``documents`` includes hard negatives."""
        start = 0 if name == "queries" else self.num_pairs
        return slice(start, len(self.embeddings_XD) if name == "documents" else start + self.num_pairs)

    def local(self, name: str, pairs: range) -> slice:
        """Return the rows of one side for a range of this rank's pairs."""
        start = self.side(name).start + self.first_pair
        return slice(start + pairs.start, start + pairs.stop)


def _gather(embeddings_UD: Tensor, rows: PairRows, group: dist.ProcessGroup | None) -> _Pool:
    device = embeddings_UD.device
    rank = 0 if group is None else dist.get_rank(group)
    num_local, num_negatives = len(rows.queries_P), len(rows.negatives_N)
    assert num_local == len(rows.positives_P) > 0
    sizes = _all_gather(torch.tensor([num_local, num_negatives], device=device), group).tolist()
    assert all(pairs == num_local for pairs, _ in sizes), f"unequal numbers of pairs over ranks: {sizes}"
    counts = [negatives for _, negatives in sizes]
    longest = max(counts)

    def pooled(local: Tensor) -> Tensor:
        padding = local.new_zeros(longest - num_negatives, *local.shape[1:])
        gathered = _all_gather(torch.cat([local, padding]), group)
        queries, positives, negatives = torch.split(gathered, [num_local, num_local, longest], dim=1)
        unpadded = [part[:count] for part, count in zip(negatives, counts, strict=True)]
        return torch.cat([queries.flatten(0, 1), positives.flatten(0, 1), *unpadded])

    num_pairs = num_local * len(sizes)
    first_pair = num_local * rank
    own_P = torch.arange(first_pair, first_pair + num_local, device=device)
    own_N = torch.arange(num_negatives, device=device) + (2 * num_pairs + sum(counts[:rank]))
    text_hashes_X = pooled(rows.text_hashes_U[rows.stacked()])
    sorted_X = text_hashes_X.sort().values
    return _Pool(
        embeddings_XD=pooled(embeddings_UD[rows.stacked()]),
        text_hashes_X=text_hashes_X,
        repeats_texts=bool((sorted_X[1:] == sorted_X[:-1]).any()),
        num_pairs=num_pairs,
        num_local=num_local,
        first_pair=first_pair,
        own=torch.cat([own_P, own_P + num_pairs, own_N]),
    )


def _all_gather(local: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Return the tensors of all ranks, stacked along a new first axis. They must have equal shapes."""
    if group is None:
        return local[None]
    gathered = local.new_empty(dist.get_world_size(group), *local.shape)
    dist.all_gather(list(gathered.unbind()), local, group=group)
    return gathered


def _partner(side: str) -> str:
    """Return the side of the pair that is opposite to ``side``."""
    return "positives" if side == "queries" else "queries"
