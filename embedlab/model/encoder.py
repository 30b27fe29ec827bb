"""Turns the tokens of a text into its embedding: runs the prepared backbone, pools, and scales to unit norm.

Names end in their axes: B texts of a chunk, L tokens, D dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from embedlab.gradcache.chunking import Chunk
from embedlab.method import decoder_blocks
from embedlab.model.pooling import PoolingMode, pool


class Encoder(nn.Module):
    """A backbone that a fine-tuning method has prepared, together with the pooling of its hidden states.

    Args:
        backbone: Model that is called with ``input_ids`` and ``attention_mask`` and returns ``last_hidden_state``.
        pooling: How the hidden states of all tokens of a text become one vector.
    """

    def __init__(self, backbone: nn.Module, pooling: PoolingMode) -> None:
        super().__init__()
        self.backbone = backbone
        self.pooling = pooling

    def forward(self, chunk: Chunk) -> Tensor:
        """Return the unit-norm embeddings of a chunk, in float32 or higher precision.

        Args:
            chunk: Texts to encode.

        Returns:
            Embeddings of shape (texts, dimensions), in the order of the chunk.
        """
        output = self.backbone(input_ids=chunk.input_ids_BL, attention_mask=chunk.attention_mask_BL)
        pooled_BD = pool(output.last_hidden_state, chunk.attention_mask_BL, self.pooling)
        return normalize(pooled_BD, dim=-1)

    def dimension(self) -> int:
        """Return the dimension of the embeddings, measured by encoding two tokens.

        The dimension is not read from the configuration, because the last hidden states of some decoders do not have
        the stated hidden size.
        """
        with torch.no_grad():
            return self._encode_two_tokens().shape[1]

    def frozen_blocks(self) -> list[nn.Module]:
        """Return the leading decoder blocks through which no gradient flows back.

        The blocks are found with a forward pass over two tokens, not guessed from parameter names. A block is frozen if
        neither the block nor anything before it is trained.
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
