"""Small batches and prepared encoders, for the tests of what happens to a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from embedlab.gradcache.chunking import Chunk, cut_chunks, pad_chunk
from embedlab.gradcache.engine import GradCache
from embedlab.losses import PairRows
from embedlab.method import FineTuningMethod, prepare_backbone
from embedlab.method.registry import discover
from embedlab.model.encoder import Encoder
from embedlab.testing.backbones import tiny_backbone

METHODS = sorted(discover())


def make_encoder(family: str, method: str, *, dtype: torch.dtype = torch.float64, **overrides: object) -> Encoder:
    torch.manual_seed(0)
    entry = discover()[method]
    assert entry.cls is not None
    instance: FineTuningMethod = entry.cls()
    backbone = tiny_backbone(family, **overrides)
    if method == "BiasTuning" and not any("bias" in name for name, _ in backbone.named_parameters()):
        pytest.skip("no biases in this family")
    encoder = Encoder(prepare_backbone(instance, backbone), "mean").to(dtype)
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:  # fresh adapters have no gradient in A
            nn.init.normal_(parameter, std=0.1)
    return encoder.train()


def make_texts(num_texts: int = 13) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(3, 100, size=length) for length in generator.integers(1, 20, size=num_texts)]


def chunks_of(texts: list[np.ndarray], max_tokens: int, max_padding: float = 0.05) -> list[Chunk]:
    lengths = np.array([len(text) for text in texts])
    return [
        pad_chunk([texts[row] for row in rows], rows, pad_token_id=0)
        for rows in cut_chunks(lengths, max_tokens=max_tokens, max_padding=max_padding)
    ]


def make_engine(encoder: Encoder, policy: str) -> GradCache:
    frozen = encoder.frozen_blocks()
    parameters = list(encoder.parameters())
    if policy == "partly":
        # The first chunk's graph is kept whatever the memory; no other fits into this.
        return GradCache(encoder, parameters, frozen_blocks=frozen, memory_bytes=1)
    return GradCache(encoder, parameters, recompute=policy, frozen_blocks=frozen)  # type: ignore[arg-type]


def pair_rows(num_texts: int) -> PairRows:
    """Five pairs of different texts, all other texts being hard negatives."""
    texts_U = torch.arange(num_texts)
    return PairRows(texts_U[:5], texts_U[5:10], texts_U[10:], texts_U)
