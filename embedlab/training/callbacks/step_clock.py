"""Measures the duration of training steps, for every callback that computes a rate or a remaining time."""

from __future__ import annotations

import time
from datetime import timedelta


class StepClock:
    """A clock that times each step from the end of the previous step, so that waiting for data counts."""

    def __init__(self) -> None:
        self._since = 0.0

    def start(self) -> None:
        """Start the clock, or restart it after time that does not count as training (a validation)."""
        self._since = time.perf_counter()

    def lap(self) -> float:
        """Return the seconds since the start or the last lap."""
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        return seconds


class TimeLeft:
    """The remaining time of a run at the pace of its steps so far, without evaluation."""

    def __init__(self) -> None:
        self._clock = StepClock()
        self._seconds = 0.0
        self._share_before = 0.0

    def start(self, share: float) -> None:
        """Start the clock when ``share`` of the run is done already, which is above 0 after a resume."""
        self._seconds, self._share_before = 0.0, share
        self._clock.start()

    def resume(self) -> None:
        """Restart the clock after time that does not count as training (a validation)."""
        self._clock.start()

    def step(self) -> None:
        """Add the duration of the step that has just ended."""
        self._seconds += self._clock.lap()

    def after(self, share: float) -> timedelta:
        """Return the remaining time when ``share`` of the run is done."""
        pace = self._seconds / (share - self._share_before)
        return timedelta(seconds=round(pace * (1 - share)))
