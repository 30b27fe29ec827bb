"""Saves checkpoints where a decay of the learning rate would begin, so that runs of many budgets share their steps."""

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
"""Key of a checkpoint that marks it as a branch point."""

_SCHEDULE = "--model.schedule WarmupStableDecay"


class BranchPoints(RunCallback):
    """Save ``checkpoints/branch-<budget>.ckpt`` for shorter and longer runs to branch off, and check each branch.

    Under ``WarmupStableDecay``, a run (the trunk) has a constant learning rate until its decay. For each budget, the
    trunk saves a checkpoint (the branch point) where a run with this budget would begin to decay, before the first step
    at a lower learning rate. A branch is a run that resumes from a branch point in its own folder, with ``--budget``
    and the trunk's schedule. The branch decays over the full share of its own budget. On CPU, the branch has the same
    bits as a run with its budget from the start that warms up over as many FLOPs as the trunk. The trunk need not be
    the longest run: a branch may continue at the constant learning rate past the end of the trunk, and save branch
    points of its own.

    Args:
        budgets: Budgets of the whole runs that may branch off, in FLOPs, each at most the run's own ``--budget``. The
            name of a checkpoint has at most six digits of its budget (``{budget:g}``).
        origin: Branch point from which a run with ``--ckpt_path auto`` starts, unless the run's folder has a
            checkpoint.

    Raises:
        ConfigError: If a budget is not a positive finite number, or two budgets give the same file name.
    """

    def __init__(self, *, budgets: Sequence[float] = (), origin: str | None = None) -> None:
        for budget in budgets:
            if not (math.isfinite(budget) and budget > 0):
                raise ConfigError(f"branch.budgets has {budget}. Expected finite FLOPs above 0.")
        for name, number in Counter(map(_name, budgets)).items():
            if number > 1:
                raise ConfigError(
                    f"branch.budgets has {number} budgets whose checkpoint is {name}. Leave {number - 1} of them out."
                )
        self.budgets = sorted(budgets)
        self.origin = origin
        self._pending: list[float] = []
        self._is_branch = False  # whether the run resumes from a branch point
        self._step = 0  # step of the checkpoint, which the trainer does not know yet when training begins
        self._is_marking = False

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note the step of the checkpoint, and whether the checkpoint is a branch point."""
        self._is_branch, self._step = bool(checkpoint.get(MARK)), int(checkpoint["global_step"])

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Mark the checkpoint if it is a branch point."""
        if self._is_marking:
            checkpoint[MARK] = True

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the run may continue a trunk, and plan the checkpoints from which branches of this run can start.

        A branch is a run that continues another run, the trunk, from a checkpoint that the trunk left for this.

        Raises:
            ConfigError: If the branch would differ from a run that is trained from the backbone, or if this run ends
                before one of its own branch points.
        """
        module = self.module(trainer)
        if self._is_branch:
            self._check_branch(trainer, module)
        if not self.budgets:
            return
        schedule = _schedule(module, "branch.budgets needs")
        account = self.meter(trainer).account
        budget = _budget(module, "branch.budgets needs")
        first, last = self.budgets[0], self.budgets[-1]
        if last > budget:
            raise ConfigError(
                f"branch.budgets has {last:g}, and the run's own budget is {budget:g}. Raise --budget, or leave the "
                "larger budget out: a run with a larger budget can branch off any of the other points."
            )
        if schedule.warmup * budget > schedule.decay_start * first:
            raise ConfigError(
                f"The run warms up over {schedule.warmup:g} of its budget, {schedule.warmup * budget:.4g} FLOPs, but "
                f"a run of {first:g} FLOPs would begin to decay at {schedule.decay_start * first:.4g} FLOPs. Lower "
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
                what = f"the checkpoint has spent {spent:.4g} FLOPs" if resumed else "the first step costs more"
                raise ConfigError(
                    f"A run of {one:g} FLOPs (branch.budgets) would begin to decay at {schedule.decay_start * one:.4g} "
                    f"FLOPs, but {what}. Leave this budget out, or start "
                    + ("a new trunk in another --output." if resumed else "with smaller batches.")
                )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save the branch points that the next step would pass.

        Raises:
            TrainingError: If a branch point cannot be written.
        """
        module = self.module(trainer)
        if not self._pending:
            return
        after = self.meter(trainer).account.algorithmic + _cost_of(trainer.global_step, trainer, module)
        schedule = _schedule(module, "branch.budgets needs")
        while self._pending and _decays(schedule, self._pending[0], after):
            self._is_marking = True
            save_whole(trainer, _name(self._pending.pop(0)))
            self._is_marking = False

    def _check_branch(self, trainer: Trainer, module: EmbeddingModule) -> None:
        who = "The checkpoint is a branch point, and a run that branches off it needs"
        schedule, budget = _schedule(module, who), _budget(module, who)
        spent = self.meter(trainer).account.algorithmic
        if _decays(schedule, budget, spent):
            raise ConfigError(
                f"A run of {budget:g} FLOPs begins to decay at {schedule.decay_start * budget:.4g} FLOPs, but its "
                f"branch point has spent {spent:.4g} FLOPs. Use a branch point whose budget is at most {budget:g}, or "
                "raise --budget."
            )
        first = spent + _cost_of(self._step, trainer, module)
        if first < schedule.warmup * budget:
            raise ConfigError(
                f"The branch would warm up again: its warm-up takes {schedule.warmup:g} of its budget, "
                f"{schedule.warmup * budget:.4g} FLOPs, but its branch point has spent {spent:.4g} FLOPs. Lower "
                f"model.schedule.warmup to {spent / budget:.2g} or less, or lower --budget."
            )
        if trainer.is_global_zero:
            print(
                f"This run branches off at step {self._step}, after {spent:.4g} FLOPs. Its learning rate decays from "
                f"{max(float(spent), schedule.decay_start * budget):.4g} FLOPs on."
            )


def _name(budget: float) -> str:
    return f"branch-{budget:g}.ckpt"


def _folder(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir) / CHECKPOINTS


def _decays(schedule: WarmupStableDecay, budget: float, flops: float) -> bool:
    """Return whether the step that ends after ``flops`` has a lowered learning rate in a run with ``budget``."""
    return (
        min(1.0, flops / budget) > schedule.decay_start
    )  # the arithmetic of FlopAccount and the schedule, bit for bit


def _cost_of(step: int, trainer: Trainer, module: EmbeddingModule) -> int:
    module.prepare_training()
    data = RunCallback.data(trainer)
    profile = module.flop_meter.profile
    assert profile is not None, "with a budget, a cost that cannot be observed is an error"
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
