"""What the hardware does for a chunk, measured by running chunks: recomputation and all.

Attention kernels compute scores again in their backward pass, checkpoints compute blocks again, replays skip frozen
blocks: what is executed depends on how a model is run, so it is counted while it runs, at a few shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from embedlab.chunking import Chunk
from embedlab.flop_observer import SHORT_LENGTHS, ProductCounter, fitted, lengths_between, visible_attention
from embedlab.flops import Cost, ExecutionCost
from embedlab.replay import ChunkedGradient, Recompute


def measure_execution(encoder: nn.Module, frozen_blocks: Sequence[nn.Module], *, max_length: int) -> ExecutionCost:
    """The cost of chunks as this model runs them, here and now: device, precision, attention, checkpointing.

    Leaves gradients and random numbers as they are.

    Args:
        encoder: chunk to embeddings, in training mode.
        frozen_blocks: leading blocks through which no gradient flows.
        max_length: tokens of the longest text; the cost is checked there.
    """
    parameters = list(encoder.parameters())
    policies: dict[str, Recompute] = {"kept": "never", "replayed": "always"}
    costs = {}
    with visible_attention(encoder):
        for name, policy in policies.items():
            engine = ChunkedGradient(encoder, parameters, recompute=policy, frozen_blocks=frozen_blocks)
            costs[name] = _cost(partial(_count, engine, parameters), max_length)
    return ExecutionCost(**costs)


def _cost(count: Callable[[int, int], int], max_length: int) -> Cost:
    """As a function of the number of texts and their length, from ``count`` at a few of those."""
    constant, linear, square = fitted({length: count(1, length) for length in SHORT_LENGTHS})
    length = SHORT_LENGTHS[0]
    per_text = count(2, length) - count(1, length) - linear * length - square * length**2
    cost = Cost(per_token=linear, per_squared_token=square, per_text=per_text, per_call=constant - per_text)
    at_longest = count(1, max_length)
    if abs(cost.of_chunk(1, max_length) - at_longest) <= 0.001 * at_longest:
        return cost
    return Cost(measured=tuple((length, count(1, length)) for length in lengths_between(max_length)))


def _count(engine: ChunkedGradient, parameters: Sequence[nn.Parameter], num_texts: int, length: int) -> int:
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
