"""How much memory training takes at least, from shapes alone."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, count
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.func import functional_call
from transformers import PreTrainedModel

from embedlab.backbone import checkpoint_gradients, max_positions
from embedlab.errors import ConfigError
from embedlab.method import decoder_blocks
from embedlab.replay import GraphBytes

# By trainer.precision: the type that all weights are converted to, and the type of autocast.
_PRECISIONS: dict[str, tuple[torch.dtype | None, torch.dtype | None]] = {
    **dict.fromkeys(("32-true", "32"), (None, None)),
    **dict.fromkeys(("bf16-mixed", "bf16"), (None, torch.bfloat16)),
    "bf16-true": (torch.bfloat16, None),
    "16-true": (torch.float16, None),
    **dict.fromkeys(("64-true", "64"), (torch.float64, None)),
}


def training_memory(
    model: nn.Module,
    backbone: PreTrainedModel,
    *,
    max_length: int,
    tokens_per_chunk: int,
    precision: str = "32-true",
    optimizer_states: Literal["32bit", "8bit"] = "32bit",
    gradient_checkpointing: bool = False,
    keeps_scores: bool = False,
) -> int:
    """Bytes of the weights, their gradients, AdamW's two moments, and twice the graph of one full chunk.

    Twice, since a backward pass needs about as much again. Left out are the loss, graphs of further chunks, which are
    kept only while memory lasts, and what an allocator wastes.

    Args:
        model: what the method made of the backbone, on the meta device; its weights' type is changed as the precision
            demands.
        backbone: that the method prepared.
        max_length: tokens of a text, at most.
        tokens_per_chunk: padded tokens a forward pass, at most.
        precision: as for Lightning's trainer.
        optimizer_states: bits of the moments; 32 stands for the type of the weight.
        gradient_checkpointing: whether only the blocks' inputs are kept, and one block's graph at a time.
        keeps_scores: whether attention keeps its matrices of scores, as fused kernels do not.

    Raises:
        ConfigError: if there is no such precision.
    """
    if precision not in _PRECISIONS:
        raise ConfigError(f"trainer.precision is '{precision}'. Expected one of {', '.join(_PRECISIONS)}.")
    dtype, autocast = _PRECISIONS[precision]
    model.to(dtype)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = sum(p.numel() * p.element_size() for p in trained)
    moments = 2 * gradients if optimizer_states == "32bit" else 2 * sum(p.numel() for p in trained)

    length = max_length if keeps_scores else _unmistakable(max_length, backbone)

    def counts(tensor: Tensor) -> bool:
        return keeps_scores or tensor.ndim < 3 or tensor.shape[-2:] != (length, length)

    texts = max(1.0, tokens_per_chunk / length)
    graph = _graph_bytes(model, texts, length, autocast, counts)
    if gradient_checkpointing:
        one_block = graph / len(decoder_blocks(backbone))
        checkpoint_gradients(backbone)
        graph = one_block + _graph_bytes(model, texts, length, autocast, counts)
    return weights + gradients + moments + round(2 * graph)


def _graph_bytes(
    model: nn.Module, texts: float, length: int, autocast: torch.dtype | None, counts: Callable[[Tensor], bool]
) -> float:
    # Of one text alone attention keeps views where it keeps copies of several.
    if autocast is None:
        tokens_BL = torch.zeros(2, length, dtype=torch.int64, device="meta")
        two_texts = GraphBytes(list(model.parameters()), counts)
        with two_texts:
            model(input_ids=tokens_BL, attention_mask=torch.ones_like(tokens_BL))
        return texts / 2 * two_texts.bytes
    two, three = (_graph_bytes_with_autocast(model, number, length, autocast, counts) for number in (2, 3))
    return two + (texts - 2) * (three - two)  # the low-precision copies of weights are there once


def _graph_bytes_with_autocast(
    model: nn.Module, num_texts: int, length: int, dtype: torch.dtype, counts: Callable[[Tensor], bool]
) -> int:
    # Autocast leaves tensors of the meta device as they are; these say they were on the CPU.
    mode, device = FakeTensorMode(), torch.device("cpu")
    weights: dict[str, Any] = {}
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        weights[name] = FakeTensor(mode, tensor.detach(), device).requires_grad_(tensor.requires_grad)
    graph = GraphBytes(list(weights.values()), counts)
    with device, mode, torch.autocast("cpu", dtype):
        tokens_BL = torch.zeros(num_texts, length, dtype=torch.int64)
        with graph:
            functional_call(model, weights, (), {"input_ids": tokens_BL, "attention_mask": torch.ones_like(tokens_BL)})
    return graph.bytes


def _unmistakable(max_length: int, backbone: PreTrainedModel) -> int:
    """A length near ``max_length`` that is no size of anything else, so that scores are known by their shape."""
    config = backbone.config.get_text_config()
    sizes = {size for parameter in backbone.parameters() for size in parameter.shape}
    numbers = {value for value in config.to_dict().values() if isinstance(value, int) and value > 0}
    sizes |= numbers | {config.hidden_size // number for number in numbers}  # a head's, whatever its number's name
    positions = max_positions(config)
    longer = count(max_length) if positions is None else range(max_length, positions + 1)
    return next((n for n in chain(longer, range(max_length - 1, 0, -1)) if n not in sizes), max_length)
