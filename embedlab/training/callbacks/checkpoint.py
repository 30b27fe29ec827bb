"""Saves checkpoints, each whole or not at all, so often that a run that is killed or stopped loses little."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from embedlab.errors import ConfigError, DataError, TrainingError
from embedlab.files import link_whole
from embedlab.training.callbacks.base import RunCallback
from embedlab.training.callbacks.interrupt import Interrupt, keep_off
from embedlab.training.checkpoint_file import CHECKPOINTS, LAST, PREVIOUS
from embedlab.training.loop_state import loops_after

_STEPS_BETWEEN_LOOKS = 10  # number of steps between looks at the clock, on which the ranks have to agree


class RunCheckpoint(RunCallback, Checkpoint):
    """Save ``last.ckpt`` at intervals and at the end of the run, and ``best.ckpt`` by a validation metric.

    A checkpoint is written beside its target, flushed to the disk and renamed, so that a full disk or a killed process
    leaves the previous checkpoint intact. Lightning's own ``ModelCheckpoint`` is not used, because under manual
    optimization it ignores the time interval and saves no checkpoint at the end of a run that ``max_steps`` ends.

    The run ends with a checkpoint on Ctrl-C, on SIGTERM or SIGUSR1 from a scheduler, and on SIGHUP from a closed
    terminal. It ends after the current training step or the current chunk of an evaluation, on all ranks at the same
    point.

    Args:
        every_n_steps: Number of optimizer steps between checkpoints. None turns saving by steps off.
        every_minutes: Number of minutes between checkpoints, whatever the number of steps. None turns saving by time
            off.
        monitor: Name of a logged validation metric, for example ``validation/held-out/mrr@10``, by which the best
            checkpoint is kept. None keeps no best checkpoint.
        mode: Whether a larger (``max``) or a smaller (``min``) value of the metric is better.
        keep_previous: Whether to keep the checkpoint before ``last.ckpt`` as ``previous.ckpt``, in case ``last.ckpt``
            is damaged.
    """

    def __init__(
        self,
        *,
        every_n_steps: int | None = None,
        every_minutes: float | None = 10.0,
        monitor: str | None = None,
        mode: str = "max",
        keep_previous: bool = True,
    ) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ConfigError(
                f"checkpoint.every_n_steps must be at least 1, got {every_n_steps}. Leave it out to turn it off."
            )
        if every_minutes is not None and not every_minutes > 0:
            raise ConfigError(
                f"checkpoint.every_minutes must be above 0, got {every_minutes}. Use null to turn it off."
            )
        if mode not in ("max", "min"):
            raise ConfigError(f"checkpoint.mode must be 'max' or 'min', got '{mode}'. Leave it out for 'max'.")
        self.every_n_steps = every_n_steps
        self.every_minutes = every_minutes
        self.monitor = monitor
        self.sign = 1.0 if mode == "max" else -1.0
        self.keep_previous = keep_previous
        self.best: float | None = None
        self._saved_at = time.monotonic()
        self._saved_step = -1
        self._interrupt = Interrupt()

    def state_dict(self) -> dict[str, Any]:
        """Return the metric's best value so far, so that a resumed run does not overwrite a better checkpoint."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the metric's best value so far.

        Raises:
            DataError: If the value is not a number.
        """
        best = state_dict.get("best")
        if best is not None and not isinstance(best, int | float):
            raise DataError(f"The checkpoint's best value of the monitored metric is {best!r:.100}. Expected a number.")
        self.best = best

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Install the handlers of the signals that end a run.

        From here on the ranks wait for each other, so a signal ends all ranks after the same step, never one alone.
        """
        keep_off(trainer)
        if stage == "fit":
            self._interrupt.watch()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock for ``every_minutes``."""
        self._saved_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save a checkpoint if it is due, or if the run is to end."""
        by_steps = self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0
        by_time = False
        if self.every_minutes is not None and trainer.global_step % _STEPS_BETWEEN_LOOKS == 0:
            minutes = (time.monotonic() - self._saved_at) / 60
            by_time = bool(trainer.strategy.broadcast(minutes >= self.every_minutes))
        received = self._interrupt.agreed(trainer)
        # The end of the run is saved here, before Lightning ends the epoch, so that a run that its number of steps or
        # its budget ended can be extended.
        if by_steps or by_time or received or trainer.should_stop:
            self._save(trainer, LAST)
        if received:
            self._stop(trainer, received)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Save the step before the evaluation if a signal asks the run to end during the evaluation."""
        if trainer.state.fn != "fit":
            return
        received = self._interrupt.agreed(trainer)
        if not received:
            return
        if trainer.global_step not in (0, self._saved_step):
            self._save(trainer, LAST)
        self._stop(trainer, received)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Set the state of the loops to the place of the checkpoint's step in this run's epochs.

        Raises:
            DataError: If the checkpoint's step is not a whole number of at least 1.
        """
        step = checkpoint["global_step"]
        if type(step) is not int or step < 1:
            raise DataError(f"The checkpoint's global_step is {step!r:.100}. Expected a number of steps, at least 1.")
        if trainer.state.fn != "fit":
            return
        steps_per_epoch = self.data(trainer).steps_per_epoch
        checkpoint["loops"] = loops_after(step, trainer, steps_per_epoch)
        epoch, planned = (step - 1) // steps_per_epoch, trainer.max_epochs
        if planned not in (None, -1) and epoch > planned:
            trainer.fit_loop.max_epochs = epoch  # Lightning would refuse a smaller number
            if trainer.is_global_zero:
                print(
                    f"Nothing is left to train: the checkpoint is of epoch {epoch}, and trainer.max_epochs is "
                    f"{planned}. Raise trainer.max_epochs to train more."
                )
        last = Path(trainer.default_root_dir, CHECKPOINTS, LAST)
        if last.resolve() == Path(str(trainer.ckpt_path)).resolve():
            self._saved_step = step

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signals back to their previous handlers."""
        self._interrupt.release()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save a checkpoint of this step again, now with its evaluation, and save the best checkpoint by the metric."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if self._saved_step == trainer.global_step:  # saved before this validation, whose results it lacks
            self._save(trainer, LAST)
        if self.monitor is None:
            return
        metrics = trainer.callback_metrics
        if self.monitor not in metrics:
            raise ConfigError(
                f"checkpoint.monitor is '{self.monitor}', which is not a metric of the validation. Use one of: "
                f"{', '.join(sorted(name for name in metrics if name.startswith('validation/')))}."
            )
        value = float(metrics[self.monitor])
        if self.best is None or self.sign * value > self.sign * self.best:
            self.best = value
            self._save(trainer, "best.ckpt")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the finished run, unless its last step is saved already.

        The last step is not saved yet if another callback stopped the run early.
        """
        if self._saved_step != trainer.global_step:
            self._save(trainer, LAST)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back to their previous handlers."""
        self._interrupt.release()

    def _save(self, trainer: Trainer, name: str) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # Lightning sets it by name
            return
        save_whole(trainer, name, keep_previous=self.keep_previous and self._saved_step != trainer.global_step)
        if name == LAST:
            self._saved_at, self._saved_step = time.monotonic(), trainer.global_step

    def _stop(self, trainer: Trainer, received: int) -> NoReturn:
        self._interrupt.release()
        if trainer.is_global_zero and self._saved_step >= 0:
            print(f"Saved at step {self._saved_step}. Go on with --ckpt_path last.", file=sys.stderr, flush=True)
        if received == signal.SIGINT:
            raise KeyboardInterrupt
        stopped = SIGTERMException()
        stopped.code = 128 + received  # exit status of a process that a signal ended
        raise stopped


def save_whole(trainer: Trainer, name: str, *, keep_previous: bool = False) -> None:
    """Write a checkpoint into the run's folder, whole or not at all.

    Args:
        trainer: Trainer of the run.
        name: Name of the file.
        keep_previous: Whether to keep an existing ``last.ckpt`` as ``previous.ckpt`` when ``last.ckpt`` is replaced.

    Raises:
        TrainingError: If the checkpoint cannot be written.
    """
    folder = Path(trainer.default_root_dir) / CHECKPOINTS
    path = folder / name
    try:
        if name == LAST and keep_previous and trainer.is_global_zero and path.exists():
            link_whole(path, folder / PREVIOUS)
        trainer.save_checkpoint(path)
    except OSError as error:
        before = folder / LAST
        kept = f"The previous checkpoint, {before}, is intact" if before.exists() else "There is no previous checkpoint"
        raise TrainingError(
            f"The checkpoint of step {trainer.global_step} could not be written to {path}: {error.strerror or error}. "
            f"{kept}. Free disk space, then resume with --ckpt_path auto."
        ) from error
