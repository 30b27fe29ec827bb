"""Defines the learning rate as a function of a run's progress, so that steps and FLOP budgets share one schedule.

Progress is the share of the run that is done, in [0, 1]: steps taken divided by steps planned, or FLOPs spent divided
by the budget. A schedule has no state, so there is nothing to restore when a run resumes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from embedlab.errors import ConfigError


class Schedule(ABC):
    """A factor on the peak learning rate as a function of the run's progress."""

    @abstractmethod
    def factor(self, progress: float) -> float:
        """Return the factor on the peak learning rate, in [0, 1].

        Args:
            progress: Share of the run that is done, in [0, 1].
        """


def _check_share(name: str, value: float) -> float:
    if not 0 <= value < 1:
        raise ConfigError(f"{name} is a share of the run and must lie in [0, 1), got {value}.")
    return value


def _check_final(value: float) -> float:
    if not 0 <= value <= 1:
        raise ConfigError(
            f"schedule.final is the share of the peak learning rate that is left at the end and must lie in [0, 1], "
            f"got {value}. Leave it out for 0."
        )
    return value


class WarmupCosine(Schedule):
    """Linear warm-up, then a cosine decay until the end of the run (Loshchilov & Hutter 2017, arXiv:1608.03983).

    Args:
        warmup: Share of the run spent on the warm-up.
        final: Factor on the peak learning rate at the end of the run.
    """

    def __init__(self, *, warmup: float = 0.1, final: float = 0.0) -> None:
        self.warmup = _check_share("schedule.warmup", warmup)
        self.final = _check_final(final)

    def factor(self, progress: float) -> float:
        """Return the factor on the peak learning rate at ``progress``."""
        if progress < self.warmup:
            return progress / self.warmup
        position = (min(progress, 1.0) - self.warmup) / (1 - self.warmup)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * position))


class Constant(Schedule):
    """Linear warm-up, then the peak learning rate until the end of the run.

    Args:
        warmup: Share of the run spent on the warm-up.
    """

    def __init__(self, *, warmup: float = 0.0) -> None:
        self.warmup = _check_share("schedule.warmup", warmup)

    def factor(self, progress: float) -> float:
        """Return the factor on the peak learning rate at ``progress``."""
        return progress / self.warmup if progress < self.warmup else 1.0


class WarmupStableDecay(Schedule):
    """Linear warm-up, the peak learning rate, then a decay at the end of the run (Hu et al. 2024, arXiv:2404.06395).

    In the decay, the factor on the peak learning rate is final + (1 - final) (1 - sqrt(s)), where s is the share of the
    decay that is done (Hägele et al. 2024, arXiv:2405.18392).

    Args:
        warmup: Share of the run spent on the warm-up, from 0 to 1.
        decay: Share of the run, at its end, spent on the decay, from 0 to 1.
        final: Factor on the peak learning rate at the end of the run.
    """

    def __init__(self, *, warmup: float = 0.1, decay: float = 0.2, final: float = 0.0) -> None:
        self.warmup = _check_share("schedule.warmup", warmup)
        self.decay = _check_share("schedule.decay", decay)
        self.final = _check_final(final)
        if warmup + decay > 1:
            raise ConfigError(
                f"schedule.warmup and schedule.decay are shares of one run, got {warmup} + {decay} > 1. "
                "Lower one of them."
            )

    @property
    def decay_start(self) -> float:
        """The progress at which the decay begins."""
        return 1 - self.decay

    def factor(self, progress: float) -> float:
        """Return the factor on the peak learning rate at ``progress``."""
        if progress < self.warmup:
            return progress / self.warmup
        decayed = (min(progress, 1.0) - self.decay_start) / self.decay if self.decay else 0.0
        return 1.0 if decayed <= 0 else self.final + (1 - self.final) * (1 - math.sqrt(decayed))
