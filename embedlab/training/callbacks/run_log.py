"""Keeps the TensorBoard events of a run complete and without duplicates when the run is killed and resumed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.compat.proto.event_pb2 import Event, SessionLog

from embedlab.errors import DataError
from embedlab.training.callbacks.base import RunCallback

_EVENTS = "events.out.tfevents."
_LOGGED = "logged"  # key in a checkpoint: the logged values of its last step


class RunLogger(TensorBoardLogger):
    """A TensorBoard logger that writes its events into a run's folder, and each value of a step once.

    Args:
        folder: Folder of the run.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, name="", version="", default_hp_metric=False)
        older = [path.name for path in folder.glob(f"{_EVENTS}*")]
        self._has_older_events = bool(older)
        # TensorBoard reads files in the order of their names, in which the second of their creation comes first.
        while any(name.startswith(f"{_EVENTS}{int(time.time())}.") for name in older):
            time.sleep(0.05)
        self._newest: dict[str, int] = {}

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Write the values, except values whose name already has a value at this step or a later step."""
        if step is None:
            super().log_metrics(dict(metrics), step)
            return
        new = {name: value for name, value in metrics.items() if self._newest.get(name, -1) < step}
        self._newest |= dict.fromkeys(new, step)
        super().log_metrics(new, step)

    def forget_from(self, step: int) -> None:
        """Hide the events from this step on that other processes have written into the folder."""
        if not self._has_older_events:
            return
        event = Event(wall_time=time.time(), step=step, session_log=SessionLog(status=SessionLog.START))
        self.experiment._get_file_writer().add_event(event, step)

    def flush(self) -> None:
        """Write waiting events to the file, because a process that is killed loses them."""
        self.experiment.flush()


class RunLog(RunCallback):
    """Continue the log of a resumed run at the step of its checkpoint.

    A checkpoint holds the values of its last step, because Lightning logs them only after the checkpoint is saved. A
    resumed run hides all values that were logged from this step on, and logs the values of the checkpoint again.
    """

    def __init__(self) -> None:
        self._step = -1  # step of the values below
        self._values: dict[str, float] = {}
        self._resumed: Mapping[str, Any] | None = None
        self._is_ready = False

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the logged values of the checkpoint's last step.

        Raises:
            DataError: If the checkpoint holds anything other than a step, names and numbers.
        """
        logged = checkpoint.get(_LOGGED)  # older checkpoints lack the values
        if logged is not None and not _is_sound(logged):
            raise DataError(f"The checkpoint's logged values are {logged!r:.100}. Expected a step and its values.")
        self._resumed = logged
        if logged is not None:
            self._step, self._values = logged["step"] + 1, dict(logged["values"])

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the log."""
        self._begin(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the log, or continue the log of a resumed run."""
        self._begin(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Continue the log of a resumed run of which only an evaluation is left."""
        self._begin(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the values of the step that has just ended, because Lightning has not logged them yet."""
        self._step = trainer.global_step
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it by name
        self._values = _values(trainer) if every and trainer.global_step % every == 0 else {}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Flush the log, and store the values of the last step in the checkpoint."""
        module = self.module(trainer)
        for logger in _run_loggers(trainer):
            logger.flush()
        step = trainer.global_step
        values = dict(self._values) if self._step == step else {}
        evaluated = module.evaluated_step
        if evaluated == step or (step == 1 and evaluated == 0):
            epoch = (step - 1) // self.data(trainer).steps_per_epoch
            values = {"epoch": float(epoch)} | values | module.evaluation
        checkpoint[_LOGGED] = {"step": step - 1, "values": values}

    def _begin(self, trainer: Trainer) -> None:
        if self._is_ready or trainer.state.fn != "fit":
            return
        self._is_ready = True
        folder = Path(trainer.default_root_dir).resolve()
        is_own = trainer.ckpt_path is not None and folder in Path(str(trainer.ckpt_path)).resolve().parents
        if trainer.ckpt_path is not None and not is_own:
            return
        resumed = self._resumed or {"step": trainer.global_step, "values": {}}
        for logger in _run_loggers(trainer):
            logger.forget_from(resumed["step"])
            logger.log_metrics(resumed["values"], resumed["step"])


def _is_sound(logged: object) -> bool:
    values = logged.get("values") if isinstance(logged, dict) else None
    numbers = isinstance(values, dict) and all(isinstance(one, int | float) for one in values.values())
    return numbers and isinstance(logged, dict) and isinstance(logged.get("step"), int) and logged["step"] >= -1


def _run_loggers(trainer: Trainer) -> list[RunLogger]:
    return [one for one in trainer.loggers if isinstance(one, RunLogger)] if trainer.is_global_zero else []


def _values(trainer: Trainer) -> dict[str, float]:
    """Return the values that Lightning will log for the training step that has just ended."""
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    found = {name: value for name, value in found.items() if not name.startswith(("validation/", "test/"))}
    return found | {"epoch": float(trainer.current_epoch)}
