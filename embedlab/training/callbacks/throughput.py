"""Logs tokens and pairs per second, so that a slow run is noticed while it runs."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer

from embedlab.data.collate import PairBatch
from embedlab.training.callbacks.base import RunCallback
from embedlab.training.callbacks.step_clock import StepClock


class Throughput(RunCallback):
    """Log real tokens and pairs per second over all ranks, and the number of padding tokens per real token.

    All numbers are computed from this rank's own batch: the rates are multiplied by the number of ranks. The time of a
    step starts at the end of the previous step, so that waiting for data counts. Validation does not count.
    """

    def __init__(self) -> None:
        self._clock = StepClock()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._clock.start()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restart the clock after a validation, whose time does not count as training."""
        self._clock.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: PairBatch, batch_idx: int
    ) -> None:
        """Log the rates and the padding of the step that has just ended."""
        seconds = self._clock.lap()
        ranks = trainer.world_size
        pl_module.log("tokens/s", ranks * batch.num_tokens / seconds, prog_bar=True)
        pl_module.log("pairs/s", ranks * len(batch.rows.queries_P) / seconds, prog_bar=True)
        pl_module.log("train/padding", batch.num_padded_tokens / batch.num_tokens - 1)
