"""Recipes: recommends what to train with a budget (backbone, amount of data, method), with the uncertainty.

For each backbone and method, the whole budget gives an amount of data, and the law of the method predicts the loss.
Names of arrays end in their axes:

    R  bootstrap replicates      C  configurations
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from embedlab.errors import ConfigError, plain_text
from embedlab.scaling.bootstrap import Interval, quantiles
from embedlab.scaling.fitting import Configurations
from embedlab.scaling.method_laws import FARTHEST, MethodLaw
from embedlab.scaling.observations import Observation

MOST_EPOCHS = 4.0
"""Maximum number of epochs if the law of a method does not model repeated data.

Up to 4 epochs, repeated data are almost as good as new data (Muennighoff et al. 2023, arXiv:2305.16264).
"""

_ABOUT = 0.5 * float(np.log(2))  # difference of log FLOPs up to which runs count as runs at a budget
_CLEAR = 2.0  # standard deviations beyond which a difference of runs is more than noise
_UNKNOWN = Interval(np.nan, np.nan)
INDISTINGUISHABLE = 0.1
"""Minimum probability of a lower loss than the best configuration.

A configuration with at least this probability cannot be told apart from the best configuration.
"""


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """Limits that a recommended configuration has to meet. Every limit is off by default.

    Attributes:
        max_parameters: Maximum number of parameters of the backbone, without embedding tables (N).
        max_memory: Maximum memory per device in GiB.
        unique_pairs: Number of different text pairs available for training.
        serve_tokens: Number of tokens that the trained model will embed in its lifetime. The budget pays for this
            use, too, with 2 N FLOPs per token, where N is the number of parameters without embedding tables.
        hours: Maximum duration of training in hours.

    Raises:
        ConfigError: If a limit is not a finite number above 0.
    """

    max_parameters: float | None = None
    max_memory: float | None = None
    unique_pairs: float | None = None
    serve_tokens: float | None = None
    hours: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not (np.isfinite(value) and value > 0):
                raise ConfigError(
                    f"{name} is {value}. Expected a finite number above 0. Leave {name} out for no limit."
                )


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """A backbone to train with a method until the whole budget is spent.

    Attributes:
        method: Name of the method.
        backbone: Name of the backbone.
        parameters: Number of parameters of the backbone, without embedding tables (N).
        tokens: Number of tokens to train on (D).
        flops: Training cost in FLOPs: the budget minus the cost of ``Constraints.serve_tokens``.
        loss: Predicted loss on held-out data.
        interval_80: 80 % interval of the loss.
        interval_95: 95 % interval of the loss.
        probability_best: Probability of the lowest loss of all configurations.
        cannot_be_told_apart: Whether this is the best configuration, or has a lower loss than the best configuration
            with a probability of at least 10 %.
        learning_rate: Peak learning rate of a run of the method on the backbone, or else on the backbone of the nearest
            size. Of these runs, the run with the cost nearest to the budget is taken. None if no run states a rate.
        pairs: Number of text pairs to train on; None if no run states how many pairs it saw.
        epochs: Number of times that the unique pairs are seen; None if unknown.
        hours: Duration of training in hours, on the named device or on the device of the runs; None if unknown.
        memory_bytes: Peak memory of one device in the runs of the method on the backbone, in bytes; None if unknown.
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


