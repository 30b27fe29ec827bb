"""The seconds of a training step, for every callback that divides by them."""

from __future__ import annotations

import time


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
