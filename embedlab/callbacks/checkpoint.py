"""Checkpoints that are whole or not there, often enough that a killed run loses little."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from embedlab.callbacks.interrupt import Interrupt
from embedlab.errors import ConfigError, TrainingError

_STEPS_BETWEEN_LOOKS = 10  # at the clock: the ranks have to agree on what it shows


class RunCheckpoint(Checkpoint):
    """Writes ``last.ckpt`` every so often and at the end, and ``best.ckpt`` by a validation metric.

    A checkpoint is written beside its target and renamed: a full disk or a kill leaves the one before whole.
    Lightning's own ``ModelCheckpoint`` is not used because under manual optimisation it ignores the time
    interval and writes no checkpoint at the end of a run that ``max_steps`` ends.

    Ctrl-C, and a scheduler's SIGTERM, end the run after the step that is under way, with a checkpoint of it.

    Args:
        every_n_steps: optimiser steps between checkpoints; None for none by steps.
        every_minutes: minutes between checkpoints, whatever the steps; None for none by time.
        monitor: a logged validation metric, for example ``validation/held-out/mrr@10``; None keeps no best.
        mode: whether the metric is better when larger (``max``) or smaller (``min``).
    """

    def __init__(
        self,
        *,
        every_n_steps: int | None = None,
        every_minutes: float | None = 10.0,
        monitor: str | None = None,
        mode: str = "max",
    ) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ConfigError(
                f"checkpoint.every_n_steps must be at least 1, got {every_n_steps}. Leave it out for none."
            )
        if mode not in ("max", "min"):
            raise ConfigError(f"checkpoint.mode must be 'max' or 'min', got '{mode}'.")
        self.every_n_steps = every_n_steps
        self.every_minutes = every_minutes
        self.monitor = monitor
        self.sign = 1.0 if mode == "max" else -1.0
        self.best: float | None = None
        self._saved_at = time.monotonic()
        self._saved_step = -1
        self._interrupt = Interrupt()

    def state_dict(self) -> dict[str, Any]:
        """The best value so far, so that a resumed run does not overwrite a better checkpoint."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the best value so far."""
        self.best = state_dict["best"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._saved_at = time.monotonic()
        self._interrupt.watch()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves if it is time."""
        by_steps = self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0
        by_time = False
        if self.every_minutes is not None and trainer.global_step % _STEPS_BETWEEN_LOOKS == 0:
            minutes = (time.monotonic() - self._saved_at) / 60
            by_time = bool(trainer.strategy.broadcast(minutes >= self.every_minutes))
        # The end is saved here, where the epoch is not over for Lightning: a run that its steps or its budget ended can
        # be extended.
        if by_steps or by_time or trainer.should_stop:
            self._save(trainer, "last.ckpt")
        if self._is_interrupted(trainer):
            self._save(trainer, "last.ckpt")
            raise KeyboardInterrupt

    def _is_interrupted(self, trainer: Trainer) -> bool:
        if trainer.world_size == 1:
            return self._interrupt.is_asked_for
        if trainer.global_step % _STEPS_BETWEEN_LOOKS:
            return False
        return bool(trainer.strategy.reduce_boolean_decision(self._interrupt.is_asked_for, all=False))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Says how to go on with an interrupted run, and saves one that its scheduler ends: both are between steps."""
        self._interrupt.release()
        if isinstance(exception, SIGTERMException):
            self._save(trainer, "last.ckpt")
            exception.code = 128 + signal.SIGTERM  # it is not done
        interrupted = isinstance(exception, KeyboardInterrupt | SIGTERMException)
        if interrupted and trainer.is_global_zero and self._saved_step >= 0:
            print(f"Saved at step {self._saved_step}. Go on with --ckpt_path last.", file=sys.stderr, flush=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves again what this step saved before its validation, and the best so far by the monitored metric."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if self._saved_step == trainer.global_step:  # before this validation: a checkpoint carries the newest results
            self._save(trainer, "last.ckpt")
        if self.monitor is None:
            return
        metrics = trainer.callback_metrics
        if self.monitor not in metrics:
            raise ConfigError(
                f"checkpoint.monitor is '{self.monitor}', which validation does not give. It gives: "
                f"{', '.join(sorted(name for name in metrics if name.startswith('validation/')))}."
            )
        value = float(metrics[self.monitor])
        if self.best is None or self.sign * value > self.sign * self.best:
            self.best = value
            self._save(trainer, "best.ckpt")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the finished run, unless its last step is saved already: it is if the run was not stopped early."""
        self._interrupt.release()
        if self._saved_step != trainer.global_step:
            self._save(trainer, "last.ckpt")

    def _save(self, trainer: Trainer, name: str) -> None:
        save_whole(trainer, name)
        if name == "last.ckpt":
            self._saved_at, self._saved_step = time.monotonic(), trainer.global_step


def save_whole(trainer: Trainer, name: str) -> None:
    """Writes a checkpoint into the run's folder: whole, or not at all.

    Raises:
        TrainingError: if it cannot be written.
    """
    folder = Path(trainer.default_root_dir) / "checkpoints"
    unfinished = folder / f"{name}.unfinished"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trainer.save_checkpoint(unfinished)
        if trainer.is_global_zero:
            unfinished.replace(folder / name)
    except OSError as error:
        if trainer.is_global_zero:
            unfinished.unlink(missing_ok=True)
        raise TrainingError(
            f"The checkpoint of step {trainer.global_step} could not be written to {folder / name}: {error}. "
            "The checkpoint before it is whole. Make room, then go on with --ckpt_path last."
        ) from error
