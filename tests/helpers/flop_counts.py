"""What torch counts of a small model, for the tests of what embedlab counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, Mamba2Config, PretrainedConfig, PreTrainedModel, Qwen3NextConfig

from embedlab.errors import ConfigError
from embedlab.flops import FlopProfile
from embedlab.flops.observer import ADDED_FORMULAS
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
    """Forward and backward by torch's counter, which does not know fused attention on the CPU.

    It counts the backward pass of a convolution with groups as if it had none, so this formula is ours.
    """
    convolution_backward = torch.ops.aten.convolution_backward
    ours = {convolution_backward: ADDED_FORMULAS[convolution_backward]}
    with FlopCounterMode(display=False, custom_mapping=ours) as counter:
        run(model, length, num_texts).sum().backward()
    return counter.get_total_flops()


def block_scanner(family: str) -> PreTrainedModel:
    """A model that processes texts in blocks of 16 (Mamba-2) or 64 tokens (Qwen3-Next)."""
    torch.manual_seed(0)
    common = {"vocab_size": 128, "hidden_size": 32, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    linear = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    scan = {"state_size": 16, "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 16}
    config: PretrainedConfig
    if family == "mamba2":
        config = Mamba2Config(**common, **scan, num_hidden_layers=2, use_cache=False)
    else:
        config = Qwen3NextConfig(
            **{**common, **heads, **linear, **experts},
            num_hidden_layers=2,
            layer_types=["linear_attention", "full_attention"],
            intermediate_size=48,
            linear_value_head_dim=8,
            shared_expert_intermediate_size=24,
            experts_implementation="eager",
            use_cache=False,
        )
    model: PreTrainedModel = AutoModel.from_config(config, attn_implementation="eager")
    return model


def algorithmic(profile: FlopProfile, length: int = LENGTH, num_texts: int = 1) -> int:
    return profile.algorithmic(np.full(num_texts, length))


def checkpoint_activations(model: nn.Module) -> None:
    """As the backbone's option does it."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.gradient_checkpointing_enable({"use_reentrant": False})
            module.disable_input_require_grads()
