"""Tokens and pairs a second, so that a slow run is seen while it runs."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer

from embedlab.data.collate import PairBatch
from embedlab.training.callbacks.base import RunCallback
from embedlab.training.callbacks.step_clock import StepClock


class Throughput(RunCallback):
    """Logs real tokens and pairs a second over all ranks, and the share of padding.

    A step's time runs from the end of the step before, so that waiting for data counts; validation does not.
    """

    def __init__(self) -> None:
        self._clock = StepClock()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._clock.start()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock again: validation is no training time."""
        self._clock.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: PairBatch, batch_idx: int
    ) -> None:
        """Logs the step that just ended."""
        seconds = self._clock.lap()
        ranks = trainer.world_size
        pl_module.log("tokens/s", ranks * batch.num_tokens / seconds, prog_bar=True)
        pl_module.log("pairs/s", ranks * len(batch.rows.queries_P) / seconds, prog_bar=True)
        pl_module.log("train/padding", batch.num_padded_tokens / batch.num_tokens - 1)
