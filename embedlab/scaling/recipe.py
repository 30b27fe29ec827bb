"""What to train with a budget: which backbone, on how much data, by which method, and how sure that is.

Of the sizes that exist each takes what the budget leaves it in data; the laws of the methods say what that reaches.
Names end in their axes:

    R  replicates      C  configurations
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from embedlab.errors import ConfigError
from embedlab.scaling.bootstrap import Interval, quantiles
from embedlab.scaling.method_laws import FARTHEST, MethodLaw
from embedlab.scaling.observations import Observation

MOST_EPOCHS = 4.0
"""Repetitions that cost next to nothing (Muennighoff et al. 2023, arXiv:2305.16264): the limit where no law says."""

_UNKNOWN = Interval(np.nan, np.nan)
INDISTINGUISHABLE = 0.1
"""The least probability of being better than the best, of what cannot be told apart from it."""


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """What a configuration has to keep within.

    Attributes:
        max_parameters: N, at most.
        max_memory: GiB of a device, at most.
        unique_pairs: that there are to train on.
        serve_tokens: that the model will embed in its life: they are paid from the budget, 2 N FLOPs each.
        hours: of training, at most.
    """

    max_parameters: float | None = None
    max_memory: float | None = None
    unique_pairs: float | None = None
    serve_tokens: float | None = None
    hours: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not (np.isfinite(value) and value > 0):
                raise ConfigError(f"{name} is {value}. Expected a finite number above 0; leave it out for no limit.")


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """A backbone that takes the whole budget, by a method.

    Attributes:
        method: name.
        backbone: name.
        parameters: N.
        tokens: D.
        flops: of training.
        loss: predicted.
        interval_80: holds the loss with that probability.
        interval_95: likewise.
        probability_best: of being the best of all configurations.
        cannot_be_told_apart: from the best one: it is better with a probability of a tenth or more.
        learning_rate: of the best run of this method on the backbone that is nearest; None where no run says.
        pairs: seen; None where no run says how long one is.
        epochs: over the unique pairs; None where that is not known.
        hours: on the device that was named, or on that of the runs; None where no run says.
        memory_bytes: of that device; None where no run says.
    """

    method: str
    backbone: str
    parameters: float
    tokens: float
    flops: float
    loss: float = np.nan
    interval_80: Interval = _UNKNOWN
    interval_95: Interval = _UNKNOWN
    probability_best: float = 0.0
    cannot_be_told_apart: bool = False
    learning_rate: float | None = None
    pairs: float | None = None
    epochs: float | None = None
    hours: float | None = None
    memory_bytes: float | None = None


@dataclass(frozen=True)
class Recipe:
    """The answer for one budget.

    Attributes:
        budget: FLOPs.
        configurations: the best first.
        method_probability: by method, of reaching the least loss.
        extrapolation: the budget by the FLOPs of the largest run.
        ruled_out: how many configurations each constraint rules out.
    """

    budget: float
    configurations: tuple[Configuration, ...]
    method_probability: dict[str, float]
    extrapolation: float
    ruled_out: dict[str, int]

    @property
    def best(self) -> Configuration:
        """The one with the least predicted loss."""
        return self.configurations[0]


def recipe(
    laws: Sequence[MethodLaw],
    budget: float,
    constraints: Constraints | None = None,
    *,
    extrapolate: bool = False,
    peak: float | None = None,
) -> Recipe:
    """The best configurations for a budget.

    Args:
        laws: of the methods.
        budget: FLOPs.
        constraints: that limit the choice.
        extrapolate: answer beyond ``FARTHEST`` times the largest run, too.
        peak: FLOP/s of another device than that of the runs, of which a run uses the same share.

    Raises:
        ConfigError: if the budget is no number above 0 or too far beyond the runs, or nothing meets the constraints.
    """
    if not (np.isfinite(budget) and budget > 0):
        raise ConfigError(f"The budget is {budget} FLOPs. Expected a finite number above 0.")
    constraints = constraints or Constraints()
    largest = max(law.largest_flops for law in laws)
    if budget > FARTHEST * largest and not extrapolate:
        raise ConfigError(
            f"The budget of {budget:g} FLOPs is {budget / largest:.3g} times the largest run, {largest:.3g}, and "
            f"{FARTHEST:g} times is as far as a law is trusted. Run larger ones, or add --extrapolate."
        )
    suite = suite_of(laws)
    per_pair = tokens_per_pair(laws)
    if constraints.unique_pairs is not None and per_pair is None:
        raise ConfigError("unique_pairs is given, and no run says how many pairs it saw. Leave it out.")
    unique_tokens = None
    if constraints.unique_pairs is not None and per_pair is not None:
        unique_tokens = constraints.unique_pairs * per_pair
    ruled_out: dict[str, int] = {}
    possible: list[Configuration] = []
    for law in laws:
        for backbone, parameters in suite:
            configuration = _configuration(law, backbone, parameters, budget, constraints, peak)
            if per_pair is not None and configuration.tokens > 0:
                pairs = configuration.tokens / per_pair
                epochs = None if constraints.unique_pairs is None else pairs / constraints.unique_pairs
                configuration = replace(configuration, pairs=pairs, epochs=epochs)
            reason = _ruled_out_by(configuration, law, constraints)
            if reason is None:
                possible.append(configuration)
            else:
                ruled_out[reason] = ruled_out.get(reason, 0) + 1
    if not possible:
        most = max(ruled_out, key=lambda reason: ruled_out[reason])
        raise ConfigError(
            f"Nothing meets the constraints at a budget of {budget:g} FLOPs: "
            + "; ".join(
                f"{reason} rules out {count} of {len(laws) * len(suite)}" for reason, count in ruled_out.items()
            )
            + f". Relax {most}."
        )
    ranked, probability = _ranked(laws, possible, unique_tokens)
    return Recipe(budget, tuple(ranked), probability, budget / largest, ruled_out)


def suite_of(laws: Sequence[MethodLaw]) -> list[tuple[str, float]]:
    """The backbones that exist, by size."""
    sizes: dict[str, list[float]] = {}
    for law in laws:
        for row in law.observations:
            sizes.setdefault(row.backbone, []).append(row.parameters)
    return sorted(((name, float(np.median(of_it))) for name, of_it in sizes.items()), key=lambda one: (one[1], one[0]))


def _configuration(
    law: MethodLaw, backbone: str, parameters: float, budget: float, constraints: Constraints, peak: float | None
) -> Configuration:
    serving = 2 * parameters * (constraints.serve_tokens or 0.0)
    flops = max(0.0, budget - serving)
    tokens = flops / float(law.flops_per_token(np.array([parameters]))[0])
    nearest = sorted(
        law.observations, key=lambda row: (row.backbone != backbone, _distance(row.parameters, parameters))
    )
    best_rate = min(
        (row for row in nearest if row.parameters == nearest[0].parameters and row.learning_rate is not None),
        key=lambda row: (_distance(row.flops, budget), row.loss),
        default=None,
    )
    if peak is None:
        speed = by_size(law.observations, parameters, lambda row: row.flops / row.seconds if row.seconds else None)
    else:
        speed = by_size(law.observations, parameters, lambda row: row.utilization and row.utilization * peak)
    memory = [row.memory_bytes for row in law.observations if row.backbone == backbone and row.memory_bytes]
    return Configuration(
        method=law.method,
        backbone=backbone,
        parameters=parameters,
        tokens=tokens,
        flops=flops,
        learning_rate=None if best_rate is None else best_rate.learning_rate,
        hours=None if speed is None else flops / speed / 3600,
        memory_bytes=max(memory, default=None),
    )


def _distance(one: float, other: float) -> float:
    return abs(float(np.log(one) - np.log(other)))


def by_size(
    observations: Sequence[Observation], parameters: float, of: Callable[[Observation], float | None]
) -> float | None:
    """The median over the runs of a size, between sizes along the line through the logarithms; None if none says."""
    values: dict[float, list[float]] = {}
    for row in observations:
        value = of(row)
        if value is not None:
            values.setdefault(row.parameters, []).append(value)
    if not values:
        return None
    sizes = np.array(sorted(values))
    medians = np.array([np.median(values[size]) for size in sizes])
    return float(np.exp(np.interp(np.log(parameters), np.log(sizes), np.log(medians))))


def tokens_per_pair(laws: Sequence[MethodLaw]) -> float | None:
    """The median over the runs; None if none says how many pairs it saw."""
    ratios = [row.tokens / row.pairs for law in laws for row in law.observations if row.pairs]
    return float(np.median(ratios)) if ratios else None


def _ruled_out_by(configuration: Configuration, law: MethodLaw, constraints: Constraints) -> str | None:
    """The constraint that a configuration does not meet, as the user wrote it."""
    if configuration.flops <= 0:
        return "serve_tokens, which cost the whole budget,"
    if not law.knows(np.array(configuration.parameters), np.array(configuration.tokens)):
        return f"tokens a parameter {FARTHEST:g} times beyond those of the runs"
    if constraints.max_parameters is not None and configuration.parameters > constraints.max_parameters:
        return "max_parameters"
    if constraints.max_memory is not None:
        if configuration.memory_bytes is None:
            return "max_memory, of which no run says anything,"
        if configuration.memory_bytes > constraints.max_memory * 2**30:
            return "max_memory"
    if constraints.hours is not None:
        if configuration.hours is None:
            return "hours, of which no run says anything,"
        if configuration.hours > constraints.hours:
            return "hours"
    knows_repetition = "R" in law.fit.names
    if configuration.epochs is not None and configuration.epochs > MOST_EPOCHS and not knows_repetition:
        return f"unique_pairs, seen more than {MOST_EPOCHS:g} times, of which no run says what they are worth,"
    return None


def _ranked(
    laws: Sequence[MethodLaw], possible: Sequence[Configuration], unique_tokens: float | None
) -> tuple[list[Configuration], dict[str, float]]:
    """The configurations with their losses, the best first, and how probably each method has the best of all."""
    order: list[Configuration] = []
    estimates, replicates = [], []
    for law in laws:
        of_law = [one for one in possible if one.method == law.method]
        if not of_law:
            continue
        sizes_C, tokens_C = (np.array([getattr(one, name) for one in of_law]) for name in ("parameters", "tokens"))
        estimate_C, log_RC = law.log_losses(sizes_C, tokens_C, unique_tokens)
        order += of_law
        estimates.append(estimate_C)
        replicates.append(log_RC)
    estimate_C, log_RC = np.concatenate(estimates), np.concatenate(replicates, axis=1)
    best = int(estimate_C.argmin())
    wins_C = np.bincount(log_RC.argmin(axis=1), minlength=len(order)) / len(log_RC)
    better_C = (log_RC < log_RC[:, best : best + 1]).mean(axis=0)
    (low_80, high_80), (low_95, high_95) = (np.exp(quantiles(log_RC, level)) for level in (0.8, 0.95))
    found = [
        replace(
            one,
            loss=float(np.exp(estimate_C[number])),
            interval_80=Interval(float(low_80[number]), float(high_80[number])),
            interval_95=Interval(float(low_95[number]), float(high_95[number])),
            probability_best=float(wins_C[number]),
            cannot_be_told_apart=number == best or float(better_C[number]) >= INDISTINGUISHABLE,
        )
        for number, one in enumerate(order)
    ]
    probability = {law.method: 0.0 for law in laws}
    for one in found:
        probability[one.method] += one.probability_best
    return sorted(found, key=lambda one: one.loss), probability
