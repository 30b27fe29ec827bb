"""Calibration of learning rates: finds a rate for every method and model size with short runs.

A wrong learning rate can raise the loss by more than the difference between two methods. Which of a few rates is best
at one model size is partly chance, so the best rates are smoothed over the model sizes. The smoothed quantity is the
best rate divided by the method's default rate for the backbone, because the default already covers most of the change
with model size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from embedlab.errors import ConfigError

_SLOPE = 0.25  # prior standard deviation of the slope, in steps per unit of log(N)
_NOISE = 0.5  # standard deviation of the position of a parabola's minimum, in steps
_DIGITS = 3  # significant digits of a learning rate
_FARTHEST = 6  # maximum number of steps from the method's default rate


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Settings of the short runs that find the learning rates.

    At the smallest model size, three rates are tried: the method's default rate, and the rates one step below and one
    step above it. While the best rate is the lowest or the highest tried rate, the next rate beyond it is tried, too.
    If all runs diverge, the next lower rate is tried. The search stops at six steps from the default rate. Each larger
    model size starts from the best rate of the next smaller size in place of the default rate.

    Args:
        budget: Budget of each calibration run in FLOPs. By default, each backbone uses the smallest budget of the
            search that pays for ``min_steps`` steps. A backbone for which the given budget pays for fewer steps is
            not calibrated; its rate is derived from the calibrated backbones.
        factor: Factor between two neighboring learning rates (one step), from 1.1 to 100.
        enabled: Whether to calibrate. If not, runs use the default learning rate of the method.

    Raises:
        ConfigError: If the budget is not a finite number above 0, or the factor is out of range.
    """

    budget: float | None = None
    factor: float = 3.0
    enabled: bool = True

    def __post_init__(self) -> None:
        if self.budget is not None and not (math.isfinite(self.budget) and self.budget > 0):
            raise ConfigError(f"calibration.budget is {self.budget}. Expected a finite number of FLOPs above 0.")
        if not 1.1 <= self.factor <= 100:
            raise ConfigError(f"calibration.factor is {self.factor}. Expected a number from 1.1 to 100, for example 3.")


Losses = dict[int, float]
"""Losses of runs that differ only in the learning rate.

A key is the number of steps from the method's default rate.
"""


def next_steps(losses: Losses, first: int = 0) -> list[int]:
    """Return the learning rates to try next, as steps from the method's default rate.

    Args:
        losses: Losses of the rates tried so far; infinite for a run that diverged.
        first: Rate to start from, as steps from the default rate. This rate and its two neighbors are tried first.

    Returns:
        The steps to try. The list is empty if the best rate has tried neighbors on both sides, or if the next rate
        would be too far from the default rate.
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
    """Return the best learning rate, as steps from the method's default rate; None if all runs diverged.

    The best rate is the minimum of a parabola through the logarithms of the losses of the best tried rate and its two
    neighbors. If a neighbor is missing or diverged, the best tried rate is returned.
    """
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
    """Return a smoothed learning rate for each model size, as steps from the method's default rate.

    The steps are a linear function of log(N), fitted with a normal prior with mean zero on the slope. A single
    calibrated size therefore shifts the rates of all sizes by an equal number of steps, and two sizes determine the
    slope only in part.

    Args:
        steps: Best rates that the calibration runs found, as steps from the default rate, by model size.
        sizes: Numbers of parameters of all backbones (N), with or without calibration runs.
    """
    log_sizes = np.log(np.array(list(steps)))
    found = np.array(list(steps.values()))
    center, level = log_sizes.mean(), found.mean()
    deviation = log_sizes - center
    slope = float(deviation @ (found - level) / (deviation @ deviation + (_NOISE / _SLOPE) ** 2))
    low, high = found.min(), found.max()
    # For sizes outside of the calibrated range, there is no evidence for a rate outside of the range of found rates.
    return {size: float(np.clip(level + slope * (math.log(size) - center), low, high)) for size in sizes}


def rate_at(own: float, factor: float, steps: float) -> float:
    """Return the learning rate that is a number of steps away from a method's default rate.

    The rate is rounded to three significant digits, so that a trial's identifier does not depend on rounding errors.

    Args:
        own: Default learning rate of the method.
        factor: Factor between two neighboring rates.
        steps: Number of steps from the default rate.
    """
    return float(f"{own * factor**steps:.{_DIGITS}g}")
