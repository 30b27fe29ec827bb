"""A world in which trials are trained: each in a folder of its own, whose record says how it ended.

The folders are all that a search leaves behind, so one that was killed goes on from them: what has a record is not run
again, what has a checkpoint goes on from it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from embedlab.search.job_runner import Ended, JobRunner
from embedlab.search.launchers.launcher import Job
from embedlab.search.policy import Outcome
from embedlab.search.search_loop import World
from embedlab.search.space import Candidate, Trial


class Training(World):
    """Trains trials.

    Args:
        fit: configuration of ``embedlab fit``, which each trial is laid over.
        folder: for the trials; each has one of its own in it.
        runner: of their jobs.
        on_end: is told of each trial that has ended.

    Attributes:
        errors: of trials that ended without a record, by trial.
    """

    def __init__(
        self, fit: Path, folder: Path, runner: JobRunner, *, on_end: Callable[[Trial, Ended], None] | None = None
    ) -> None:
        self._fit = fit
        self._folder = folder
        self._runner = runner
        self._on_end = on_end
        self.errors: dict[Trial, str] = {}

    def run(self, trials: Sequence[Trial]) -> Iterable[Outcome]:
        """The outcome of each trial, as it ends.

        Raises:
            KeyboardInterrupt: if a trial was asked to stop.
            RecordError: if a record cannot be read.
        """
        of_job = {self.job(trial): trial for trial in trials}
        for ended in self._runner.run(list(of_job)):
            trial = of_job[ended.job]
            if ended.record is None:
                self.errors[trial] = str(ended.error)
            if self._on_end is not None:
                self._on_end(trial, ended)
            yield _outcome(trial, ended)

    def job(self, trial: Trial) -> Job:
        """How a trial is trained."""
        return job(self._fit, self._folder / trial.id, trial.id, trial.candidate, {"budget": trial.budget})


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
    values |= {"seed_everything": candidate.seed, **options, "output": str(folder), "ckpt_path": "auto"}
    words = ["--config", str(fit)]
    for key, value in values.items():
        words += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
    return Job(name, tuple(words), folder)


def _outcome(trial: Trial, ended: Ended) -> Outcome:
    record = ended.record
    if record is None:
        return Outcome(trial=trial, loss=math.inf, cost=0.0)
    loss = record.loss if record.status == "finished" and math.isfinite(record.loss) else math.inf
    # A run overshoots its budget by less than a step. What was planned is what is paid, so that the budget of a search
    # pays for all the trials that it was made for.
    return Outcome(trial=trial, loss=loss, cost=min(trial.budget, float(record.flops_algorithmic)))
