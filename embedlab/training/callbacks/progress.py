"""Prints progress where no terminal can show a bar: in log files, under schedulers, in continuous integration."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from embedlab.training.callbacks.base import RunCallback
from embedlab.training.callbacks.step_clock import TimeLeft


class ProgressLines(RunCallback, ProgressBar):
    """Print a line at intervals: step, loss, learning rate, throughput, and the remaining time without evaluation.

    Args:
        every_seconds: Minimum number of seconds between two lines.
    """

    def __init__(self, *, every_seconds: float = 15.0) -> None:
        super().__init__()
        self.every_seconds = every_seconds
        self._enabled = True
        self._printed = 0.0
        self._time_left = TimeLeft()

    def disable(self) -> None:
        """Print nothing from here on. Lightning calls this on every rank except the first."""
        self._enabled = False

    def enable(self) -> None:
        """Print lines again."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        module = self.module(trainer)
        self._printed = time.monotonic()
        self._time_left.start(module.share_done)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restart the clock after a validation, whose time does not count as training."""
        self._time_left.resume()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Print a line if it is due, and after the last step."""
        module = self.module(trainer)
        self._time_left.step()
        now = time.monotonic()
        if not self._enabled or (now - self._printed < self.every_seconds and not module.is_done()):
            return
        self._printed = now
        share = module.share_done
        values = "  ".join(f"{name} {_short(float(value))}" for name, value in trainer.progress_bar_metrics.items())
        total = trainer.estimated_stepping_batches
        step = f"{trainer.global_step}/{total}" if total < float("inf") else f"{trainer.global_step} ({share:.1%})"
        meter = self.meter(trainer)
        values += f"  flops {meter.account.algorithmic:.3g}" if meter.profile is not None else ""
        print(f"step {step}  {values}  left {self._time_left.after(share)}", flush=True)


def _short(value: float) -> str:
    if value >= 1e7:
        return f"{value:.3g}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
