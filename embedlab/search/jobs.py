"""Runs jobs where a launcher puts them, each once: what has a record is done, what failed or has none is tried anew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from embedlab.records import FILE, RunRecord, read_record
from embedlab.search.launchers.launcher import INTERRUPTED, Job, JobResult, Launcher

_FAILED = "failed.json"
_NO_RECORD = "No run record is written:"  # what a run prints that leaves none


class JobRunner:
    """Runs jobs.

    Args:
        launcher: that trains.
        retries: of a job that fails or ends without a record; the next search in the folder tries again.
    """

    def __init__(self, launcher: Launcher, *, retries: int = 1) -> None:
        self._launcher = launcher
        self._retries = retries

    @property
    def num_slots(self) -> int:
        """Jobs that are run at a time."""
        return self._launcher.num_slots

    def run(self, jobs: Sequence[Job]) -> Iterator[JobResult]:
        """Each job as it ends, those first that had ended before.

        Raises:
            KeyboardInterrupt: if a job was asked to stop.
            RecordError: if a record cannot be read.
        """
        attempts: Counter[Job] = Counter()
        for job in jobs:
            record = _record_of(job)
            if _is_over(record):
                yield JobResult(job, None, None, record)
            else:
                attempts[job] = 1
                self._submit(job)
        running = len(attempts)
        while running:
            result = self._launcher.wait()
            job = result.job
            if result.error == INTERRUPTED:
                raise KeyboardInterrupt
            record = _record_of(job)
            if not _is_over(record) and attempts[job] <= self._retries:
                attempts[job] += 1
                self._submit(job)
                continue
            running -= 1
            error = result.error
            if record is None and error is None:
                error = _why_there_is_none(job)
            yield replace(result, record=record, error=error)

    def _submit(self, job: Job) -> None:
        record = job.folder / FILE
        if record.exists():  # of a failure, which the run goes on from: a record is written once
            record.replace(job.folder / _FAILED)
        self._launcher.submit(job)


def _why_there_is_none(job: Job) -> str:
    log = job.folder / "log"
    if log.exists():
        for line in reversed(log.read_text(encoding="utf-8", errors="replace").splitlines()):
            if line.startswith(_NO_RECORD):
                return f"It left no record: {line.removeprefix(_NO_RECORD).strip()}"
    return f"It left no record. {log} says why."


def _record_of(job: Job) -> RunRecord | None:
    path = job.folder / FILE
    return read_record(path) if path.exists() else None


def _is_over(record: RunRecord | None) -> bool:
    """Whether trying again would change nothing."""
    return record is not None and record.status != "failed"
