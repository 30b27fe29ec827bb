"""A text's embedding does not depend on its padding, on whichever side that stands."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch.nn.functional import pad

from embedlab.gradcache.chunking import Chunk
from embedlab.method.registry import discover, method_class
from embedlab.model.encoder import Encoder
from embedlab.model.pooling import PoolingMode
from embedlab.testing import FAMILIES, tiny_backbone

# GPT-2 numbers positions from the start of the row, padding included: transformers computes it so. embedlab pads on
# the right, where every family's positions are right.
LEFT_PADDED = [family for family in FAMILIES if family != "gpt2"]
TOKENS_1L = torch.tensor([[5, 17, 9, 33, 6, 11, 40, 8, 21, 7, 30]])


def embedding(encoder: Encoder, *, left: int, right: int) -> torch.Tensor:
    """Of the text alone, with this much padding beside it, as the second of two texts."""
    mask_1L = torch.ones_like(TOKENS_1L)
    width = TOKENS_1L.shape[1] + left + right
    input_ids_BL = torch.cat([torch.full((1, width), 12), pad(TOKENS_1L, (left, right))])
    attention_mask_BL = torch.cat([torch.ones(1, width, dtype=torch.int64), pad(mask_1L, (left, right))])
    with torch.no_grad():
        embeddings: torch.Tensor = encoder(Chunk(input_ids_BL, attention_mask_BL, torch.arange(2)))
    return embeddings[1]


@pytest.mark.parametrize("method", sorted(discover()))
@pytest.mark.parametrize("family", FAMILIES)
def test_an_embedding_does_not_depend_on_padding(family: str, method: str) -> None:
    backbone = tiny_backbone(family)
    if method == "BiasTuning" and not any("bias" in name for name, _ in backbone.named_parameters()):
        pytest.skip("no biases in this family")
    prepared = method_class(method)().prepare(backbone)
    for pooling in get_args(PoolingMode):
        encoder = Encoder(prepared, pooling).eval()
        alone = embedding(encoder, left=0, right=0)
        torch.testing.assert_close(embedding(encoder, left=0, right=7), alone, rtol=0, atol=1e-5)
        if family in LEFT_PADDED:
            torch.testing.assert_close(embedding(encoder, left=7, right=0), alone, rtol=0, atol=1e-5)
