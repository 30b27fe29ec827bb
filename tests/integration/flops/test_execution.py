"""What a step is said to execute is what torch's counter sees in that step."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from embedlab.flops.execution import ExecutedFlops
from embedlab.flops.observer import ADDED_FORMULAS
from embedlab.gradcache.chunking import Chunk
from embedlab.losses import SymmetricInfoNCE
from embedlab.method import prepare_backbone
from embedlab.method.registry import method_class
from embedlab.model.encoder import Encoder
from helpers.batches import METHODS, chunks_of, make_encoder, make_engine, make_texts, pair_rows
from helpers.flop_counts import block_scanner, checkpoint_activations

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


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("family", "checkpointing"), [*((family, False) for family in FAMILIES), ("gpt_neox", True), ("gemma3", True)]
)
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


@pytest.mark.parametrize(
    ("family", "method"), [("mamba2", "FullFineTuning"), ("qwen3_next", "FullFineTuning"), ("qwen3_next", "LoRA")]
)
def test_chunks_of_models_that_scan_in_blocks_are_counted_at_every_length(family: str, method: str) -> None:
    encoder = Encoder(prepare_backbone(method_class(method)(), block_scanner(family)), "mean").train()
    cost = ExecutedFlops(encoder, encoder.frozen_blocks(), max_length=200)
    for policy, said in (("never", cost.kept), ("always", cost.recomputed)):
        engine = make_engine(encoder, policy)
        for num_texts, length in ((1, 2), (3, 63), (3, 65), (1, 129), (2, 199)):
            tokens_BL = torch.zeros(num_texts, length, dtype=torch.int64)
            with FlopCounterMode(display=False, custom_mapping=ADDED_FORMULAS) as counter:
                encoded = engine.encode([Chunk(tokens_BL, torch.ones_like(tokens_BL), torch.arange(num_texts))])
                for surrogate in engine.surrogates(encoded, torch.ones_like(encoded.embeddings_UD)):
                    surrogate.backward()
            seen = counter.get_total_flops()
            assert said.of_chunk(num_texts, length) == pytest.approx(seen, rel=0.005), (policy, num_texts, length)
