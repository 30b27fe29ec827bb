"""Estimates the minimum memory that training takes, from shapes alone, before any weight is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain, count
from typing import Any, Literal

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.func import functional_call
from transformers import PreTrainedModel

from embedlab.errors import ConfigError
from embedlab.gradcache.engine import GraphBytes
from embedlab.method import decoder_blocks
from embedlab.model.backbone import checkpoint_gradients, max_positions

# For each trainer.precision, the type that all weights are converted to, and the type of autocast (None: no change).
_PRECISIONS: dict[str, tuple[torch.dtype | None, torch.dtype | None]] = {
    **dict.fromkeys(("32-true", "32"), (None, None)),
    **dict.fromkeys(("bf16-mixed", "bf16"), (None, torch.bfloat16)),
    "bf16-true": (torch.bfloat16, None),
    "16-true": (torch.float16, None),
    **dict.fromkeys(("64-true", "64"), (torch.float64, None)),
}


class MemoryEstimate:
    """Estimate of the minimum peak memory of training, in bytes.

    The estimate adds up the weights, their gradients, AdamW's two moments, and twice the autograd graph of one full
    chunk, because a backward pass needs about as much memory as the graph. It leaves out the loss, the memory that the
    allocator wastes, and the graphs of further chunks, which are kept only while memory lasts.

    Args:
        model: Model that the method made of the backbone, on the meta device. Its weights are converted in place to
            the type that ``precision`` demands.
        backbone: Backbone inside ``model``, which provides the configuration and the decoder blocks.
        max_length: Maximum number of tokens per text.
        tokens_per_chunk: Maximum number of tokens per forward pass, padding included.
        precision: Numerical precision, written as in Lightning's ``Trainer(precision=…)``.
        optimizer_states: Precision of AdamW's moments. ``32bit`` means the type of the weights, ``8bit`` one byte per
            value.
        gradient_checkpointing: Whether only the inputs of the blocks are kept, and the graph of one block at a time.
        keeps_scores: Whether attention keeps its score matrices for the backward pass. Fused kernels do not.

    Raises:
        ConfigError: If the precision is unknown.
    """

    def __init__(
        self,
        model: nn.Module,
        backbone: PreTrainedModel,
        *,
        max_length: int,
        tokens_per_chunk: int,
        precision: str = "32-true",
        optimizer_states: Literal["32bit", "8bit"] = "32bit",
        gradient_checkpointing: bool = False,
        keeps_scores: bool = False,
    ) -> None:
        if precision not in _PRECISIONS:
            raise ConfigError(f"trainer.precision is '{precision}'. Expected one of {', '.join(_PRECISIONS)}.")
        dtype, self._autocast = _PRECISIONS[precision]
        self._model = model.to(dtype)
        self._backbone = backbone
        self._max_length = max_length
        self._length = max_length if keeps_scores else _unmistakable(max_length, backbone)
        self._texts = max(1.0, tokens_per_chunk / self._length)
        self._optimizer_states = optimizer_states
        self._gradient_checkpointing = gradient_checkpointing
        self._keeps_scores = keeps_scores
        self._watched: GraphBytes | None = None

    def watching(self) -> AbstractContextManager[Any]:
        """Return a context manager for a forward pass of the caller over one text of ``max_length`` tokens.

        The estimate then uses the autograd graph of this forward pass in place of one of its own. If the estimate is
        for texts of another length, or for mixed precision, the context manager does nothing.
        """
        if self._length != self._max_length or self._autocast is not None:
            return nullcontext()
        self._watched = self._graph(list(self._model.parameters()))
        return self._watched

    def bytes(self) -> int:
        """Return the estimated minimum peak memory, in bytes."""
        weights = sum(p.numel() * p.element_size() for p in self._model.parameters())
        trained = [p for p in self._model.parameters() if p.requires_grad]
        gradients = sum(p.numel() * p.element_size() for p in trained)
        moments = 2 * gradients if self._optimizer_states == "32bit" else 2 * sum(p.numel() for p in trained)
        graph = self._texts * self._watched.bytes if self._watched is not None else self._of_chunk()
        if self._gradient_checkpointing:
            one_block = graph / len(decoder_blocks(self._backbone))
            checkpoint_gradients(self._backbone)
            graph = one_block + self._of_chunk()
        return weights + gradients + moments + round(2 * graph)

    def _of_chunk(self) -> float:
        if self._autocast is None:
            tokens_BL = torch.zeros(1, self._length, dtype=torch.int64, device="meta")
            one = self._graph(list(self._model.parameters()))
            with one:
                self._model(input_ids=tokens_BL, attention_mask=torch.ones_like(tokens_BL))
            return self._texts * one.bytes
        # The low-precision copies of weights exist once, whatever the number of texts, so the slope between two and
        # three texts is the cost of one more text. One text would not do: with it, attention keeps views.
        two, three = self._with_autocast(2, self._autocast), self._with_autocast(3, self._autocast)
        return two + (self._texts - 2) * (three - two)

    def _with_autocast(self, num_texts: int, dtype: torch.dtype) -> int:
        # Autocast ignores tensors on the meta device. Fake tensors have no memory either, but report the CPU as device.
        mode, device = FakeTensorMode(), torch.device("cpu")
        weights: dict[str, Any] = {}
        for name, tensor in chain(self._model.named_parameters(), self._model.named_buffers()):
            weights[name] = FakeTensor(mode, tensor.detach(), device).requires_grad_(tensor.requires_grad)
        graph = self._graph(list(weights.values()))
        with device, mode, torch.autocast("cpu", dtype):
            ids_BL = torch.zeros(num_texts, self._length, dtype=torch.int64)
            with graph:
                inputs = {"input_ids": ids_BL, "attention_mask": torch.ones_like(ids_BL)}
                functional_call(self._model, weights, (), inputs)
        return graph.bytes

    def _graph(self, parameters: Sequence[nn.Parameter]) -> GraphBytes:
        scores = (self._length, self._length)
        return GraphBytes(parameters, lambda t: self._keeps_scores or t.ndim < 3 or t.shape[-2:] != scores)


def _unmistakable(max_length: int, backbone: PreTrainedModel) -> int:
    """Return a length near ``max_length`` that is no other size of the model, so that shapes tell score matrices."""
    config = backbone.config.get_text_config()
    sizes = {size for parameter in backbone.parameters() for size in parameter.shape}
    sizes |= {value for value in config.to_dict().values() if isinstance(value, int)}
    heads = getattr(config, "num_attention_heads", None)  # a state-space model has none
    if heads:
        sizes.add(config.hidden_size // heads)
    positions = max_positions(config)
    longer = count(max_length) if positions is None else range(max_length, positions + 1)
    return next((n for n in chain(longer, range(max_length - 1, 0, -1)) if n not in sizes), max_length)
