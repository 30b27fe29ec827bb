"""TensorBoard's events of a run that was killed and gone on with: each step's values once, and none missing."""

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
_LOGGED = "logged"  # what a checkpoint holds of its last step's values


class RunLogger(TensorBoardLogger):
    """TensorBoard's events in a run's folder, where a value of a step is written once.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, name="", version="", default_hp_metric=False)
        older = [path.name for path in folder.glob(f"{_EVENTS}*")]
        self._has_older_events = bool(older)
        # TensorBoard reads files in the order of their names, which begin with the second they were begun in.
        while any(name.startswith(f"{_EVENTS}{int(time.time())}.") for name in older):
            time.sleep(0.05)
        self._newest: dict[str, int] = {}

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Write values, but those whose name has a value of this or a later step."""
        if step is None:
            super().log_metrics(dict(metrics), step)
            return
        new = {name: value for name, value in metrics.items() if self._newest.get(name, -1) < step}
        self._newest |= dict.fromkeys(new, step)
        super().log_metrics(new, step)

    def forget_from(self, step: int) -> None:
        """Hide the events of this and later steps that another process has written into the folder."""
        if not self._has_older_events:
            return
        event = Event(wall_time=time.time(), step=step, session_log=SessionLog(status=SessionLog.START))
        self.experiment._get_file_writer().add_event(event, step)

    def flush(self) -> None:
        """Bring the events to the file: a process that is killed loses those that wait."""
        self.experiment.flush()


class RunLog(RunCallback):
    """Take up a run's log where its checkpoint stands.

    A checkpoint holds the values that belong to its last step, since Lightning logs them after it is saved. A run that
    goes on from it hides what was logged from that step on, and logs those values again.
    """

    def __init__(self) -> None:
        self._step = -1  # of the values below
        self._values: dict[str, float] = {}
        self._resumed: Mapping[str, Any] | None = None
        self._is_ready = False

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the values of the checkpoint's last step.

        Raises:
            DataError: If they are something else.
        """
        logged = checkpoint.get(_LOGGED)  # older checkpoints have none
        if logged is not None and not _is_sound(logged):
            raise DataError(f"The checkpoint's logged values are {logged!r:.100}. Expected a step and numbers by name.")
        self._resumed = logged
        if logged is not None:
            self._step, self._values = logged["step"] + 1, dict(logged["values"])

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a log."""
        self._begin(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a log, or take one up."""
        self._begin(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take up a log of a run of which nothing but an evaluation is left."""
        self._begin(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the values of the step that has just ended, which Lightning has not logged yet."""
        self._step = trainer.global_step
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it by name
        self._values = _values(trainer) if every and trainer.global_step % every == 0 else {}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Flush the log, and add the values of the step at which it ends."""
        module = self.module(trainer)
        for logger in _run_loggers(trainer):
            logger.flush()
        step = trainer.global_step
        values = dict(self._values) if self._step == step else {}
        evaluated = module.evaluated_step
        if evaluated == step or (step == 1 and evaluated == 0):
            epoch = (step - 1) // RunCallback.data(trainer).steps_per_epoch
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
    """What Lightning will log of the training step that has just ended."""
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    found = {name: value for name, value in found.items() if not name.startswith(("validation/", "test/"))}
    return found | {"epoch": float(trainer.current_epoch)}
