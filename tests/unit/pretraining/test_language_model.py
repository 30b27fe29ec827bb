"""The loss of a causal language model in chunks is the loss in one piece, and predicts the next token."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from embedlab.pretraining.corpus import PackedText
from embedlab.pretraining.language_model import CausalLanguageModel, chunked_cross_entropy


@pytest.mark.parametrize("rows", [1, 7, 50, 64])
def test_loss_and_gradients_do_not_depend_on_the_chunks(rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden_ND = torch.randn(50, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    unembedding_VD = torch.randn(30, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    targets_N = torch.randint(30, (50,), generator=generator)
    expected = functional.cross_entropy(hidden_ND @ unembedding_VD.T, targets_N)
    expected_grads = torch.autograd.grad(3 * expected, (hidden_ND, unembedding_VD))
    loss = chunked_cross_entropy(hidden_ND, unembedding_VD, targets_N, rows)
    grads = torch.autograd.grad(3 * loss, (hidden_ND, unembedding_VD))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("vocabulary", [300, 1 << 16])
def test_the_loss_is_that_of_the_model_on_the_next_tokens(tmp_path: Path, vocabulary: int) -> None:
    # Tokens above 32767 do not fit the signed type in which they lie on the device.
    tokens = np.random.default_rng(0).integers(vocabulary // 2, vocabulary, 100).astype(np.uint16)
    for split in ("train", "validation"):
        np.save(tmp_path / f"{split}.npy", tokens)
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        use_cache=False,
    )
    model = GPTNeoXForCausalLM(config)
    module = CausalLanguageModel(model, PackedText(tmp_path), context=10, learning_rate=1e-3, steps=1)
    loss = module.training_step(torch.tensor([3, 50]), 0)
    sequences_ST = torch.from_numpy(np.stack([tokens[3:14], tokens[50:61]]).astype(np.int64))
    logits_STV = model(input_ids=sequences_ST[:, :-1]).logits
    expected = functional.cross_entropy(logits_STV.flatten(0, 1), sequences_ST[:, 1:].flatten())
    torch.testing.assert_close(loss, expected)
    assert abs(loss.item() - math.log(vocabulary)) < 0.5
