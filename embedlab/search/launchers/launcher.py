"""The interface of launchers, which train jobs for a search on one machine or on a cluster."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from embedlab.records import RunRecord

INTERRUPTED = "interrupted"
"""Error of a job that was asked to stop and saved a checkpoint."""

LOCK = "run.lock"
"""Name of the file in a run's folder that is locked while a process trains there.

The process may belong to an earlier search that was killed.
"""


@dataclass(frozen=True)
class Job:
    """One run to train.

    Attributes:
        name: Name of the job, usually the identifier of its trial.
        arguments: Command-line arguments for ``embedlab fit``.
        folder: Folder for the output of the run.
    """

    name: str
    arguments: tuple[str, ...]
    folder: Path


@dataclass(frozen=True)
class JobResult:
    """The result of a job.

    Attributes:
        job: The job that ended.
        error: Why the job failed or left no record; None if it was trained to its end.
        seconds: Time from the start of the job to its end; None if the job had ended before this search began.
        record: Record that the job left, which a ``JobRunner`` reads; None if there is none.
    """

    job: Job
    error: str | None
    seconds: float | None
    record: RunRecord | None = None


class Launcher(ABC):
    """Trains several jobs at a time.

    A launcher is a context manager. At the end of the ``with`` block, each running job finishes its step, saves a
    checkpoint and stops.
    """

    @property
    @abstractmethod
    def num_slots(self) -> int:
        """Number of jobs that are trained at a time."""

    @abstractmethod
    def submit(self, job: Job) -> None:
        """Schedule a job, which is trained as soon as a slot is free."""

    @abstractmethod
    def wait(self) -> JobResult:
        """Wait for the next job that ends, and return its result.

        At least one submitted job must not have been waited for yet.
        """

    @abstractmethod
    def close(self) -> None:
        """Stop all running jobs, and wait until they have stopped."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
