"""Checkpoints where decays begin: runs of many budgets share the part at a constant rate, and it is paid for once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from embedlab.errors import ConfigError
from embedlab.training.callbacks.base import RunCallback
from embedlab.training.callbacks.checkpoint import save_whole
from embedlab.training.checkpoint_file import CHECKPOINTS
from embedlab.training.module import EmbeddingModule
from embedlab.training.schedule import WarmupStableDecay

MARK = "branch_point"
"""What a checkpoint holds that another run may branch off."""

_SCHEDULE = "--model.schedule WarmupStableDecay"


class BranchPoints(RunCallback):
    """Keeps ``checkpoints/branch-<budget>.ckpt`` for shorter and longer runs to branch off, and checks those that do.

    Under ``WarmupStableDecay`` a run (the trunk) has a constant rate until its decay. Where a run of a budget would
    begin to decay, before the first step at a lower rate, the trunk leaves a checkpoint. A run that goes on from it in
    a folder of its own, with ``--budget`` and the same schedule, is a branch: it decays over the full share of its
    budget. It has the same bits on CPU as a run of that budget from the start that warms up over as many FLOPs as the
    trunk. Nothing says that the trunk must be the longest run: a branch may go on at the constant rate, past the end of
    the trunk, and leave branch points of its own.

    Args:
        budgets: FLOPs of whole runs, up to the run's own ``--budget``; names have six digits (``{budget:g}``).
        origin: branch point that a run with ``--ckpt_path auto`` begins from, unless it has a checkpoint of its own.

    Raises:
        ConfigError: if a budget is no positive number, or two have the same name.
    """

    def __init__(self, *, budgets: Sequence[float] = (), origin: str | None = None) -> None:
        for budget in budgets:
            if not (math.isfinite(budget) and budget > 0):
                raise ConfigError(f"branch.budgets has {budget}. Expected finite FLOPs above 0.")
        for name, number in Counter(map(_name, budgets)).items():
            if number > 1:
                raise ConfigError(
                    f"branch.budgets has {number} budgets whose checkpoint is {name}. Leave {number - 1} out."
                )
        self.budgets = sorted(budgets)
        self.origin = origin
        self._pending: list[float] = []
        self._is_branch = False  # the run goes on from a branch point
        self._step = 0  # of that checkpoint: the trainer does not know it yet when training begins
        self._is_marking = False

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Notes where the checkpoint stands, and whether it is a branch point."""
        self._is_branch, self._step = bool(checkpoint.get(MARK)), int(checkpoint["global_step"])

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Marks a branch point as one."""
        if self._is_marking:
            checkpoint[MARK] = True

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks a branch, and plans the run's own branch points.

        Raises:
            ConfigError: if a branch would not be what a run from the start is, or a point cannot be reached.
        """
        module = self.module(trainer)
        if self._is_branch:
            self._check_branch(trainer, module)
        if not self.budgets:
            return
        schedule = _schedule(module, "branch.budgets needs")
        account = module.flop_meter.account
        budget = _budget(module, "branch.budgets needs")
        first, last = self.budgets[0], self.budgets[-1]
        if last > budget:
            raise ConfigError(
                f"branch.budgets has {last:g}, and the run's own budget is {budget:g}. Raise --budget, or leave that "
                "one out: a run may branch off to any larger budget."
            )
        if schedule.warmup * budget > schedule.decay_start * first:
            raise ConfigError(
                f"The run warms up over {schedule.warmup:g} of its budget, {schedule.warmup * budget:.4g} FLOPs, and "
                f"a run of {first:g} would begin to decay at {schedule.decay_start * first:.4g}. Lower "
                f"model.schedule.warmup to {schedule.decay_start * first / budget:.2g} or less, or leave small "
                "budgets out of branch.budgets."
            )
        folder = _folder(trainer)
        resumed = trainer.ckpt_path is not None
        there = [one for one in self.budgets if resumed and (folder / _name(one)).exists()]
        there = trainer.strategy.broadcast(there)
        self._pending = [one for one in self.budgets if one not in there]
        spent = account.algorithmic
        for one in self._pending:
            if _decays(schedule, one, spent + _cost_of(self._step, trainer, module)):
                what = f"the checkpoint has spent {spent:.4g}" if resumed else "the first step costs more"
                raise ConfigError(
                    f"A run of {one:g} FLOPs (branch.budgets) would begin to decay at {schedule.decay_start * one:.4g},"
                    f" and {what}. Leave it out, or begin "
                    + ("a trunk anew in another --output." if resumed else "with smaller batches.")
                )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves the points that the next step would pass.

        Raises:
            TrainingError: if one cannot be written.
        """
        module = self.module(trainer)
        if not self._pending:
            return
        after = module.flop_meter.account.algorithmic + _cost_of(trainer.global_step, trainer, module)
        schedule = _schedule(module, "branch.budgets needs")
        while self._pending and _decays(schedule, self._pending[0], after):
            self._is_marking = True
            save_whole(trainer, _name(self._pending.pop(0)))
            self._is_marking = False

    def _check_branch(self, trainer: Trainer, module: EmbeddingModule) -> None:
        who = "The checkpoint is a branch point, and a run that branches off it needs"
        schedule, budget = _schedule(module, who), _budget(module, who)
        spent = module.flop_meter.account.algorithmic
        if _decays(schedule, budget, spent):
            raise ConfigError(
                f"A run of {budget:g} FLOPs begins to decay at {schedule.decay_start * budget:.4g}, and its branch "
                f"point has spent {spent:.4g}. Take a branch point of at most that budget, or raise --budget."
            )
        first = spent + _cost_of(self._step, trainer, module)
        if first < schedule.warmup * budget:
            raise ConfigError(
                f"The branch would warm up again: over {schedule.warmup:g} of its budget, "
                f"{schedule.warmup * budget:.4g} FLOPs, and its branch point has spent {spent:.4g}. Lower "
                f"model.schedule.warmup to {spent / budget:.2g} or less, or --budget."
            )
        if trainer.is_global_zero:
            print(
                f"Branches off at step {self._step}, after {spent:.4g} FLOPs. The learning rate decays from "
                f"{max(float(spent), schedule.decay_start * budget):.4g} on."
            )


def _name(budget: float) -> str:
    return f"branch-{budget:g}.ckpt"


def _folder(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir) / CHECKPOINTS


def _decays(schedule: WarmupStableDecay, budget: float, flops: float) -> bool:
    """Whether the step that ends after so many FLOPs has a lower rate in a run of a budget."""
    return min(1.0, flops / budget) > schedule.decay_start  # as FlopAccount and the schedule reckon, to the bit


def _cost_of(step: int, trainer: Trainer, module: EmbeddingModule) -> int:
    module.prepare_training()
    data = RunCallback.data(trainer)
    profile = module.flop_meter.profile
    assert profile is not None, "with a budget, what cannot be observed is an error"
    return profile.algorithmic(data.batch_lengths(step))


def _schedule(module: EmbeddingModule, who: str) -> WarmupStableDecay:
    schedule = module.schedule
    if not isinstance(schedule, WarmupStableDecay) or schedule.decay == 0:
        name = type(schedule).__name__
        raise ConfigError(
            f"{who} a schedule with a constant rate before its decay, got {name}"
            f"{' without a decay' if isinstance(schedule, WarmupStableDecay) else ''}. Use {_SCHEDULE}."
        )
    return schedule


def _budget(module: EmbeddingModule, who: str) -> float:
    budget = module.flop_meter.account.budget
    if budget is None:
        raise ConfigError(f"{who} a --budget: the FLOPs of the whole run, from its first step on.")
    return budget
