"""What stands in on the meta device for operators that it lacks."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class GroupedProducts(TorchFunctionMode):
    """Within it, a grouped product (tokens, each with its own expert's matrix) needs not be in bfloat16.

    Which expert a token goes to is not known on the meta device, nor does it matter there: all experts' matrices have
    one shape, so a product with the first of them stands for the product with any.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replaces the one operator."""
        if func is torch._grouped_mm:
            tokens_TD, experts_EDF = args[:2]
            return tokens_TD @ experts_EDF[0]
        return func(*args, **(kwargs or {}))
