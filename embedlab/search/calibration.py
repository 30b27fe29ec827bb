"""Learning rates for every method and size: tried in short runs, then smoothed over the sizes.

A wrong rate costs more than the difference between methods, and which of a few rates is best on one size is partly
chance. What is smoothed is the ratio to the method's own rate for the backbone, in which most of the change with size
is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from embedlab.errors import ConfigError

_SLOPE = 0.25  # standard deviation, before any run, of the change of log(ratio) with log(N)
_NOISE = 0.5  # standard deviation of where a parabola has its least loss, in steps between rates
_DIGITS = 3  # of a learning rate
_FARTHEST = 6  # steps from the method's own rate


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How learning rates are found.

    Args:
        budget: FLOPs of each run; where it does not pay for ``min_steps``, a size takes the rate of the others. By
            default, for each size, the smallest of the search's that does.
        factor: between a rate and the next. Of the smallest size the method's own rate is tried, one below and one
            above, and as long as the best one is the lowest or highest of them, the next beyond it; of each other size
            likewise, beginning where the size below it was best.
        enabled: if not, all runs have the method's own rate.
    """

    budget: float | None = None
    factor: float = 3.0
    enabled: bool = True

    def __post_init__(self) -> None:
        if self.budget is not None and not (math.isfinite(self.budget) and self.budget > 0):
            raise ConfigError(f"calibration.budget is {self.budget}. Expected a finite number of FLOPs above 0.")
        if not 1.1 <= self.factor <= 100:
            raise ConfigError(f"calibration.factor is {self.factor}. Expected a number from 1.1 to 100, like 3.")


Losses = dict[int, float]
"""Of runs that differ in their learning rate alone: by the number of steps from the method's own rate."""


def next_steps(losses: Losses, first: int = 0) -> list[int]:
    """The rates to try now, as steps from the method's own; none if the best one has neighbors on both sides.

    Args:
        losses: so far; infinite where a run diverged.
        first: to begin with, and its neighbors.
    """
    if not losses:
        return [first - 1, first, first + 1]
    lowest, highest = min(losses), max(losses)
    if not any(map(math.isfinite, losses.values())):
        return [lowest - 1] if lowest > -_FARTHEST else []
    best = min(losses, key=lambda step: losses[step])
    if best == lowest and lowest > -_FARTHEST:
        return [lowest - 1]
    if best == highest and highest < _FARTHEST:
        return [highest + 1]
    return []


def best_step(losses: Losses) -> float | None:
    """Where a parabola through the best rate and its neighbors is least, in steps; None if all runs diverged."""
    finite = {step: loss for step, loss in losses.items() if math.isfinite(loss)}
    if not finite:
        return None
    best = min(finite, key=lambda step: finite[step])
    if best - 1 not in finite or best + 1 not in finite:
        return float(best)
    below, at, above = (math.log(finite[best + offset]) for offset in (-1, 0, 1))
    curvature = below - 2 * at + above
    return best + (0.5 * (below - above) / curvature if curvature > 0 else 0.0)


def smoothed(steps: Mapping[float, float], sizes: Iterable[float]) -> dict[float, float]:
    """Steps from the method's own rate for each size, along a line in log(N).

    The line is the one that a normal prior around no slope at all makes most probable, so a single size shifts all
    others by as much, and two sizes do not determine a slope.

    Args:
        steps: by size, those that short runs have found.
        sizes: N of all backbones, tried or not.
    """
    log_sizes = np.log(np.array(list(steps)))
    found = np.array(list(steps.values()))
    center, level = log_sizes.mean(), found.mean()
    deviation = log_sizes - center
    slope = float(deviation @ (found - level) / (deviation @ deviation + (_NOISE / _SLOPE) ** 2))
    low, high = found.min(), found.max()
    # Beyond what was tried there is no evidence for a rate beyond all that were found.
    return {size: float(np.clip(level + slope * (math.log(size) - center), low, high)) for size in sizes}


def rate_at(own: float, factor: float, steps: float) -> float:
    """A learning rate so many steps from the method's own, with few digits, so that it has one name."""
    return float(f"{own * factor**steps:.{_DIGITS}g}")
