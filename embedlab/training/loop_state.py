"""Computes the state of Lightning's loops after a training step, so that a run resumes from its number of steps alone.

Lightning keeps dozens of counters in a checkpoint. The counters depend on when the checkpoint was written and on
earlier resumes: a run that is stopped again after it resumed at the end of an epoch would miscount. All counters follow
from the number of steps, so this module takes only that number from a checkpoint.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer


def loops_after(step: int, trainer: Trainer, steps_per_epoch: int) -> dict[str, Any]:
    """Return the state of the trainer's loops at the end of a training step, before any evaluation after the step.

    Args:
        step: Number of optimizer steps taken, at least 1.
        trainer: Trainer whose loops have not started.
        steps_per_epoch: Number of steps per epoch.
    """
    epoch, place = divmod(step - 1, steps_per_epoch)
    fit: dict[str, Any] = trainer.fit_loop.state_dict()
    fit["epoch_progress"] |= dict.fromkeys(("total", "current"), _under_way(epoch + 1) | {"processed": epoch})
    fit["epoch_loop.state_dict"] = {"_batches_that_stepped": step - 1}
    fit["epoch_loop.batch_progress"] = {
        "total": _under_way(step),
        "current": _under_way(place + 1),
        "is_last_batch": place + 1 == steps_per_epoch,
    }
    taken = {"ready": step, "completed": step}
    fit["epoch_loop.manual_optimization.optim_step_progress"] = {"total": taken, "current": taken}
    others = {name: getattr(trainer, name).state_dict() for name in ("validate_loop", "test_loop", "predict_loop")}
    return {"fit_loop": fit, **others}


def _under_way(number: int) -> dict[str, int]:
    """Return the counters of a loop that has processed, but not completed, its n-th iteration."""
    return {"ready": number, "started": number, "processed": number, "completed": number - 1}
