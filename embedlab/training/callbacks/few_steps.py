"""Ends a run after a few steps, to see that it can be trained and what it costs, without training it."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer

from embedlab.errors import ConfigError
from embedlab.training.callbacks.base import RunCallback


class FewSteps(RunCallback):
    """Asks for the end, with its evaluation and its record, when some steps are taken.

    The run's budget and schedule are those of the whole one, so whatever would refuse that refuses this.

    Args:
        steps: Number of optimizer steps after which the run ends.
    """

    def __init__(self, steps: int = 3) -> None:
        if steps < 1:
            raise ConfigError(f"FewSteps' steps must be at least 1, got {steps}.")
        self.steps = steps

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Looks whether it is time."""
        trainer.should_stop |= trainer.global_step >= self.steps
