"""A world in which trials are trained: each in a folder of its own, whose record says how it ended.

The folders are all that a search leaves behind, so one that was killed goes on from them: what has a record is not run
again, what has a checkpoint goes on from it.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from embedlab.search.launchers.launcher import Job, Launcher
from embedlab.search.policy import Outcome
from embedlab.search.records import FILE, read_record
from embedlab.search.search_loop import World
from embedlab.search.space import Trial


class Training(World):
    """Trains trials where a launcher puts them.

    Args:
        configs: of ``embedlab fit``, which each trial is laid over.
        folder: of the search; each trial has one of its own in it.
        launcher: that trains.
        retries: of a trial that ends without a record; the next search in the folder tries again.

    Attributes:
        errors: of trials that ended without a record, by trial.
    """

    def __init__(self, configs: Sequence[Path], folder: Path, launcher: Launcher, *, retries: int = 1) -> None:
        self._configs = configs
        self._folder = folder
        self._launcher = launcher
        self._retries = retries
        self.errors: dict[Trial, str] = {}

    def run(self, trials: Sequence[Trial]) -> Iterable[Outcome]:
        """The outcome of each trial, as it ends.

        Raises:
            KeyboardInterrupt: if a trial was asked to stop.
            RecordError: if a record cannot be read.
        """
        running: dict[str, Trial] = {}
        attempts: Counter[Trial] = Counter()
        for trial in trials:
            if self._is_recorded(trial):
                yield self._outcome(trial)
            else:
                running[trial.id] = trial
                self._launcher.submit(self._job(trial))
        while running:
            ended = self._launcher.wait()
            trial = running[ended.job.name]
            if ended.error == "interrupted":
                raise KeyboardInterrupt
            attempts[trial] += 1
            if not self._is_recorded(trial) and attempts[trial] <= self._retries:
                self._launcher.submit(self._job(trial))
                continue
            del running[ended.job.name]
            if ended.error is not None:
                self.errors[trial] = ended.error
            yield self._outcome(trial)

    def folder_of(self, trial: Trial) -> Path:
        """Where a trial is trained."""
        return self._folder / "trials" / trial.id

    def _is_recorded(self, trial: Trial) -> bool:
        return (self.folder_of(trial) / FILE).exists()

    def _outcome(self, trial: Trial) -> Outcome:
        if not self._is_recorded(trial):
            return Outcome(trial=trial, loss=math.inf, cost=0.0)
        record = read_record(self.folder_of(trial) / FILE)
        loss = record.loss if record.status == "finished" and math.isfinite(record.loss) else math.inf
        return Outcome(trial=trial, loss=loss, cost=float(record.flops_algorithmic))

    def _job(self, trial: Trial) -> Job:
        one, folder = trial.candidate, self.folder_of(trial)
        values: dict[str, Any] = {"model.backbone.path": one.backbone, "model.method": one.method}
        values |= {f"model.method.{name}": value for name, value in one.method_options.items()}
        if one.learning_rate is not None:
            values["model.optimizer.learning_rate"] = one.learning_rate
        values |= {"seed_everything": one.seed, "budget": trial.budget, "output": str(folder)}
        words = [word for config in self._configs for word in ("--config", str(config))]
        for name, value in values.items():
            words += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
        if (folder / "checkpoints" / "last.ckpt").exists():
            words += ["--ckpt_path", "last"]
        return Job(trial.id, tuple(words), folder)
