"""Measures the FLOPs that the hardware executes for a chunk, recomputation included, by running chunks.

Executed FLOPs depend on how a model is run, so they are counted while the model runs, at a few shapes. For example,
attention kernels recompute scores in the backward pass, gradient checkpointing recomputes blocks, and the second
forward pass of GradCache skips frozen blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, cached_property, partial

import torch
from torch import Tensor, nn

from embedlab.flops import FlopsByLength
from embedlab.flops.lengths import costs_by_length, fitted
from embedlab.flops.observer import ProductCounter
from embedlab.flops.profile import SHORT_LENGTHS, visible_attention
from embedlab.gradcache.chunking import Chunk
from embedlab.gradcache.engine import EncodedBatch, GradCache, Recompute


class ExecutedFlops:
    """FLOPs of chunks as this process runs them: with its device, precision, attention and gradient checkpointing.

    The cost is measured on first use. The measurement changes neither gradients nor the state of random generators.

    Args:
        encoder: Module in training mode that maps a chunk to embeddings.
        frozen_blocks: Leading blocks through which no gradient flows.
        max_length: Number of tokens of the longest text. The fitted cost is verified at this length.
    """

    def __init__(self, encoder: nn.Module, frozen_blocks: Sequence[nn.Module], *, max_length: int) -> None:
        self._encoder = encoder
        self._frozen_blocks = frozen_blocks
        self._max_length = max_length

    @cached_property
    def kept(self) -> FlopsByLength:
        """FLOPs of the forward and backward pass of a chunk whose autograd graph is kept."""
        return self._measure("never")

    @cached_property
    def recomputed(self) -> FlopsByLength:
        """FLOPs of the two forward passes and the backward pass of a chunk that is encoded twice."""
        return self._measure("always")

    def of(self, batch: EncodedBatch) -> int:
        """Return the FLOPs of encoding and back-propagating a batch.

        Call this before the batch is back-propagated, because back-propagation empties ``batch.chunks``, the list of
        the parts that are encoded one after another.
        """
        return sum(
            (self.kept if has_graph else self.recomputed).of_chunk(num_texts, length)
            for num_texts, length, has_graph in batch.shapes()
        )

    def _measure(self, policy: Recompute) -> FlopsByLength:
        parameters = list(self._encoder.parameters())
        engine = GradCache(self._encoder, parameters, recompute=policy, frozen_blocks=self._frozen_blocks)
        with visible_attention(self._encoder):
            return _cost(partial(_count, engine, parameters), self._max_length)


def _cost(count: Callable[[int, int], int], max_length: int) -> FlopsByLength:
    """Fit the cost of a chunk as a function of the number of texts and their length.

    Args:
        count: Function that runs a chunk with a number of texts and a length in tokens, and returns its FLOPs.
        max_length: Number of tokens of the longest text.
    """
    max_length = max(max_length, 1 + SHORT_LENGTHS[-1])  # the check needs a length that the fit does not use
    count = cache(count)
    first, second, third = SHORT_LENGTHS
    flops = {length: count(1, length) for length in (first, third)}
    at_longest, of_two = count(1, max_length), count(2, first)
    # Two more points confirm the usual form, B (alpha L + beta L^2), a polynomial in L without a constant.
    _, linear, square = fitted({0: 0, **flops})
    cost = FlopsByLength(per_token=linear, per_squared_token=square)
    if cost.of_chunk(1, max_length) == at_longest and cost.of_chunk(2, first) == of_two:
        return cost
    constant, linear, square = fitted({**flops, second: count(1, second)})
    per_call = 2 * flops[first] - of_two
    cost = FlopsByLength(per_token=linear, per_squared_token=square, per_text=constant - per_call, per_call=per_call)
    if abs(cost.of_chunk(1, max_length) - at_longest) <= 0.001 * at_longest:
        return cost
    costs = costs_by_length(lambda length: count(1, length), max_length)
    return FlopsByLength(
        measured=tuple((length, total - per_call) for length, total in costs.items()), per_call=per_call
    )


def _count(engine: GradCache, parameters: Sequence[nn.Parameter], num_texts: int, length: int) -> int:
    tokens_BL = torch.zeros(num_texts, length, dtype=torch.int64, device=parameters[0].device)
    chunk = Chunk(tokens_BL, torch.ones_like(tokens_BL), torch.arange(num_texts, device=tokens_BL.device))
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    devices = [tokens_BL.device] if tokens_BL.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), ProductCounter() as counter:
        encoded = engine.encode([chunk])
        gradient_UD: Tensor = torch.ones_like(encoded.embeddings_UD)
        for surrogate in engine.surrogates(encoded, gradient_UD):
            torch.autograd.grad(surrogate, trained, allow_unused=True)  # writes no .grad and runs no hooks of DDP
    return int(counter.flops)
