"""Trains a causal language model on packed text, fast both on a small CPU and on a large GPU.

Names end in their axes: S sequences, T tokens of a sequence, N tokens of a batch, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel

from embedlab.pretraining.corpus import PackedText
from embedlab.training.schedule import WarmupCosine

# Number of logits in memory at once: few enough for the cache of a CPU, and enough to keep a GPU busy.
_LOGITS_PER_CHUNK = {"cpu": 1 << 19}
_LOGITS_PER_CHUNK_ELSEWHERE = 1 << 27


def chunked_cross_entropy(hidden_ND: Tensor, unembedding_VD: Tensor, targets_N: Tensor, rows: int) -> Tensor:
    """Return the mean cross-entropy of the logits ``hidden_ND @ unembedding_VD.T``, computed a few rows at a time.

    The gradients are computed together with the loss, so that the logits are computed only once. In a small model, the
    logits cause more memory traffic than the blocks.

    Args:
        hidden_ND: Last hidden states of shape (tokens, width).
        unembedding_VD: Weight of the unembedding, of shape (vocabulary, width).
        targets_N: Next token after each position, int64, of shape (tokens,).
        rows: Maximum number of rows of the logits in memory at once.

    Returns:
        Mean loss in nats per token, as a scalar.
    """
    loss: Tensor = cast(Any, _ChunkedCrossEntropy).apply(hidden_ND, unembedding_VD, targets_N, rows)
    return loss


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Autograd function of ``chunked_cross_entropy``."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, unembedding_VD: Tensor, targets_N: Tensor, rows: int) -> Tensor:
        hidden_grad_ND, unembedding_grad_VD = torch.empty_like(hidden_ND), torch.zeros_like(unembedding_VD)
        loss = hidden_ND.new_zeros(())
        for start in range(0, len(hidden_ND), rows):
            chunk = slice(start, start + rows)
            targets_N1 = targets_N[chunk, None]
            logits_NV = hidden_ND[chunk] @ unembedding_VD.T
            precision = torch.promote_types(logits_NV.dtype, torch.float32)  # bfloat16 is not precise enough here
            log_probabilities_NV = logits_NV.log_softmax(dim=-1, dtype=precision)
            loss -= log_probabilities_NV.gather(1, targets_N1).sum()
            logits_grad_NV = log_probabilities_NV.exp_()
            logits_grad_NV.scatter_add_(1, targets_N1, torch.full_like(targets_N1, -1, dtype=logits_grad_NV.dtype))
            hidden_grad_ND[chunk] = logits_grad_NV @ unembedding_VD
            unembedding_grad_VD += logits_grad_NV.T @ hidden_ND[chunk]
        ctx.save_for_backward(hidden_grad_ND, unembedding_grad_VD)
        ctx.num_targets = len(targets_N)
        return loss / len(targets_N)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden_grad_ND, unembedding_grad_VD = ctx.saved_tensors
        factor = grads[0] / ctx.num_targets
        return hidden_grad_ND * factor, unembedding_grad_VD * factor, None, None


class CausalLanguageModel(LightningModule):
    """Next-token prediction on sequences that are cut out of a stream of tokens on the device.

    A batch holds only the positions at which its sequences begin in the stream. Therefore no tokens are copied to the
    device during training, and the device never waits for the host.

    Args:
        model: Language model to train; its unembedding has no bias.
        text: Packed text with a stream of tokens for training and one for validation.
        context: Number of predicted tokens per sequence.
        learning_rate: Peak learning rate.
        steps: Number of optimizer steps of the run, over which the learning rate rises and falls.
    """

    train_tokens: Tensor
    validation_tokens: Tensor

    def __init__(
        self, model: PreTrainedModel, text: PackedText, *, context: int, learning_rate: float, steps: int
    ) -> None:
        super().__init__()
        self.model = model
        self.context = context
        self.learning_rate = learning_rate
        self.steps = steps
        for split in ("train", "validation"):
            # int16, because torch cannot index uint16 tensors on a GPU; _loss converts the tokens back
            tokens = torch.from_numpy(text.tokens(split).astype(np.int16))
            self.register_buffer(f"{split}_tokens", tokens, persistent=False)

    def training_step(self, starts_S: Tensor, batch_idx: int) -> Tensor:
        """Return the mean loss of a batch, in nats per token.

        Args:
            starts_S: Position in the training stream at which each sequence begins, int64.
            batch_idx: Number of the batch within the epoch; not used.
        """
        return self._loss(self.train_tokens, starts_S)

    def validation_step(self, starts_S: Tensor, batch_idx: int) -> None:
        """Log the mean loss of a batch as ``validation_loss``, in nats per token.

        Args:
            starts_S: Position in the validation stream at which each sequence begins, int64.
            batch_idx: Number of the batch within the epoch; not used.
        """
        loss = self._loss(self.validation_tokens, starts_S)
        self.log("validation_loss", loss, batch_size=len(starts_S))

    def configure_optimizers(self) -> Any:
        """Return the optimizer and its schedule.

        The optimizer is AdamW with weight decay on matrices only. The learning rate rises linearly over the first tenth
        of the steps, and then falls to 0 along a cosine.
        """
        groups = [
            {"params": [p for p in self.model.parameters() if p.ndim >= 2], "weight_decay": 0.1},
            {"params": [p for p in self.model.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = AdamW(groups, lr=self.learning_rate, betas=(0.9, 0.95), fused=True)
        schedule = WarmupCosine(warmup=0.1)
        scheduler = LambdaLR(optimizer, lambda step: schedule.factor((step + 0.5) / self.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients to a norm of 1.

        The clipping option of the Lightning trainer refuses fused optimizers in mixed precision, because gradients may
        still be scaled by the loss scale. Gradients in bfloat16 are never scaled, so they can be clipped here.

        Args:
            optimizer: Optimizer of the run; not used.
            gradient_clip_val: Clipping value of the trainer; not used.
            gradient_clip_algorithm: Clipping algorithm of the trainer; not used.
        """
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)

    def _loss(self, stream: Tensor, starts_S: Tensor) -> Tensor:
        offsets_T = torch.arange(self.context + 1, device=stream.device)
        tokens_ST = stream[starts_S[:, None] + offsets_T].long() & 0xFFFF
        hidden_STD = self.model.base_model(input_ids=tokens_ST[:, :-1]).last_hidden_state
        unembedding_VD = self.model.get_output_embeddings().weight
        logits = _LOGITS_PER_CHUNK.get(stream.device.type, _LOGITS_PER_CHUNK_ELSEWHERE)
        return chunked_cross_entropy(
            hidden_STD.flatten(0, 1), unembedding_VD, tokens_ST[:, 1:].flatten(), max(1, logits // len(unembedding_VD))
        )
