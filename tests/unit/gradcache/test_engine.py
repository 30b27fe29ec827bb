"""Any chunking and recompute policy gives the gradient of one unchunked forward, for every method."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from embedlab.gradcache.chunking import Chunk, pad_chunk
from embedlab.gradcache.engine import GradCache, Recompute
from embedlab.losses import AllPairsInfoNCE, ContrastiveLoss, InfoNCE, SymmetricInfoNCE
from embedlab.model.encoder import Encoder
from embedlab.testing.backbones import FAMILIES, tiny_backbone
from helpers.batches import METHODS, chunks_of, make_encoder, make_engine, make_texts, pair_rows

POLICIES = [*get_args(Recompute), "partly"]
# Each loss with chunks of another size, so that every size meets every policy, method and family.
LOSSES = [(InfoNCE, 25), (SymmetricInfoNCE, 40), (AllPairsInfoNCE, 60)]

LossGradientOf = Callable[[Tensor], Tensor]


def simple_gradient(embeddings_UD: Tensor) -> Tensor:
    """Of a loss that couples all embeddings, as a contrastive one does."""
    embeddings_UD = embeddings_UD.detach().requires_grad_()
    loss = torch.logsumexp(5 * embeddings_UD @ embeddings_UD.roll(1, 0).T, dim=1).sum()
    (gradient_UD,) = torch.autograd.grad(loss, embeddings_UD)
    return gradient_UD


def gradient_of(loss: ContrastiveLoss, num_texts: int) -> LossGradientOf:
    """Of a contrastive loss over a batch of ``pair_rows``."""
    rows = pair_rows(num_texts)
    return lambda embeddings_UD: loss.gradient(embeddings_UD.detach(), rows).embeddings_UD


def gradients(encoder: Encoder) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}
    encoder.zero_grad()
    return found


def reference(
    encoder: Encoder, texts: list[np.ndarray], loss_gradient: LossGradientOf = simple_gradient
) -> dict[str, Tensor]:
    whole = pad_chunk(texts, np.arange(len(texts)), pad_token_id=0)
    embeddings_UD = encoder(whole)
    embeddings_UD.backward(loss_gradient(embeddings_UD))
    return gradients(encoder)


def chunked(
    encoder: Encoder,
    chunks: list[Chunk],
    engine: GradCache,
    loss_gradient: LossGradientOf = simple_gradient,
) -> tuple[dict[str, Tensor], int]:
    batch = engine.encode(chunks)
    recomputed = batch.num_recomputed_tokens
    for surrogate in engine.surrogates(batch, loss_gradient(batch.embeddings_UD)):
        surrogate.backward()
    return gradients(encoder), recomputed


def assert_same_gradients(
    received: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float, policy: str = ""
) -> None:
    assert received.keys() == expected.keys()
    scale = torch.stack([g.norm() for g in expected.values()]).norm()
    error = torch.stack([(received[name] - g).norm() for name, g in expected.items()]).norm()
    assert scale > 0
    assert error / scale <= tolerance, policy


@pytest.mark.parametrize(("loss", "max_tokens"), LOSSES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_chunked_gradient_is_exact(family: str, method: str, loss: type[ContrastiveLoss], max_tokens: int) -> None:
    # transformers' eager attention takes its softmax in float32, where the masks of float64 are infinite.
    eager = tiny_backbone(family).config._attn_implementation == "eager"
    encoder = make_encoder(family, method, dtype=torch.float32 if eager else torch.float64)
    texts = make_texts()
    loss_gradient = gradient_of(loss(temperature=0.1), len(texts))
    expected = reference(encoder, texts, loss_gradient)
    # transformers computes RMS norms in float32 whatever the model's dtype: there the model itself rounds.
    rounds = any("RMSNorm" in type(module).__name__ for module in encoder.modules())
    chunks = chunks_of(texts, max_tokens)
    for policy in ("never", "always", "partly"):  # auto is one of these, by what fits
        received, _ = chunked(encoder, chunks, make_engine(encoder, policy), loss_gradient)
        assert_same_gradients(received, expected, 1e-5 if eager else 1e-7 if rounds else 1e-10, policy)


@pytest.mark.parametrize("max_tokens", [1, 25, 1000])
@pytest.mark.parametrize("method", METHODS)
def test_chunked_gradient_is_exact_in_float32_for_any_chunk_size(method: str, max_tokens: int) -> None:
    encoder = make_encoder("gpt_neox", method, dtype=torch.float32)
    texts = make_texts()
    expected = reference(encoder, texts)
    received, _ = chunked(encoder, chunks_of(texts, max_tokens), make_engine(encoder, "always"))
    assert_same_gradients(received, expected, 1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_replay_draws_the_same_dropout(method: str) -> None:
    encoder = make_encoder("gpt2", method, dropout=0.3)
    chunks = chunks_of(make_texts(), max_tokens=40)
    results = {}
    for policy in ("never", "always"):
        torch.manual_seed(1)
        results[policy], _ = chunked(encoder, chunks, make_engine(encoder, policy))
    assert_same_gradients(results["always"], results["never"], 1e-12)
    torch.manual_seed(2)
    other, _ = chunked(encoder, chunks, make_engine(encoder, "never"))
    with pytest.raises(AssertionError):
        assert_same_gradients(other, results["never"], 1e-3)


def test_a_replay_leaves_the_random_numbers_after_it_as_they_were() -> None:
    encoder = make_encoder("gpt2", "FullFineTuning", dropout=0.3)
    chunks = chunks_of(make_texts(), max_tokens=40)
    after = []
    for policy in ("never", "always"):
        torch.manual_seed(1)
        chunked(encoder, chunks, make_engine(encoder, policy))
        after.append(torch.rand(3))
    assert torch.equal(after[0], after[1])


def test_gradient_checkpointing_changes_nothing() -> None:
    encoder = make_encoder("gpt_neox", "FullFineTuning")
    texts = make_texts()
    expected = reference(encoder, texts)
    encoder.backbone.gradient_checkpointing_enable({"use_reentrant": False})
    for policy in POLICIES:
        received, _ = chunked(encoder, chunks_of(texts, max_tokens=40), make_engine(encoder, policy))
        assert_same_gradients(received, expected, 1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_autocast_does_not_lose_gradients_in_a_replay(method: str) -> None:
    encoder = make_encoder("gpt_neox", method, dtype=torch.float32)
    chunks = chunks_of(make_texts(), max_tokens=40)
    results = []
    for policy in ("never", "always"):
        with torch.autocast("cpu", torch.bfloat16):
            results.append(chunked(encoder, chunks, make_engine(encoder, policy))[0])
    assert_same_gradients(results[1], results[0], 1e-2)


def test_memory_decides_how_many_chunks_are_replayed() -> None:
    encoder = make_encoder("gpt_neox", "FullFineTuning")
    chunks = chunks_of(make_texts(60), max_tokens=40)
    parameters = list(encoder.parameters())
    recomputed = [
        chunked(encoder, chunks, GradCache(encoder, parameters, memory_bytes=memory))[1]
        for memory in (1, 2_000_000, 4_000_000, 10**12)
    ]
    assert recomputed[0] > recomputed[1] > recomputed[2] > recomputed[3] == 0
    longest = chunks[0].num_padded_tokens  # has a graph whatever the memory
    assert recomputed[0] == sum(chunk.num_padded_tokens for chunk in chunks) - longest


def test_the_frozen_prefix_is_what_no_gradient_flows_through() -> None:
    encoder = make_encoder("gpt_neox", "BlockFreezing")
    blocks = list(encoder.backbone.layers)
    assert encoder.frozen_blocks() == blocks[: len(blocks) // 2]
    assert make_encoder("gpt_neox", "FullFineTuning").frozen_blocks() == []
    assert make_encoder("gpt_neox", "LoRA").frozen_blocks() == []


def test_a_replay_does_not_compute_frozen_blocks_again() -> None:
    encoder = make_encoder("gpt_neox", "BlockFreezing")
    calls = {"frozen": 0, "trained": 0}
    blocks = list(encoder.backbone.layers)
    for name, block in (("frozen", blocks[0]), ("trained", blocks[-1])):
        block.mlp.register_forward_hook(lambda *_, name=name: calls.__setitem__(name, calls[name] + 1))
    engine = make_engine(encoder, "always")
    calls.update(frozen=0, trained=0)
    chunks = chunks_of(make_texts(), max_tokens=40)
    chunked(encoder, chunks, engine)
    assert calls == {"frozen": len(chunks), "trained": 2 * len(chunks)}
