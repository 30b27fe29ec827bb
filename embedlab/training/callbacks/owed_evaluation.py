"""The evaluation that a run was killed or stopped in, done when the run goes on: Lightning would leave it out."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer

from embedlab.training.callbacks.base import RunCallback

_IS_DUE = "evaluation_is_due"  # what a checkpoint says of its last step


class OwedEvaluation(RunCallback):
    """Evaluate a resumed run where its checkpoint's last step was to be evaluated and had not been."""

    def __init__(self) -> None:
        self._due_step = -1  # the last step after which there is an evaluation
        self._is_owed = False

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note whether the checkpoint's last step is to be evaluated yet."""
        step = checkpoint["global_step"]
        self._is_owed = checkpoint.get(_IS_DUE) is True and checkpoint.get("evaluated_step") != step
        self._due_step = step if self._is_owed else -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate before the next step."""
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
        """Say whether the last step is to be evaluated."""
        checkpoint[_IS_DUE] = self._due_step == trainer.global_step


def evaluate_last_step(trainer: Trainer) -> None:
    """Evaluate, and log the results beside the values of the last training step, to which they belong."""
    epoch_loop = trainer.fit_loop.epoch_loop
    epoch_loop.val_loop.restarting = False  # all of it, whatever had been done when the checkpoint was written
    steps, epoch_loop._batches_that_stepped = epoch_loop._batches_that_stepped, trainer.global_step - 1
    trainer.validating = True
    epoch_loop.val_loop.run()
    trainer.training = True
    epoch_loop._batches_that_stepped = steps
