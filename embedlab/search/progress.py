"""Progress of a running search: prints a line for each run that ends, and logs its loss to TensorBoard."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from embedlab.search.launchers.launcher import JobResult
from embedlab.search.probing import Probe
from embedlab.search.projection import Projection
from embedlab.search.space import Candidate, Space, Trial


class Progress:
    """Reports the progress of a search.

    Args:
        events: Folder for the TensorBoard event file.
        probes: Probe of each combination of backbone and method, used to estimate the remaining time.
        num_slots: Number of trials that are trained at a time.
        say: Function that prints a line for the user.
    """

    def __init__(
        self, events: Path, probes: Mapping[Candidate, Probe], num_slots: int, say: Callable[[str], object]
    ) -> None:
        self._writer = EventFileWriter(str(events))
        self._probes, self._num_slots, self._say = probes, num_slots, say
        self._space: Space | None = None
        self._total = 0.0
        self._done: set[Trial] = set()
        self._paid: set[Trial] = set()
        self._calibrated = 0
        self._tags: dict[Candidate, str] = {}  # TensorBoard tags
        self._took, self._projected = 0.0, 0.0  # measured and projected seconds of the trained trials

    def begin(self, space: Space, total: float) -> None:
        """Note that the calibration is over and the trials begin.

        Args:
            space: Space of the search.
            total: Maximum number of FLOPs spent by all trials together.
        """
        self._space, self._total = space, total
        alike = Counter(map(str, space.candidates))
        self._tags = {one: f"loss/{one}" if alike[str(one)] == 1 else _whole_tag(one) for one in space.candidates}

    def calibrated(self, trial: Trial, ended: JobResult) -> None:
        """Report that a calibration run has ended."""
        self._calibrated += 1
        if ended.seconds is not None:
            rate = trial.candidate.learning_rate
            self._say(f"calibration {self._calibrated}: {_told(trial, ended)}, learning rate {rate:g}")

    def trained(self, trial: Trial, ended: JobResult) -> None:
        """Report that a trial has ended."""
        assert self._space is not None, "begin was called"
        self._done.add(trial)
        if ended.record is not None and ended.record.status != "failed":
            self._paid.add(trial)
        if ended.seconds is None:  # the trial had ended before this process started
            return
        self._log(trial, ended)
        if ended.record is not None:
            self._took += ended.seconds
            self._projected += Projection(self._probes, 1, self._space).seconds([trial])
        spent = self._space.price(self._paid)
        self._say(
            f"{len(self._done)} of {len(self._space.trials)}: {_told(trial, ended)}. Spent {spent:.3g} FLOPs "
            f"({spent / self._total:.0%}), about {timedelta(seconds=round(self._seconds_left(spent)))} left.",
        )

    def _seconds_left(self, spent: float) -> float:
        assert self._space is not None
        left = [trial for trial in self._space.trials if trial not in self._done]
        price = self._space.price(left, self._done)
        share = min(1.0, max(0.0, self._total - spent) / price) if price else 0.0
        off = self._took / self._projected if self._projected else 1.0
        return share * off * Projection(self._probes, self._num_slots, self._space).seconds(left)

    def _log(self, trial: Trial, ended: JobResult) -> None:
        """Log the loss of a trial with the budget as the step, so that TensorBoard draws a curve for each candidate."""
        if ended.record is None or not math.isfinite(ended.record.loss):
            return
        value = Summary.Value(tag=self._tags[trial.candidate], simple_value=ended.record.loss)
        event = Event(wall_time=time.time(), step=int(trial.budget), summary=Summary(value=[value]))
        self._writer.add_event(event)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


def _whole_tag(one: Candidate) -> str:
    """Return a TensorBoard tag that includes the path, learning rate and seed, which a candidate's name omits."""
    rate = "" if one.learning_rate is None else f", learning rate {one.learning_rate:g}"
    return f"loss/{one}, {one.backbone}{rate}, seed {one.seed}"


def _told(trial: Trial, ended: JobResult) -> str:
    record = ended.record
    if record is None or record.status == "failed":
        result = f"failed: {ended.error}"
    elif record.status != "finished":
        result = record.status
    else:
        result = f"loss {record.loss:.4g}"
    seconds = "" if ended.seconds is None else f" in {timedelta(seconds=round(ended.seconds))}"
    return f"{trial.candidate}, {trial.budget:g} FLOPs, {result}{seconds}"