@dataclass(frozen=True, kw_only=True)
class MeasuredBest:
    """The run with the lowest loss at about the budget of a recipe, which the recommendation is compared with.

    Attributes:
        method: Name of the method of the run.
        backbone: Name of the backbone of the run.
        flops: Training cost of the run in FLOPs.
        loss: Measured loss of the run.
        num_runs: Number of runs at about the budget: up to a factor of the square root of 2 from it.
        is_recommended: Whether the run has the recommended method and backbone.
        recommended_loss: Lowest measured loss of the recommended configuration at about the budget; None if it was not
            trained there.
        noise: Standard deviation of the difference of log loss of two runs that comes from the noise of both runs.
    """

    method: str
    backbone: str
    flops: float
    loss: float
    num_runs: int
    is_recommended: bool
    recommended_loss: float | None
    noise: float

    @property
    def words(self) -> str:
        """Whether the runs agree with the recommendation, and if not, why they do not."""
        of = f"of {self.num_runs} runs at about this budget" if self.num_runs > 1 else "of 1 run at about this budget"
        at = f"{self.loss:.4g} at {self.flops:.3g} FLOPs"
        if self.is_recommended:
            return f"The runs agree: {of}, one of this configuration has the lowest loss ({at})."
        text = (
            f"The runs differ: {of}, one of {plain_text(self.backbone)} with {plain_text(self.method)} has the lowest "
        )
        if self.recommended_loss is None:
            return f"{text}loss ({at}). The recommended configuration was not trained at this budget."
        off = float(np.log(self.recommended_loss / self.loss))
        text += f"loss ({at}), and the recommended configuration has {self.recommended_loss:.4g}."
        if off <= _CLEAR * self.noise:
            return f"{text} The difference of {off:.2%} is within the noise of two runs ({self.noise:.2%})."
        return (
            f"{text} The difference of {off:.2%} is more than the noise of two runs ({self.noise:.2%}), so the laws "
            "miss something here: at this budget, the run is the safer choice."
        )


@dataclass(frozen=True)
class Recipe:
    """The recommendation for one budget.

    Attributes:
        budget: Budget in FLOPs.
        configurations: Possible configurations; the lowest predicted loss comes first.
        method_probability: Probability that a method has the configuration with the lowest loss, by method.
        extrapolation: Budget divided by the FLOPs of the largest run.
        ruled_out: Number of configurations that a reason rules out, by reason. A reason is the name of a constraint,
            with an explanation where needed.
        measured: The best run at about the budget; None if there is no such run that meets the constraints.
    """

    budget: float
    configurations: tuple[Configuration, ...]
    method_probability: dict[str, float]
    extrapolation: float
    ruled_out: dict[str, int]
    measured: MeasuredBest | None = None

    @property
    def best(self) -> Configuration:
        """The configuration with the lowest predicted loss."""
        return self.configurations[0]


def recipe(
    laws: Sequence[MethodLaw],
    budget: float,
    constraints: Constraints | None = None,
    *,
    extrapolate: bool = False,
    peak: float | None = None,
) -> Recipe:
    """Recommend configurations for a budget, based on the laws of the methods.

    Args:
        laws: Laws of the methods.
        budget: Budget in FLOPs.
        constraints: Limits that a configuration has to meet; None for no limits.
        extrapolate: Answer for budgets beyond ``FARTHEST`` times the largest run, too.
        peak: Peak FLOP/s of the device to train on, of which training is assumed to use the same share as the runs did
            on their device. None for the speed of the runs.

    Raises:
        ConfigError: If the budget is not a finite number above 0 or is too far beyond the runs, or if no configuration
            meets the constraints.
    """
    if not (np.isfinite(budget) and budget > 0):
        raise ConfigError(f"The budget is {budget} FLOPs. Expected a finite number above 0.")
    constraints = constraints or Constraints()
    largest = max(law.largest_flops for law in laws)
    if budget > FARTHEST * largest and not extrapolate:
        raise ConfigError(
            f"The budget of {budget:g} FLOPs is {budget / largest:.3g} times that of the largest run ({largest:.3g} "
            f"FLOPs), and laws are trusted up to {FARTHEST:g} times. Train larger runs, or add --extrapolate."
        )
    suite = suite_of(laws)
    per_pair = tokens_per_pair(laws)
    if constraints.unique_pairs is not None and per_pair is None:
        raise ConfigError("unique_pairs is set, but no run states how many pairs it saw. Leave unique_pairs out.")
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
            f"No configuration meets the constraints at a budget of {budget:g} FLOPs: "
            + "; ".join(
                f"{reason} rules out {count} of {len(laws) * len(suite)}" for reason, count in ruled_out.items()
            )
            + f". Relax {most}, or change the budget."
        )
    ranked, probability = _ranked(laws, possible, unique_tokens)
    return Recipe(budget, tuple(ranked), probability, budget / largest, ruled_out, _measured_best(laws, ranked))


