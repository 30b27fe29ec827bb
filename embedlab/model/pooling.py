"""Pools the vectors of all tokens of a text into one vector, which does not depend on the padding of the text.

Names end in their axes: B texts, L tokens, D dimensions.
"""

from __future__ import annotations

from typing import Literal, assert_never

import torch
from torch import Tensor

PoolingMode = Literal["mean", "last_token", "weighted_mean"]


def pool(hidden_BLD: Tensor, attention_mask_BL: Tensor, mode: PoolingMode) -> Tensor:
    """Pool the hidden states of the tokens into one vector per text, computed in float32 or higher precision.

    - ``mean``: Average over the tokens of the text, without padding.
    - ``last_token``: Hidden state of the last token that is not padding. In a causal decoder only this token has
      attended to all other tokens.
    - ``weighted_mean``: Weighted average in which the i-th token of the text has the weight i, counted from 1
      (Muennighoff 2022, arXiv:2202.08904).

    Args:
        hidden_BLD: Hidden states of shape (texts, tokens, dimensions).
        attention_mask_BL: 1 for tokens and 0 for padding, on either side of the text.
        mode: Pooling mode: ``mean``, ``last_token`` or ``weighted_mean``.

    Returns:
        Pooled vectors of shape (texts, dimensions).

    >>> hidden = torch.tensor([[[1.0], [3.0], [9.0]]])
    >>> pool(hidden, torch.tensor([[1, 1, 0]]), "mean").item()
    2.0
    >>> pool(hidden, torch.tensor([[1, 1, 0]]), "last_token").item()
    3.0
    """
    hidden_BLD = hidden_BLD.to(torch.promote_types(hidden_BLD.dtype, torch.float32))
    if mode == "last_token":
        length = attention_mask_BL.shape[1]
        last_B = length - 1 - attention_mask_BL.flip(1).argmax(dim=1)
        return hidden_BLD[torch.arange(len(hidden_BLD), device=hidden_BLD.device), last_B]
    if mode == "mean":
        weight_BL = attention_mask_BL.to(hidden_BLD.dtype)
    elif mode == "weighted_mean":
        weight_BL = (attention_mask_BL.cumsum(dim=1) * attention_mask_BL).to(hidden_BLD.dtype)
    else:
        assert_never(mode)
    return torch.einsum("bld,bl->bd", hidden_BLD, weight_BL) / weight_BL.sum(dim=1, keepdim=True)
