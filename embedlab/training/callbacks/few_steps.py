"""Ends a run after a few steps, to learn whether it can be trained and what it costs, without the whole training."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer

from embedlab.errors import ConfigError
from embedlab.training.callbacks.base import RunCallback


class FewSteps(RunCallback):
    """End the run after a few steps, with its evaluation and its record.

    The budget and the schedule are those of the whole run, so that any option that the whole run would refuse is
    refused here.

    Args:
        steps: Number of optimizer steps to take.
    """

    def __init__(self, steps: int = 3) -> None:
        if steps < 1:
            raise ConfigError(f"FewSteps' steps must be at least 1, got {steps}. Leave it out for 3.")
        self.steps = steps

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ask for the end of the run once the steps are taken."""
        trainer.should_stop |= trainer.global_step >= self.steps
