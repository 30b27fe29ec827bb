"""Repeats the evaluation in which a run was killed or stopped when the run resumes, because Lightning would skip it."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer

from embedlab.training.callbacks.base import RunCallback

_IS_DUE = "evaluation_is_due"  # key in a checkpoint: whether an evaluation follows its last step


class OwedEvaluation(RunCallback):
    """Evaluate a resumed run at once if an evaluation was due after its checkpoint's last step and is missing."""

    def __init__(self) -> None:
        self._due_step = -1  # the last step after which an evaluation is due
        self._is_owed = False

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note whether an evaluation after the checkpoint's last step is missing."""
        step = checkpoint["global_step"]
        self._is_owed = checkpoint.get(_IS_DUE) is True and checkpoint.get("evaluated_step") != step
        self._due_step = step if self._is_owed else -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run a missing evaluation before the next step."""
        if self._is_owed:
            self._is_owed = False
            evaluate_last_step(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note whether Lightning will evaluate after this step."""
        fetcher = trainer.fit_loop._data_fetcher
        assert fetcher is not None
        if trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher):
            self._due_step = trainer.global_step

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store in the checkpoint whether an evaluation is due after its last step."""
        checkpoint[_IS_DUE] = self._due_step == trainer.global_step


def evaluate_last_step(trainer: Trainer) -> None:
    """Evaluate the model, and log the results at the last training step, to which they belong."""
    epoch_loop = trainer.fit_loop.epoch_loop
    epoch_loop.val_loop.restarting = False  # the whole evaluation, even if a part was done before the checkpoint
    steps, epoch_loop._batches_that_stepped = epoch_loop._batches_that_stepped, trainer.global_step - 1
    trainer.validating = True
    epoch_loop.val_loop.run()
    trainer.training = True
    epoch_loop._batches_that_stepped = steps
