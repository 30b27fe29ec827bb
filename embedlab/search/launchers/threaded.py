"""Base class of launchers on the local machine: one thread per slot waits for the process that trains a job."""

from __future__ import annotations

from abc import abstractmethod
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from embedlab.search.launchers.launcher import Job, JobResult, Launcher

SECONDS_TO_END = 120.0
"""Time for a run that was asked to stop to finish its step and save a checkpoint, in seconds."""


class ThreadedLauncher(Launcher):
    """Runs each job in a thread that blocks until the job has ended.

    Args:
        num_slots: Number of jobs that are trained at a time.
    """

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._pool = ThreadPoolExecutor(max_workers=num_slots)
        self._running: set[Future[JobResult]] = set()

    @property
    def num_slots(self) -> int:
        """Number of jobs that are trained at a time."""
        return self._num_slots

    def submit(self, job: Job) -> None:
        """Schedule a job, which is trained as soon as a slot is free."""
        self._running.add(self._pool.submit(self._run, job))

    def wait(self) -> JobResult:
        """Wait for the next job that ends, and return its result."""
        assert self._running, "no job was submitted"
        done, _ = wait(self._running, return_when=FIRST_COMPLETED)
        first = done.pop()
        self._running.remove(first)
        return first.result()

    def close(self) -> None:
        """Stop all running jobs, and cancel the jobs that have not begun."""
        for future in self._running:
            future.cancel()
        self._stop()
        self._pool.shutdown()

    @abstractmethod
    def _run(self, job: Job) -> JobResult:
        """Train one job, and return its result when it has ended."""

    @abstractmethod
    def _stop(self) -> None:
        """Make every running job finish its step, save a checkpoint and end."""
