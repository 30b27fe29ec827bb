"""A text's way to its embedding: tokens through the prepared backbone, pooled, scaled to unit norm.

Axes in names: B texts of a chunk, L tokens, D dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from embedlab.gradcache.chunking import Chunk
from embedlab.method import decoder_blocks
from embedlab.model.pooling import PoolingMode, pool


class Encoder(nn.Module):
    """A backbone prepared by a fine-tuning method, and how its hidden states become one vector.

    Args:
        backbone: called with ``input_ids`` and ``attention_mask``, returns ``last_hidden_state``.
        pooling: how the hidden states of a text's tokens become one vector.
    """

    def __init__(self, backbone: nn.Module, pooling: PoolingMode) -> None:
        super().__init__()
        self.backbone = backbone
        self.pooling = pooling

    def forward(self, chunk: Chunk) -> Tensor:
        """Unit-norm embeddings (texts, dim) in the chunk's order, in float32 at least."""
        output = self.backbone(input_ids=chunk.input_ids_BL, attention_mask=chunk.attention_mask_BL)
        pooled_BD = pool(output.last_hidden_state, chunk.attention_mask_BL, self.pooling)
        return normalize(pooled_BD, dim=-1)

    def dimension(self) -> int:
        """Of an embedding: that of the last hidden states, which is not every decoder's hidden size."""
        with torch.no_grad():
            return self._encode_two_tokens().shape[1]

    def frozen_blocks(self) -> list[nn.Module]:
        """The leading decoder blocks through which no gradient flows back.

        Observed on a forward pass over two tokens, not guessed from parameter names: a block is among them if
        neither it nor anything before it trains.
        """
        blocks = list(decoder_blocks(self.backbone))
        needs_gradient: list[bool] = []

        def observe(_block: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            needs_gradient.append(hidden.requires_grad)

        handles = [block.register_forward_hook(observe) for block in blocks]
        try:
            with torch.enable_grad():
                self._encode_two_tokens()
        finally:
            for handle in handles:
                handle.remove()
        frozen = needs_gradient.index(True) if True in needs_gradient else len(blocks)
        return blocks[:frozen]

    def _encode_two_tokens(self) -> Tensor:
        device = next(self.backbone.parameters()).device
        tokens_BL = torch.zeros(1, 2, dtype=torch.int64, device=device)
        with torch.random.fork_rng(devices=[]):
            embeddings_BD: Tensor = self(
                Chunk(tokens_BL, torch.ones_like(tokens_BL), torch.zeros(1, dtype=torch.int64))
            )
        return embeddings_BD
