"""What a search asks of a place where trials are trained, be it this machine or a cluster."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from embedlab.records import RunRecord

INTERRUPTED = "interrupted"
"""The error of a job that was asked to stop, and saved what it had."""

LOCK = "run.lock"
"""File in a run's folder that is locked while a process trains there, perhaps one whose search was killed."""


@dataclass(frozen=True)
class Job:
    """One run to train.

    Attributes:
        name: of the trial.
        arguments: of ``embedlab fit``.
        folder: of the run, which its output is written to.
    """

    name: str
    arguments: tuple[str, ...]
    folder: Path


@dataclass(frozen=True)
class JobResult:
    """What came of a job.

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
    """Trains jobs, some at a time. Leaving its ``with`` block stops them: each saves the step that is under way."""

    @property
    @abstractmethod
    def num_slots(self) -> int:
        """Jobs that are trained at a time."""

    @abstractmethod
    def submit(self, job: Job) -> None:
        """Has a job trained as soon as a slot is free."""

    @abstractmethod
    def wait(self) -> JobResult:
        """The next job that ends; there must be one that was submitted and has not been waited for."""

    @abstractmethod
    def close(self) -> None:
        """Stops what is under way, and waits until it has."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
