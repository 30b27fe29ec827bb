"""Pooling is the same whatever a text was padded to."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from embedlab.model.pooling import PoolingMode, pool

MODES = get_args(PoolingMode)


@pytest.mark.parametrize("mode", MODES)
@given(length=st.integers(1, 9), left=st.integers(0, 4), right=st.integers(0, 4), seed=st.integers(0, 99))
def test_pooling_does_not_depend_on_padding(mode: PoolingMode, length: int, left: int, right: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(1, length, 5, generator=generator, dtype=torch.float64)
    alone = pool(hidden, torch.ones(1, length, dtype=torch.int64), mode)
    junk = 1e3 * torch.randn(1, left + right, 5, generator=generator, dtype=torch.float64)
    padded = torch.cat([junk[:, :left], hidden, junk[:, left:]], dim=1)
    mask = torch.tensor([[0] * left + [1] * length + [0] * right])
    torch.testing.assert_close(pool(padded, mask, mode), alone, rtol=1e-12, atol=1e-12)


def test_mean_pooling_averages_tokens_and_not_padding() -> None:
    hidden = torch.tensor([[[2.0], [4.0], [100.0]]])
    assert pool(hidden, torch.tensor([[1, 1, 0]]), "mean").item() == 3.0


def test_weighted_mean_weighs_tokens_by_their_position() -> None:
    hidden = torch.tensor([[[1.0], [2.0], [3.0]]])
    expected = (1 * 1 + 2 * 2 + 3 * 3) / 6
    assert pool(hidden, torch.tensor([[1, 1, 1]]), "weighted_mean").item() == pytest.approx(expected)


@pytest.mark.parametrize("mode", MODES)
def test_half_precision_is_pooled_in_float32(mode: PoolingMode) -> None:
    hidden = torch.full((1, 4096, 1), 1.0, dtype=torch.bfloat16)
    pooled = pool(hidden, torch.ones(1, 4096, dtype=torch.int64), mode)
    assert pooled.dtype == torch.float32
    assert pooled.item() == pytest.approx(1.0)
