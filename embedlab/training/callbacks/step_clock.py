"""The seconds of training steps, for every callback that divides by them."""

from __future__ import annotations

import time
from datetime import timedelta


class StepClock:
    """Times steps from the end of the one before, so that waiting for data counts."""

    def __init__(self) -> None:
        self._since = 0.0

    def start(self) -> None:
        """Starts, or starts again after what is no training: validation."""
        self._since = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the start or the last lap."""
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        return seconds


class TimeLeft:
    """How long the rest of a run takes at the pace of the steps so far, evaluation not counted."""

    def __init__(self) -> None:
        self._clock = StepClock()
        self._seconds = 0.0
        self._share_before = 0.0

    def start(self, share: float) -> None:
        """Starts where this share of the run is done: after a resume that is not 0."""
        self._seconds, self._share_before = 0.0, share
        self._clock.start()

    def resume(self) -> None:
        """Go on after validation, whose time does not count."""
        self._clock.start()

    def step(self) -> None:
        """A step has ended."""
        self._seconds += self._clock.lap()

    def after(self, share: float) -> timedelta:
        """What is left when this share of the run is done."""
        pace = self._seconds / (share - self._share_before)
        return timedelta(seconds=round(pace * (1 - share)))
