"""Launchers on this machine: a thread for each slot waits for the process that trains there."""

from __future__ import annotations

from abc import abstractmethod
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from embedlab.search.launchers.launcher import Job, JobResult, Launcher

SECONDS_TO_END = 120.0
"""That a run which is asked to stop has to finish its step and save it."""


class ThreadedLauncher(Launcher):
    """Runs each job by a function that blocks until it has ended.

    Args:
        num_slots: jobs that are trained at a time.
    """

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._pool = ThreadPoolExecutor(max_workers=num_slots)
        self._running: set[Future[JobResult]] = set()

    @property
    def num_slots(self) -> int:
        """Jobs that are trained at a time."""
        return self._num_slots

    def submit(self, job: Job) -> None:
        """Has a job trained as soon as a slot is free."""
        self._running.add(self._pool.submit(self._run, job))

    def wait(self) -> JobResult:
        """The next job that ends."""
        assert self._running, "no job was submitted"
        done, _ = wait(self._running, return_when=FIRST_COMPLETED)
        first = done.pop()
        self._running.remove(first)
        return first.result()

    def close(self) -> None:
        """Stops what is under way, and forgets what has not begun."""
        for future in self._running:
            future.cancel()
        self._stop()
        self._pool.shutdown()

    @abstractmethod
    def _run(self, job: Job) -> JobResult:
        """Trains one job."""

    @abstractmethod
    def _stop(self) -> None:
        """Has every run that is under way save its step and end."""
