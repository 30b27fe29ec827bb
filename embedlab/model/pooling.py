"""From one vector a token to one vector a text, the same whatever the text was padded to.

Axes in names: B texts, L tokens, D dimensions.
"""

from __future__ import annotations

from typing import Literal, assert_never

import torch
from torch import Tensor

PoolingMode = Literal["mean", "last_token", "weighted_mean"]


def pool(hidden_BLD: Tensor, attention_mask_BL: Tensor, mode: PoolingMode) -> Tensor:
    """Pools hidden states into one vector a text, in float32 at least.

    - ``mean``: the average over the text's tokens. Padding counts neither above nor below the line.
    - ``last_token``: the last token that is not padding; in a causal decoder it alone has seen all others.
    - ``weighted_mean``: token i of the text weighs i, counted from 1 (Muennighoff 2022, arXiv:2202.08904).

    Args:
        hidden_BLD: hidden states (batch, length, dim).
        attention_mask_BL: 1 for tokens, 0 for padding on either side.
        mode: which.

    Returns:
        Pooled vectors (batch, dim).

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
