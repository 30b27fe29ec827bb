"""Training of trials: each trial has a folder of its own, and the record in the folder states how the trial ended.

The folders hold the whole state of a search, so a killed search continues from them: a trial with a record is not
trained again, and a trial with a checkpoint continues from the checkpoint.
"""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from embedlab.search.jobs import JobRunner
from embedlab.search.launchers.launcher import Job, JobResult
from embedlab.search.loop import TrialRunner
from embedlab.search.policies.policy import TrialResult
from embedlab.search.space import Candidate, Space, Trial

CHECKPOINTS, _LAST = "checkpoints", "last.ckpt"


class TrialTrainer(TrialRunner):
    """Trains trials as jobs of ``embedlab fit``.

    Args:
        fit: Path of the configuration of ``embedlab fit`` that all runs share.
        folder: Folder for the trials, with one subfolder per trial.
        runner: Runner that trains the trials.
        space: Space that the trials belong to.
        keep_checkpoints: Keep the checkpoints of trials that have ended.
        on_end: Function that is called with each trial that has ended; None for no function.

    Attributes:
        errors: Error message of each failed trial.
    """

    def __init__(
        self,
        fit: Path,
        folder: Path,
        runner: JobRunner,
        space: Space,
        *,
        keep_checkpoints: bool = True,
        on_end: Callable[[Trial, JobResult], None] | None = None,
    ) -> None:
        self._fit = fit
        self._folder = folder
        self._runner = runner
        self._space = space
        self._keep_checkpoints = keep_checkpoints
        self._on_end = on_end
        self.errors: dict[Trial, str] = {}

    @property
    def _shares_trunk(self) -> bool:
        return self._space.cooldown < 1

    def run(self, trials: Sequence[Trial]) -> Iterable[TrialResult]:
        """Train trials, and yield the result of each trial when it ends.

        Raises:
            KeyboardInterrupt: If a trial was asked to stop.
            RecordError: If a record cannot be read.
        """
        for wave in self._waves(trials):
            of_job = {self._job(trial): trial for trial in wave}
            for ended in self._runner.run(list(of_job)):
                trial = of_job[ended.job]
                if ended.record is None or ended.record.status == "failed":
                    self.errors[trial] = str(ended.error)
                elif not self._keep_checkpoints:
                    self._forget(trial)
                if self._on_end is not None:
                    self._on_end(trial, ended)
                yield _result(trial, ended, self._trunk(trial, ended))

    def _waves(self, trials: Sequence[Trial]) -> list[list[Trial]]:
        """Return groups of trials that are trained one after another.

        Without a shared trunk, all trials are in one group. With a shared trunk, a run starts from the run with the
        next smaller budget, so each group has at most one trial per candidate.
        """
        if not self._shares_trunk:
            return [list(trials)]
        waves: list[list[Trial]] = []
        numbers: Counter[Candidate] = Counter()
        for trial in sorted(trials, key=lambda trial: trial.budget):
            number = numbers[trial.candidate]
            numbers[trial.candidate] += 1
            if number == len(waves):
                waves.append([])
            waves[number].append(trial)
        return waves

    def _job(self, trial: Trial) -> Job:
        options: dict[str, Any] = {"budget": trial.budget}
        if self._shares_trunk:
            options["branch.budgets"] = [trial.budget]
            points = [self._branch_point(smaller) for smaller in self._smaller(trial)]
            there = [point for point in points if point.exists()]
            if there:  # the last is the branch point of the trial with the next smaller budget
                options["branch.origin"] = str(there[-1])
        return job(self._fit, self._folder / trial.id, trial.id, trial.candidate, options)

    def _trunk(self, trial: Trial, ended: JobResult) -> float:
        """Return the FLOPs of the trunk that a trial shares with a smaller trial; 0 if the trial did not branch off."""
        spent = None if ended.record is None else ended.record.branch_flops
        if spent is None:
            return 0.0
        starts = [(1 - self._space.cooldown) * smaller.budget for smaller in self._smaller(trial)]
        return min(starts, key=lambda start: abs(start - spent), default=0.0)

    def _smaller(self, trial: Trial) -> list[Trial]:
        return [one for one in self._space.up_to(self._space.level(trial), trial.candidate) if one != trial]

    def _checkpoints(self, trial: Trial) -> Path:
        return self._folder / trial.id / CHECKPOINTS

    def _branch_point(self, trial: Trial) -> Path:
        return self._checkpoints(trial) / f"branch-{trial.budget:g}.ckpt"

    def _forget(self, trial: Trial) -> None:
        """Remove the checkpoints that no later trial needs, after a trial has ended."""
        over = [trial]
        if self._shares_trunk:  # a larger trial branches off this trial, and off no smaller trial
            over += self._smaller(trial)
            if trial != self._space.target(trial.candidate):
                over.remove(trial)
                (self._checkpoints(trial) / _LAST).unlink(missing_ok=True)
        for one in over:
            shutil.rmtree(self._checkpoints(one), ignore_errors=True)


def job(fit: Path, folder: Path, name: str, candidate: Candidate, options: Mapping[str, Any]) -> Job:
    """Return the job that trains a candidate.

    Args:
        fit: Path of the configuration of ``embedlab fit`` that all runs share.
        folder: Folder of the run.
        name: Name of the job.
        candidate: Candidate to train; its choices override the configuration.
        options: Further options of ``embedlab fit``, by dotted name; they override the configuration.
    """
    values: dict[str, Any] = {"model.backbone.path": candidate.backbone, "model.method": candidate.method}
    values |= {f"model.method.{name}": value for name, value in candidate.method_options.items()}
    if candidate.learning_rate is not None:
        values["model.optimizer.learning_rate"] = candidate.learning_rate
    values |= {"seed_everything": candidate.seed, "output": str(folder), "ckpt_path": "auto"}
    # A second checkpoint of each trial would double the disk space of a search.
    values |= {"checkpoint.keep_previous": False, **options}
    words = ["--config", str(fit)]
    for key, value in values.items():
        words += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
    return Job(name, tuple(words), folder)


def _result(trial: Trial, ended: JobResult, trunk: float) -> TrialResult:
    record = ended.record
    if record is None:
        return TrialResult(trial=trial, loss=math.inf, cost=0.0)
    loss = record.loss if record.status == "finished" and math.isfinite(record.loss) else math.inf
    # A run exceeds its budget by less than a step, and branches off within a step of the planned point. The search pays
    # the planned cost, so that its budget pays for all planned trials.
    spent = min(trial.budget, float(record.flops_algorithmic))
    return TrialResult(trial=trial, loss=loss, cost=max(0.0, spent - trunk))
