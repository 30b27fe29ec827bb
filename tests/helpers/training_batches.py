"""Training batches of a small store, and whether two batches are the same."""

from __future__ import annotations

import numpy as np
import torch

from embedlab.data.collate import PairBatch, TrainingBatches
from embedlab.data.sampler import BatchPlan
from embedlab.data.tokenized import TokenizedPairs


def batches_of(store: TokenizedPairs, *, rank: int = 0, world_size: int = 1, max_tokens: int = 100) -> TrainingBatches:
    plan = BatchPlan([store], [np.arange(len(store))], batch_size=8, seed=0)
    return TrainingBatches(
        plan,
        [store],
        rank=rank,
        world_size=world_size,
        max_tokens_per_chunk=max_tokens,
        max_padding=0.05,
        pad_token_id=0,
    )


def assert_same(left: PairBatch, right: PairBatch) -> None:
    assert (left.step, left.pair_rows, left.num_tokens) == (right.step, right.pair_rows, right.num_tokens)
    assert torch.equal(left.rows.stacked(), right.rows.stacked())
    assert torch.equal(left.rows.text_hashes_U, right.rows.text_hashes_U)
    for one, other in zip(left.chunks, right.chunks, strict=True):
        assert torch.equal(one.input_ids_BL, other.input_ids_BL)
        assert torch.equal(one.attention_mask_BL, other.attention_mask_BL)
        assert torch.equal(one.rows_B, other.rows_B)
