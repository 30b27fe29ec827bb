"""What a step is said to execute is what torch's counter sees in that step."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from embedlab.flops.execution import ExecutedFlops
from embedlab.flops.observer import ADDED_FORMULAS
from embedlab.losses import SymmetricInfoNCE
from embedlab.model.encoder import Encoder
from helpers.batches import METHODS, chunks_of, make_encoder, make_engine, make_texts, pair_rows
from helpers.flop_counts import checkpoint_activations

FAMILIES = ["gpt_neox", "gpt2", "llama", "qwen3", "gemma3", "opt"]
LONGEST = 20


def counted_step(
    encoder: Encoder, policy: str, max_tokens: int, cost: ExecutedFlops, counter: FlopCounterMode
) -> tuple[int, int]:
    """What a step of contrastive training was said to execute, and what the counter saw."""
    texts = make_texts(10)
    assert max(map(len, texts)) < LONGEST, "no length at which the cost was measured"
    chunks, engine = chunks_of(texts, max_tokens, max_padding=1.0), make_engine(encoder, policy)
    cost.kept, cost.recomputed  # noqa: B018  measured here, where nobody counts
    with counter:
        encoded = engine.encode(chunks)
        executed = cost.of(encoded)
        result = SymmetricInfoNCE().gradient(encoded.embeddings_UD, pair_rows(len(texts)))
        for surrogate in engine.surrogates(encoded, result.embeddings_UD):
            surrogate.backward()
    return executed + result.flops, counter.get_total_flops()


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_executed_flops_are_those_that_torch_counts(family: str, method: str, checkpointing: bool) -> None:
    encoder = make_encoder(family, method, dtype=torch.float32, attn_implementation="eager", num_hidden_layers=2)
    if checkpointing:
        checkpoint_activations(encoder)
    cost = ExecutedFlops(encoder, encoder.frozen_blocks(), max_length=LONGEST)
    for policy, max_tokens in product(("never", "always", "partly"), (40, 200)):
        said, seen = counted_step(encoder, policy, max_tokens, cost, FlopCounterMode(display=False))
        assert said == pytest.approx(seen, rel=0.005), f"recompute {policy}, {max_tokens} tokens a chunk"


@pytest.mark.parametrize("policy", ["never", "always", "partly"])
@pytest.mark.parametrize("method", METHODS)
def test_fused_attention_computes_its_scores_again(method: str, policy: str) -> None:
    encoder = make_encoder("gpt_neox", method, dtype=torch.float32, attn_implementation="sdpa", num_hidden_layers=2)
    cost = ExecutedFlops(encoder, encoder.frozen_blocks(), max_length=LONGEST)
    counter = FlopCounterMode(display=False, custom_mapping=ADDED_FORMULAS)  # on its own it knows no CPU's
    said, seen = counted_step(encoder, policy, 40, cost, counter)
    assert said == pytest.approx(seen, rel=0.005)