def _measured_best(laws: Sequence[MethodLaw], ranked: Sequence[Configuration]) -> MeasuredBest | None:
    """Return the best run at about the costs of the possible configurations; None if there is none.

    Args:
        laws: Laws of the methods, with their runs.
        ranked: Configurations that meet the constraints, the recommended one first.
    """
    flops = {(one.method, one.backbone): one.flops for one in ranked}
    near = [
        (law, row)
        for law in laws
        for row in law.observations
        if (cost := flops.get((row.method, row.backbone))) and _distance(row.flops, cost) <= _ABOUT
    ]
    if not near:
        return None
    law, run = min(near, key=lambda one: one[1].loss)
    first = ranked[0]
    own = [(of, row.loss) for of, row in near if (row.method, row.backbone) == (first.method, first.backbone)]
    noise = float(np.hypot(law.growth.noise, own[0][0].growth.noise if own else law.growth.noise))
    return MeasuredBest(
        method=run.method,
        backbone=run.backbone,
        flops=run.flops,
        loss=run.loss,
        num_runs=len(near),
        is_recommended=(run.method, run.backbone) == (first.method, first.backbone),
        recommended_loss=min((loss for _, loss in own), default=None),
        noise=noise,
    )


def suite_of(laws: Sequence[MethodLaw]) -> list[tuple[str, float]]:
    """Return the name and the number of parameters of each backbone in the runs; the smallest comes first."""
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
    tokens = flops / float(law.token_costs.interpolated(np.array([parameters]))[0])
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
    """Return a quantity of runs at a model size: the median over runs of a size, interpolated between sizes.

    Interpolation is linear in the logarithms of size and quantity; beyond the sizes of the runs the value is constant.

    Args:
        observations: Runs of one method.
        parameters: Model size, in parameters.
        of: Function that returns the quantity of a run, above 0; None if the run does not state the quantity.

    Returns:
        The quantity, or None if no run states it.
    """
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
    """Return the median number of tokens per text pair over all runs; None if no run states how many pairs it saw."""
    ratios = [row.tokens / row.pairs for law in laws for row in law.observations if row.pairs]
    return float(np.median(ratios)) if ratios else None


def _ruled_out_by(configuration: Configuration, law: MethodLaw, constraints: Constraints) -> str | None:
    """Return what rules a configuration out, beginning with the name of a constraint; None if nothing does."""
    if configuration.flops <= 0:
        return "serve_tokens (serving alone costs the whole budget)"
    if not law.knows(np.array(configuration.parameters), np.array(configuration.tokens)):
        return f"the limit on tokens per parameter (up to {FARTHEST:g} times beyond the runs)"
    if constraints.max_parameters is not None and configuration.parameters > constraints.max_parameters:
        return "max_parameters"
    if constraints.max_memory is not None:
        if configuration.memory_bytes is None:
            return "max_memory (no run of the method on the backbone states its memory)"
        if configuration.memory_bytes > constraints.max_memory * 2**30:
            return "max_memory"
    if constraints.hours is not None:
        if configuration.hours is None:
            return "hours (no run of the method states its speed)"
        if configuration.hours > constraints.hours:
            return "hours"
    if configuration.epochs is not None and configuration.epochs > MOST_EPOCHS and not law.knows_repetition:
        return f"unique_pairs (more than {MOST_EPOCHS:g} epochs, whose effect no run of the method shows)"
    return None


def _ranked(
    laws: Sequence[MethodLaw], possible: Sequence[Configuration], unique_tokens: float | None
) -> tuple[list[Configuration], dict[str, float]]:
    """Return the configurations with predicted losses, the best first, and the probability of each method to be best.

    Args:
        laws: Laws of the methods.
        possible: Configurations that meet the constraints.
        unique_tokens: Number of tokens of one epoch; None if no token is repeated.
    """
    order: list[Configuration] = []
    estimates, replicates = [], []
    for law in laws:
        of_law = [one for one in possible if one.method == law.method]
        if not of_law:
            continue
        sizes_C, tokens_C = (np.array([getattr(one, name) for one in of_law]) for name in ("parameters", "tokens"))
        unique_C = None if unique_tokens is None else np.minimum(tokens_C, unique_tokens)
        at = Configurations(sizes_C, tokens_C, unique_C, [one.backbone for one in of_law])
        estimate_C, log_RC = law.log_losses(at)
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
