"""Running of jobs: skips jobs that have a record, and retries jobs that failed or left no record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from embedlab.records import FILE, RunRecord, read_record
from embedlab.search.launchers.launcher import INTERRUPTED, Job, JobResult, Launcher

_FAILED = "failed.json"
_NO_RECORD = "No run record is written:"  # printed by a run that leaves no record


class JobRunner:
    """Runs jobs with a launcher.

    Args:
        launcher: Launcher that trains the jobs.
        retries: Number of retries of a job that fails or ends without a record. The next search in the folder tries
            the job again.
    """

    def __init__(self, launcher: Launcher, *, retries: int = 1) -> None:
        self._launcher = launcher
        self._retries = retries

    @property
    def num_slots(self) -> int:
        """Number of jobs that are run at a time."""
        return self._launcher.num_slots

    def run(self, jobs: Sequence[Job]) -> Iterator[JobResult]:
        """Run jobs, and yield the result of each job when it ends. Jobs that had ended before this call come first.

        Raises:
            KeyboardInterrupt: If a job was asked to stop.
            RecordError: If a record cannot be read.
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
        if record.exists():  # a failed run continues, but a record is never overwritten
            record.replace(job.folder / _FAILED)
        self._launcher.submit(job)


def _why_there_is_none(job: Job) -> str:
    log = job.folder / "log"
    if log.exists():
        for line in reversed(log.read_text(encoding="utf-8", errors="replace").splitlines()):
            if line.startswith(_NO_RECORD):
                return f"The run left no record: {line.removeprefix(_NO_RECORD).strip()}"
    return f"The run left no record. See the reason in {log}."


def _record_of(job: Job) -> RunRecord | None:
    path = job.folder / FILE
    return read_record(path) if path.exists() else None


def _is_over(record: RunRecord | None) -> bool:
    """Return whether a job needs no further try: it has a record, and did not fail."""
    return record is not None and record.status != "failed"
