"""A trainer in which trials are trained: each in a folder of its own, whose record says how it ended.

The folders are all that a search leaves behind, so one that was killed goes on from them: what has a record is not run
again, what has a checkpoint goes on from it.
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
    """Trains trials.

    Args:
        fit: configuration of ``embedlab fit``, which each trial is laid over.
        folder: for the trials; each has one of its own in it.
        runner: of their jobs.
        space: that they are of.
        keep_checkpoints: of trials that have ended.
        on_end: is told of each trial that has ended.

    Attributes:
        errors: of trials that failed, by trial.
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
        """The result of each trial, as it ends.

        Raises:
            KeyboardInterrupt: if a trial was asked to stop.
            RecordError: if a record cannot be read.
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
        """All at once, but where they share a trunk, in which a run goes on from the next smaller one."""
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
            if there:  # that of the next smaller trial is the last
                options["branch.origin"] = str(there[-1])
        return job(self._fit, self._folder / trial.id, trial.id, trial.candidate, options)

    def _trunk(self, trial: Trial, ended: JobResult) -> float:
        """FLOPs that were another trial's: up to where that one began to decay."""
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
        """Removes what no other trial can go on from."""
        over = [trial]
        if self._shares_trunk:  # a larger trial goes on from this one, and from none below it
            over += self._smaller(trial)
            if trial != self._space.target(trial.candidate):
                over.remove(trial)
                (self._checkpoints(trial) / _LAST).unlink(missing_ok=True)
        for one in over:
            shutil.rmtree(self._checkpoints(one), ignore_errors=True)


def job(fit: Path, folder: Path, name: str, candidate: Candidate, options: Mapping[str, Any]) -> Job:
    """How a candidate is trained.

    Args:
        fit: configuration of ``embedlab fit``.
        folder: of the run.
        name: of the job.
        candidate: that is laid over the configuration.
        options: more of ``embedlab fit``.
    """
    values: dict[str, Any] = {"model.backbone.path": candidate.backbone, "model.method": candidate.method}
    values |= {f"model.method.{name}": value for name, value in candidate.method_options.items()}
    if candidate.learning_rate is not None:
        values["model.optimizer.learning_rate"] = candidate.learning_rate
    values |= {"seed_everything": candidate.seed, "output": str(folder), "ckpt_path": "auto"}
    # A second checkpoint of each trial would double what a search takes of the disk.
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
    # A run overshoots its budget by less than a step, and branches off within a step of where it should. What was
    # planned is what is paid, so that the budget of a search pays for all the trials that it was made for.
    spent = min(trial.budget, float(record.flops_algorithmic))
    return TrialResult(trial=trial, loss=loss, cost=max(0.0, spent - trunk))
