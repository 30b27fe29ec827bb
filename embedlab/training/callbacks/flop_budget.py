"""Training to a budget of FLOPs: how far it reaches is said before the first step, and it ends where it is spent."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer

from embedlab.errors import ConfigError
from embedlab.training.callbacks.base import RunCallback
from embedlab.training.callbacks.step_clock import TimeLeft

_STEPS_LOOKED_AT = 64  # for the mean cost of a step
_STEPS_TIMED = 5
_TOLERANCE = 0.01  # of that mean, in telling whether the data last


def number_of_flops(value: float | str) -> float:
    """A budget as it is written.

    Raises:
        ConfigError: if it is no positive number.
    """
    try:
        flops = float(value)
    except (TypeError, ValueError):
        flops = math.nan
    if not (flops > 0 and math.isfinite(flops)):
        raise ConfigError(
            f"The budget must be a number of FLOPs above 0, got {value}. 1e15 for instance; `embedlab flops` shows "
            "what budgets buy."
        )
    return flops


class FlopBudget(RunCallback):
    """Stops training at the step that crosses a budget of algorithmic FLOPs, attention included.

    The learning-rate schedule runs over the budget, so that the last step has the schedule's last rate.
    ``trainer.max_epochs`` says how often the data may be seen; the run ends by its budget alone.

    Args:
        flops: the budget.
        allow_repeat: see the data more often than ``trainer.max_epochs`` if the budget lasts longer.

    Raises:
        ConfigError: if the budget is no positive number.
    """

    def __init__(self, flops: float, *, allow_repeat: bool = False) -> None:
        self.flops = number_of_flops(flops)
        self.allow_repeat = allow_repeat
        self._epochs = -1
        self._time_left = TimeLeft()
        self._steps_taken = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives the module its budget, and lets nothing else end the run.

        Raises:
            ConfigError: if a number of steps is to end the run, or to keep it going, too.
        """
        module = self.module(trainer)
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
                f"run going when its budget of {self.flops:g} FLOPs is spent. Leave them out."
            )
        module.flop_meter.account.budget = self.flops
        self._epochs = trainer.max_epochs if trainer.max_epochs is not None else 1
        trainer.fit_loop.max_epochs = -1

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says what the budget buys, before the evaluation that precedes training.

        Raises:
            ConfigError: if that is less than a step or more than the data may be seen, if it is spent already, or if
                what the checkpoint has spent is not known.
        """
        module = self.module(trainer)
        if not module.flop_meter.is_complete:
            raise ConfigError(
                "The checkpoint does not say how many FLOPs its run has spent, because they were not counted, so what "
                f"is left of the budget of {self.flops:g} is unknown. Go on without --budget, or begin a run with it "
                "in another --output."
            )
        module.prepare_training()
        data = RunCallback.data(trainer)
        account, profile = module.flop_meter.account, module.flop_meter.profile
        assert profile is not None, "with a budget, what cannot be observed is an error"
        if account.is_spent and module.record_is_owed is not None and module.record_is_owed():
            trainer.should_stop = True  # it was killed in its last validation, which is all that is left to do
            if trainer.is_global_zero:
                print(f"The budget of {self.flops:g} FLOPs is spent, and the run is evaluated for its record.")
            return
        if account.is_spent:
            raise ConfigError(
                f"The checkpoint has spent {account.algorithmic:.4g} FLOPs, and the budget is {self.flops:g}. Raise "
                "the budget to go on; `embedlab export` takes the checkpoint as it is."
            )
        per_epoch = data.steps_per_epoch
        looked_at = np.unique(np.linspace(0, per_epoch - 1, _STEPS_LOOKED_AT).astype(int))
        costs = [profile.algorithmic(data.batch_lengths(int(step))) for step in looked_at]
        if costs[0] > self.flops:
            raise ConfigError(
                f"The budget of {self.flops:g} FLOPs is less than one step of {data.batch_size} pairs, which costs "
                f"{costs[0]:.4g}. Raise it, or lower data.batch_size."
            )
        steps = self.flops / float(np.mean(costs))
        epochs = steps / per_epoch
        pairs = per_epoch * data.batch_size
        if self._epochs != -1 and epochs > (1 + _TOLERANCE) * self._epochs and not self.allow_repeat:
            raise ConfigError(
                f"The budget of {self.flops:g} FLOPs lasts for {epochs:.3g} epochs of {pairs:,} pairs, and "
                f"trainer.max_epochs is {self._epochs}. Give more data, set trainer.max_epochs to "
                f"{math.ceil(epochs)}, or add --allow_repeat."
            )
        if trainer.is_global_zero:
            print(
                f"The budget of {self.flops:g} FLOPs buys about {steps * data.batch_size:,.0f} pairs: {steps:,.0f} "
                f"steps of {data.batch_size}, {epochs:.3g} epochs of {pairs:,} pairs."
                + (f" {account.algorithmic:.4g} of it are spent." if account.algorithmic else "")
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lets the clock go on: validation is no training."""
        self._time_left.resume()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Says, after a few steps, how long the budget will last."""
        module = self.module(trainer)
        self._steps_taken += 1
        if self._steps_taken == 1:  # it warms caches up
            self._time_left.start(module.share_done)
            return
        self._time_left.step()
        if self._steps_taken == 1 + _STEPS_TIMED and trainer.is_global_zero:
            print(f"It is spent in about {self._time_left.after(module.share_done)}, evaluation not counted.")
