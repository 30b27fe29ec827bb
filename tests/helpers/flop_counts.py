"""What torch counts of a small model, for the tests of what embedlab counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from embedlab.errors import ConfigError
from embedlab.flops import FlopProfile
from embedlab.method import prepare_backbone
from embedlab.method.registry import method_class
from embedlab.testing import tiny_backbone

LENGTH = 13  # at which nothing is observed


def prepared(family: str, method: str, **overrides: Any) -> tuple[nn.Module, list[nn.Parameter]]:
    backbone = tiny_backbone(family, **overrides)
    parameters = list(backbone.parameters())
    try:
        return prepare_backbone(method_class(method)(), backbone).train(), parameters
    except ConfigError:
        pytest.skip("no biases in this family")


def run(model: nn.Module, length: int, num_texts: int = 1) -> Tensor:
    device = next(model.parameters()).device
    tokens_BL = torch.zeros(num_texts, length, dtype=torch.int64, device=device)
    hidden_BLD: Tensor = model(input_ids=tokens_BL, attention_mask=torch.ones_like(tokens_BL)).last_hidden_state
    return hidden_BLD


def counted(model: nn.Module, length: int = LENGTH, num_texts: int = 1) -> int:
    """Forward and backward by torch's counter, as it comes: it does not know fused attention on the CPU."""
    with FlopCounterMode(display=False) as counter:
        run(model, length, num_texts).sum().backward()
    flops = counter.get_flop_counts()["Global"]
    if torch.ops.aten.convolution in flops:
        # Of a convolution with groups, torch counts the backward pass as if it had none.
        flops[torch.ops.aten.convolution_backward] = 2 * flops[torch.ops.aten.convolution]
    return sum(flops.values())


def algorithmic(profile: FlopProfile, length: int = LENGTH, num_texts: int = 1) -> int:
    return profile.algorithmic(np.full(num_texts, length))


def checkpoint_activations(model: nn.Module) -> None:
    """As the backbone's option does it."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.gradient_checkpointing_enable({"use_reentrant": False})
            module.disable_input_require_grads()
