"""Replaces operators that the meta device lacks, so that models can run there without weights."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class GroupedProducts(TorchFunctionMode):
    """Context manager in which grouped matrix products run on the meta device in every type, not only in bfloat16.

    A grouped product multiplies each token with the matrix of its own expert. The meta device does not know which
    expert a token goes to, but all experts' matrices have the same shape. The product with the first expert's matrix
    therefore stands for the product with any expert's matrix.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace ``torch._grouped_mm`` and run every other function unchanged."""
        if func is torch._grouped_mm:
            tokens_TD, experts_EDF = args[:2]
            return tokens_TD @ experts_EDF[0]
        return func(*args, **(kwargs or {}))
