"""Checkpoints that are whole or not there, often enough that a run that is killed or stopped loses little."""

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

_STEPS_BETWEEN_LOOKS = 10  # at the clock: the ranks have to agree on what it shows


class RunCheckpoint(RunCallback, Checkpoint):
    """Writes ``last.ckpt`` every so often and at the end, and ``best.ckpt`` by a validation metric.

    A checkpoint is written beside its target, brought to the disk and renamed: a full disk or a kill leaves the one
    before whole. Lightning's own ``ModelCheckpoint`` is not used because under manual optimization it ignores the time
    interval and writes no checkpoint at the end of a run that ``max_steps`` ends.

    Ctrl-C, a scheduler's SIGTERM or SIGUSR1 and the SIGHUP of a terminal that is closed end the run, with a checkpoint,
    after the training step or the chunk of an evaluation that is under way, on all ranks at the same point.

    Args:
        every_n_steps: Number of optimizer steps between checkpoints; None writes none by steps.
        every_minutes: Minutes between checkpoints, whatever the number of steps; None writes none by time.
        monitor: Name of a logged validation metric, for example ``validation/held-out/mrr@10``, by which the best
            checkpoint is kept; None keeps no best.
        mode: Whether the metric is better when it is larger (``max``) or smaller (``min``).
        keep_previous: Keep the checkpoint before the last one as ``previous.ckpt``, in case the last is damaged.
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
                f"checkpoint.every_n_steps must be at least 1, got {every_n_steps}. Leave it out for none."
            )
        if every_minutes is not None and not every_minutes > 0:
            raise ConfigError(f"checkpoint.every_minutes must be above 0, got {every_minutes}. Use null for none.")
        if mode not in ("max", "min"):
            raise ConfigError(f"checkpoint.mode must be 'max' or 'min', got '{mode}'.")
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
        """Return the best value so far, so that a resumed run does not overwrite a better checkpoint."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the best value so far.

        Raises:
            DataError: If it is no number.
        """
        best = state_dict.get("best")
        if best is not None and not isinstance(best, int | float):
            raise DataError(f"The checkpoint's best value of the monitored metric is {best!r:.100}. Expected a number.")
        self.best = best

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Listen to signals: from here on ranks wait for each other."""
        keep_off(trainer)
        if stage == "fit":
            self._interrupt.watch()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._saved_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time, or if the run is asked to end."""
        by_steps = self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0
        by_time = False
        if self.every_minutes is not None and trainer.global_step % _STEPS_BETWEEN_LOOKS == 0:
            minutes = (time.monotonic() - self._saved_at) / 60
            by_time = bool(trainer.strategy.broadcast(minutes >= self.every_minutes))
        received = self._interrupt.agreed(trainer)
        # The end is saved here, where the epoch is not over for Lightning: a run that its steps or its budget ended can
        # be extended.
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
        """Save the step before the evaluation if the run is asked to end in it."""
        if trainer.state.fn != "fit":
            return
        received = self._interrupt.agreed(trainer)
        if not received:
            return
        if trainer.global_step not in (0, self._saved_step):
            self._save(trainer, LAST)
        self._stop(trainer, received)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let the loops stand where the checkpoint's step is in this run's epochs.

        Raises:
            DataError: If the step is no number of steps.
        """
        step = checkpoint["global_step"]
        if type(step) is not int or step < 1:
            raise DataError(f"The checkpoint's global_step is {step!r:.100}. Expected a number of steps, at least 1.")
        if trainer.state.fn != "fit":
            return
        steps_per_epoch = RunCallback.data(trainer).steps_per_epoch
        checkpoint["loops"] = loops_after(step, trainer, steps_per_epoch)
        epoch, planned = (step - 1) // steps_per_epoch, trainer.max_epochs
        if planned not in (None, -1) and epoch > planned:
            trainer.fit_loop.max_epochs = epoch  # Lightning would refuse
            if trainer.is_global_zero:
                print(
                    f"Nothing is left to train: the checkpoint is of epoch {epoch}, and trainer.max_epochs is "
                    f"{planned}. Raise it to go on."
                )
        last = Path(trainer.default_root_dir, CHECKPOINTS, LAST)
        if last.resolve() == Path(str(trainer.ckpt_path)).resolve():
            self._saved_step = step

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave signals to what handled them before."""
        self._interrupt.release()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save again what this step saved before its validation, and the best so far by the monitored metric."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if self._saved_step == trainer.global_step:  # before this validation: a checkpoint carries the newest results
            self._save(trainer, LAST)
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
        """Save the finished run, unless its last step is saved already: it is if the run was not stopped early."""
        if self._saved_step != trainer.global_step:
            self._save(trainer, LAST)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave signals to what handled them before."""
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
        stopped.code = 128 + received  # as a shell says of a process that a signal ended: it is not done
        raise stopped


def save_whole(trainer: Trainer, name: str, *, keep_previous: bool = False) -> None:
    """Write a checkpoint into the run's folder: whole, or not at all.

    Args:
        trainer: The run's.
        name: Name of the file.
        keep_previous: Whether the last checkpoint, which this one replaces, stays as ``previous.ckpt``.

    Raises:
        TrainingError: If it cannot be written.
    """
    folder = Path(trainer.default_root_dir) / CHECKPOINTS
    path = folder / name
    try:
        if name == LAST and keep_previous and trainer.is_global_zero and path.exists():
            link_whole(path, folder / PREVIOUS)
        trainer.save_checkpoint(path)
    except OSError as error:
        before = folder / LAST
        kept = f"{before}, the checkpoint before it, is whole" if before.exists() else "There is none before it"
        raise TrainingError(
            f"The checkpoint of step {trainer.global_step} could not be written to {path}: {error.strerror or error}. "
            f"{kept}. Make room, then go on with --ckpt_path auto."
        ) from error
