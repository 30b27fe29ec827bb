"""Trains to a budget of FLOPs: prints what the budget buys before the first step, and ends the run when it is spent."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer

from embedlab.errors import ConfigError
from embedlab.training.callbacks.base import RunCallback
from embedlab.training.callbacks.step_clock import TimeLeft

_STEPS_LOOKED_AT = 64  # number of steps over which the cost of a step is averaged
_STEPS_TIMED = 5
_TOLERANCE = 0.01  # relative error of the averaged cost that is allowed in the check of the number of epochs


def number_of_flops(value: float | str) -> float:
    """Return a budget in FLOPs from a number or its text, for example ``1e15``.

    Raises:
        ConfigError: If the budget is not a positive finite number.
    """
    try:
        flops = float(value)
    except (TypeError, ValueError):
        flops = math.nan
    if not (flops > 0 and math.isfinite(flops)):
        raise ConfigError(
            f"The budget must be a number of FLOPs above 0, got {value}. Write 1e15, for example; `embedlab flops` "
            "shows what a budget buys."
        )
    return flops


class FlopBudget(RunCallback):
    """Stop training at the step that crosses a budget of algorithmic FLOPs, attention included.

    The learning-rate schedule runs over the budget, so that the last step has the schedule's final learning rate.
    Only the budget ends the run. A budget that needs more epochs than ``trainer.max_epochs`` is refused before
    training, unless ``allow_repeat`` is set.

    Args:
        flops: Budget of the whole run in algorithmic FLOPs.
        allow_repeat: Whether to accept a budget that needs more epochs than ``trainer.max_epochs``.

    Raises:
        ConfigError: If the budget is not a positive finite number.
    """

    def __init__(self, flops: float, *, allow_repeat: bool = False) -> None:
        self.flops = number_of_flops(flops)
        self.allow_repeat = allow_repeat
        self._epochs = -1
        self._time_left = TimeLeft()
        self._steps_taken = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Set the module's budget, and lift the trainer's limits, so that only the budget ends the run.

        Raises:
            ConfigError: If the trainer has a number of steps at which the run ends, or a minimum number of steps or
                epochs that would continue the run beyond the budget.
        """
        if stage != "fit":
            return
        if trainer.max_steps != -1:
            raise ConfigError(
                f"Both a budget of {self.flops:g} FLOPs and trainer.max_steps {trainer.max_steps} are given, and only "
                "one can end the run. Leave one out."
            )
        if trainer.fit_loop.min_epochs or trainer.min_steps:
            raise ConfigError(
                f"trainer.min_epochs {trainer.fit_loop.min_epochs} and min_steps {trainer.min_steps} would keep the "
                f"run going after its budget of {self.flops:g} FLOPs is spent. Leave them out."
            )
        self.meter(trainer).account.budget = self.flops
        self._epochs = trainer.max_epochs if trainer.max_epochs is not None else 1
        trainer.fit_loop.max_epochs = -1

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print what the budget buys, before the evaluation that precedes training.

        Raises:
            ConfigError: If the budget buys less than a step or more epochs than allowed, if it is spent already, or if
                the FLOPs that the checkpoint has spent are not known.
        """
        module = self.module(trainer)
        meter = self.meter(trainer)
        if not meter.is_complete:
            raise ConfigError(
                "The checkpoint does not say how many FLOPs its run has spent, because they were not counted. The rest "
                f"of the budget of {self.flops:g} FLOPs is therefore unknown. Resume without --budget, or start a new "
                "run with --budget in another --output."
            )
        module.prepare_training()
        data = self.data(trainer)
        account, profile = meter.account, meter.profile
        assert profile is not None, "with a budget, a cost that cannot be observed is an error"
        if account.is_spent and module.record_is_owed is not None and module.record_is_owed():
            trainer.should_stop = True  # the run was killed in its last validation, which is all that is left to do
            if trainer.is_global_zero:
                print(f"The budget of {self.flops:g} FLOPs is spent. Only the evaluation for the run record is left.")
            return
        if account.is_spent:
            raise ConfigError(
                f"The checkpoint has spent {account.algorithmic:.4g} FLOPs, and the budget is {self.flops:g} FLOPs. "
                "Raise the budget to train more, or export the checkpoint as it is with `embedlab export`."
            )
        per_epoch = data.steps_per_epoch
        looked_at = np.unique(np.linspace(0, per_epoch - 1, _STEPS_LOOKED_AT).astype(int))
        costs = [profile.algorithmic(data.batch_lengths(int(step))) for step in looked_at]
        if costs[0] > self.flops:
            raise ConfigError(
                f"The budget of {self.flops:g} FLOPs is less than one step of {data.batch_size} pairs, which costs "
                f"{costs[0]:.4g} FLOPs. Raise the budget, or lower data.batch_size."
            )
        steps = self.flops / float(np.mean(costs))
        epochs = steps / per_epoch
        pairs = per_epoch * data.batch_size
        if self._epochs != -1 and epochs > (1 + _TOLERANCE) * self._epochs and not self.allow_repeat:
            raise ConfigError(
                f"The budget of {self.flops:g} FLOPs lasts for {epochs:.3g} epochs of {pairs:,} pairs, but "
                f"trainer.max_epochs is {self._epochs}. Give more data, set trainer.max_epochs to "
                f"{math.ceil(epochs)}, or add --allow_repeat."
            )
        if trainer.is_global_zero:
            print(
                f"The budget of {self.flops:g} FLOPs buys about {steps * data.batch_size:,.0f} pairs: {steps:,.0f} "
                f"steps of {data.batch_size}, {epochs:.3g} epochs of {pairs:,} pairs."
                + (f" {account.algorithmic:.4g} FLOPs are spent already." if account.algorithmic else "")
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restart the clock after a validation, whose time does not count as training."""
        self._time_left.resume()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Print, after a few steps, how long the budget will last."""
        module = self.module(trainer)
        self._steps_taken += 1
        if self._steps_taken == 1:  # the first step warms up caches, so it is not timed
            self._time_left.start(module.share_done)
            return
        self._time_left.step()
        if self._steps_taken == 1 + _STEPS_TIMED and trainer.is_global_zero:
            left = self._time_left.after(module.share_done)
            print(f"The budget will be spent in about {left}, not counting evaluation.")
