"""What the hardware does for a chunk, measured by running chunks: recomputation and all.

Attention kernels compute scores again in their backward pass, checkpoints compute blocks again, replays skip frozen
blocks: what is executed depends on how a model is run, so it is counted while it runs, at a few shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from embedlab.flops import FlopsByLength
from embedlab.flops.observer import ProductCounter
from embedlab.flops.profile import SHORT_LENGTHS, fitted, lengths_between, visible_attention
from embedlab.gradcache.chunking import Chunk
from embedlab.gradcache.engine import EncodedBatch, GradCache, Recompute


class ExecutedFlops:
    """The cost of chunks as a model runs them, here and now: device, precision, attention, checkpointing.

    Measured when it is first asked for, which leaves gradients and random numbers as they are.

    Args:
        encoder: chunk to embeddings, in training mode.
        frozen_blocks: leading blocks through which no gradient flows.
        max_length: tokens of the longest text; the cost is checked there.
    """

    def __init__(self, encoder: nn.Module, frozen_blocks: Sequence[nn.Module], *, max_length: int) -> None:
        self._encoder = encoder
        self._frozen_blocks = frozen_blocks
        self._max_length = max_length

    @cached_property
    def kept(self) -> FlopsByLength:
        """Forward and backward of a chunk whose graph is kept."""
        return self._measure("never")

    @cached_property
    def recomputed(self) -> FlopsByLength:
        """The same of a chunk that is encoded twice."""
        return self._measure("always")

    def of(self, batch: EncodedBatch) -> int:
        """FLOPs of encoding and back-propagating a batch; ask before its graphs are used up."""
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
    """As a function of the number of texts and their length, from ``count`` at a few of those."""
    max_length = max(max_length, 1 + SHORT_LENGTHS[-1])  # not one of those
    first, second, third = SHORT_LENGTHS
    flops = {length: count(1, length) for length in (first, third)}
    at_longest, of_two = count(1, max_length), count(2, first)
    # Two points that prove the usual form, B (alpha L + beta L^2): a polynomial without a constant.
    _, linear, square = fitted({0: 0, **flops})
    cost = FlopsByLength(per_token=linear, per_squared_token=square)
    if cost.of_chunk(1, max_length) == at_longest and cost.of_chunk(2, first) == of_two:
        return cost
    constant, linear, square = fitted({**flops, second: count(1, second)})
    per_text = of_two - flops[first] - linear * first - square * first**2
    cost = FlopsByLength(per_token=linear, per_squared_token=square, per_text=per_text, per_call=constant - per_text)
    if abs(cost.of_chunk(1, max_length) - at_longest) <= 0.001 * at_longest:
        return cost
    return FlopsByLength(measured=tuple((length, count(1, length)) for length in lengths_between(max_length)))


def _count(engine: GradCache, parameters: Sequence[nn.Parameter], num_texts: int, length: int) -> int:
    tokens_BL = torch.zeros(num_texts, length, dtype=torch.int64, device=parameters[0].device)
    chunk = Chunk(tokens_BL, torch.ones_like(tokens_BL), torch.arange(num_texts, device=tokens_BL.device))
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    devices = [tokens_BL.device] if tokens_BL.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), ProductCounter() as counter:
        encoded = engine.encode([chunk])
        gradient_UD: Tensor = torch.ones_like(encoded.embeddings_UD)
        for surrogate in engine.surrogates(encoded, gradient_UD):
            torch.autograd.grad(surrogate, trained, allow_unused=True)  # leaves no .grad, and no hooks of DDP run
    return int(counter.flops)
