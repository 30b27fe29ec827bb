"""Progress where there is no terminal to draw a bar on: log files, schedulers, continuous integration."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar


class ProgressLines(ProgressBar):
    """Prints one line every so often: step, loss, learning rate, throughput, time left.

    Args:
        every_seconds: between lines.
    """

    def __init__(self, *, every_seconds: float = 15.0) -> None:
        super().__init__()
        self.every_seconds = every_seconds
        self._enabled = True
        self._started = self._printed = 0.0
        self._first_step = 0

    def disable(self) -> None:
        """Prints nothing from here on: Lightning asks for it on every rank but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Prints again."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._started = self._printed = time.monotonic()
        self._first_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Prints if it is time, and after the last step."""
        now = time.monotonic()
        total, step = trainer.estimated_stepping_batches, trainer.global_step
        if not self._enabled or (now - self._printed < self.every_seconds and step < total):
            return
        self._printed = now
        left = (now - self._started) / (step - self._first_step) * (total - step)
        values = "  ".join(f"{name} {_short(float(value))}" for name, value in trainer.progress_bar_metrics.items())
        print(f"step {step}/{total}  {values}  left {timedelta(seconds=round(left))}", flush=True)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
