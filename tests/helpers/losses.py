"""All losses, small batches for them, and how far gradients differ."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from embedlab import losses
from embedlab.losses import ContrastiveLoss, PairRows


def concrete(base: type[ContrastiveLoss]) -> Iterator[type[ContrastiveLoss]]:
    for cls in base.__subclasses__():
        if not inspect.isabstract(cls):
            yield cls
        yield from concrete(cls)


LOSSES = [cls for cls in concrete(ContrastiveLoss) if cls.__module__.startswith(losses.__name__)]
each_loss = pytest.mark.parametrize("cls", LOSSES, ids=lambda cls: cls.__name__)


def make_embeddings(num_texts: int, dim: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(num_texts, dim, dtype=torch.float64, generator=generator), dim=-1)


def make_batch(num_pairs: int, num_negatives: int = 0, *, dim: int = 8, seed: int = 0) -> tuple[Tensor, PairRows]:
    """A batch whose texts are all different."""
    num_texts = 2 * num_pairs + num_negatives
    queries, positives, negatives = torch.arange(num_texts).split([num_pairs, num_pairs, num_negatives])
    rows = PairRows(queries, positives, negatives, torch.arange(num_texts) + 10**15)
    return make_embeddings(num_texts, dim, seed), rows


def relative_error(received: Tensor, expected: Tensor) -> float:
    """Relative to a norm of 0.01 at least: where nothing is left to contrast with, all is rounding."""
    return float((received - expected).norm() / expected.norm().clamp(min=0.01))
