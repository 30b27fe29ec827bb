"""Runs jobs where a launcher puts them, each once: what has a record is done, what ended without one is tried again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from embedlab.search.launchers.launcher import INTERRUPTED, Job, Launcher
from embedlab.search.records import FILE, RunRecord, read_record


@dataclass(frozen=True)
class Ended:
    """A job that is over.

    Attributes:
        job: that was run.
        record: that it left; None if it left none.
        error: why it left none, or one that says it failed; None if it was trained to its end.
        seconds: from its start to its end; None if it had ended before.
    """

    job: Job
    record: RunRecord | None
    error: str | None
    seconds: float | None


class JobRunner:
    """Runs jobs.

    Args:
        launcher: that trains.
        retries: of a job that ends without a record; the next search in the folder tries again.
    """

    def __init__(self, launcher: Launcher, *, retries: int = 1) -> None:
        self._launcher = launcher
        self._retries = retries

    @property
    def num_slots(self) -> int:
        """Jobs that are run at a time."""
        return self._launcher.num_slots

    def run(self, jobs: Sequence[Job]) -> Iterator[Ended]:
        """Each job as it ends, those first that had ended before.

        Raises:
            KeyboardInterrupt: if a job was asked to stop.
            RecordError: if a record cannot be read.
        """
        attempts: Counter[Job] = Counter()
        for job in jobs:
            if _is_recorded(job):
                yield Ended(job, read_record(job.folder / FILE), None, None)
            else:
                attempts[job] = 1
                self._launcher.submit(job)
        running = len(attempts)
        while running:
            outcome = self._launcher.wait()
            job = outcome.job
            if outcome.error == INTERRUPTED:
                raise KeyboardInterrupt
            if not _is_recorded(job) and attempts[job] <= self._retries:
                attempts[job] += 1
                self._launcher.submit(job)
                continue
            running -= 1
            record = read_record(job.folder / FILE) if _is_recorded(job) else None
            error = outcome.error
            if record is None and error is None:
                error = f"It left no record. {job.folder / 'log'} says why."
            yield Ended(job, record, error, outcome.seconds)


def _is_recorded(job: Job) -> bool:
    return (job.folder / FILE).exists()
