"""The law of each method, with its uncertainty: chooses a law, fits it, and estimates its errors.

Recipes, crossovers and reports are computed from these laws. Names of arrays end in their axes:

    R  bootstrap replicates      C  configurations      G  budgets
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from scipy.stats import t as student_t

from embedlab.errors import ConfigError
from embedlab.scaling.bootstrap import NUM_REPLICATES, Interval, Replicates, bootstrap, weakly_identified
from embedlab.scaling.fitting import HUBER_DELTA, Fit, Runs, fit
from embedlab.scaling.isoflop import has_interior_optimum
from embedlab.scaling.laws import Chinchilla, Law, Multiplicative, Rectified, Repeated
from embedlab.scaling.observations import Observation, runs_of
from embedlab.scaling.validation import Choice, choices, preferred

FARTHEST = 10.0
"""Factor beyond the runs, in FLOPs and in tokens per parameter, up to which a law is trusted."""

_SEED_OF_ERRORS = 1
MANY_EPOCHS = 1.5  # epochs of at least one run, above which the effect of repeated data is fitted


@dataclass(frozen=True)
class MethodLaw:
    """The law of one method, with its uncertainty.

    Attributes:
        method: Name of the method.
        observations: Runs that the law was fitted to.
        choices: The laws that were tried; the chosen law comes first.
        replicates: Fit of the chosen law to all runs, with bootstrap replicates.
        held_out_error: Root mean square error of log loss (about a share of the loss) on the 1, 2 and 3 largest budget
            levels, when these are held out of the fit. Numbers of levels that the runs do not allow are missing; empty
            if none can be held out.
        held_out_families: Number of families of runs behind each entry of ``held_out_error``.
    """

    method: str
    observations: tuple[Observation, ...]
    choices: tuple[Choice, ...]
    replicates: Replicates
    held_out_error: tuple[float, ...]
    held_out_families: tuple[int, ...] = ()

    @property
    def fit(self) -> Fit:
        """Fit of the law to all runs."""
        return self.replicates.fit

    @property
    def caution(self) -> str:
        """A warning about runs that have hardly learned, which no law describes; empty without such runs."""
        near = [row for row in self.observations if row.is_near_chance]
        if not near:
            return ""
        return (
            f"{len(near)} of {len(self.observations)} runs, of up to {max(row.flops for row in near):.3g} FLOPs, "
            f"have losses near the loss of random guessing ({near[0].chance:.3g}). Early in training, losses fall "
            "faster than a power law, so the law may predict too high losses for larger runs. Leave out small budgets, "
            "or add larger budgets."
        )

    @cached_property
    def weakly_identified(self) -> dict[str, Interval]:
        """The parameters that the runs hardly determine, with their 90 % profile likelihood intervals."""
        return weakly_identified(self.replicates, self.runs)

    @property
    def runs(self) -> Runs:
        """The observations as arrays, one entry per run."""
        return runs_of(self.observations)

    @property
    def largest_flops(self) -> float:
        """Training cost of the largest run, in FLOPs."""
        return max(row.flops for row in self.observations)

    def flops_per_token(self, parameters_C: np.ndarray) -> np.ndarray:
        """Return the training FLOPs per token at any model sizes: (C,).

        The FLOPs per token and parameter are medians over the runs of each size. They are interpolated between sizes
        on logarithmic scales, and constant beyond the sizes of the runs.

        Args:
            parameters_C: Model sizes, in parameters.
        """
        by_size: dict[float, list[float]] = {}
        for row in self.observations:
            by_size.setdefault(row.parameters, []).append(row.flops / row.tokens)
        sizes = np.array(sorted(by_size))
        # The cost per parameter hardly changes with size, so it can stay constant beyond the sizes of the runs.
        per_parameter = np.array([np.median(by_size[size]) / size for size in sizes])
        return np.asarray(parameters_C * np.exp(np.interp(np.log(parameters_C), np.log(sizes), np.log(per_parameter))))

    def knows(self, parameters: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Return where the tokens per parameter are within ``FARTHEST`` times the range of the runs.

        Args:
            parameters: Model sizes, in parameters; an array of any shape.
            tokens: Amounts of data, in tokens; an array of the same shape.
        """
        ratios = [row.tokens / row.parameters for row in self.observations]
        ratio = tokens / parameters
        return np.asarray((min(ratios) / FARTHEST <= ratio) & (ratio <= max(ratios) * FARTHEST))

    def frontier(self, sizes_C: np.ndarray, flops_G: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the logarithm of the minimum loss over some model sizes, at each budget.

        Args:
            sizes_C: Model sizes, in parameters.
            flops_G: Budgets, in FLOPs.

        Returns:
            The estimates (G,), and the values in the bootstrap replicates with errors of the law added (R, G). A value
            is NaN at a budget for which no size has a trusted number of tokens per parameter.
        """
        tokens_GC = flops_G[:, None] / self.flops_per_token(sizes_C)
        sizes_GC = np.broadcast_to(sizes_C, tokens_GC.shape)
        is_known_GC = self.knows(sizes_GC, tokens_GC)
        none_G = ~is_known_GC.any(axis=1)

        def least(one: Fit) -> np.ndarray:
            loss_GC = np.log(one.loss(sizes_GC.ravel(), tokens_GC.ravel())).reshape(sizes_GC.shape)
            least_G = np.where(is_known_GC, loss_GC, np.inf).min(axis=1)
            return np.asarray(np.where(none_G, np.nan, least_G))

        estimate_G, log_RG = self.replicates.quantity(least)
        return estimate_G, log_RG + self.errors(len(log_RG))[:, None]

    @property
    def error(self) -> float:
        """Typical relative error of a prediction, in addition to the bootstrap: the maximum of ``held_out_error``.

        The maximum is used because the largest budget levels often have only one or two runs, which may lie near the
        law by chance. The error includes both the error of the law beyond its runs and the noise of a single run.
        """
        return max(self.held_out_error, default=0.0)

    def log_losses(
        self, parameters_C: np.ndarray, tokens_C: np.ndarray, unique_tokens: float | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the logarithms of predicted losses.

        Args:
            parameters_C: Model sizes, in parameters.
            tokens_C: Amounts of data, in tokens.
            unique_tokens: Number of tokens of one epoch; None if no token is repeated.

        Returns:
            The estimates (C,), and the values in the bootstrap replicates with errors of the law added (R, C).
        """
        unique_C = None if unique_tokens is None else np.minimum(tokens_C, unique_tokens)
        estimate_C, log_RC = self.replicates.quantity(lambda one: np.log(one.loss(parameters_C, tokens_C, unique_C)))
        return estimate_C, log_RC + self.errors(len(log_RC))[:, None]

    def errors(self, num_replicates: int) -> np.ndarray:
        """Draw one random error of the law for each bootstrap replicate, as a difference of log loss: (R,).

        A replicate has one error for all sizes and budgets. The errors follow Student's t-distribution, scaled by
        ``error``, because an error that was measured on few runs is uncertain. The number of degrees of freedom is the
        number of families of held-out runs, in the hold-out that has the most. All errors are 0 if no budget
        level could be held out.

        Args:
            num_replicates: Number of bootstrap replicates (R).
        """
        if not self.held_out_error:
            return np.zeros(num_replicates)
        families = max(self.held_out_families, default=np.inf)
        generator = np.random.default_rng([_SEED_OF_ERRORS, *self.method.encode()])
        # Equally spaced probabilities in random order give more exact quantiles than independent draws.
        probability_R = (generator.permutation(num_replicates) + 0.5) / num_replicates
        return np.asarray(self.error * student_t.ppf(probability_R, families))


def laws_to_try(runs: Runs) -> list[Law]:
    """Return the laws that the runs can tell apart; laws that are sums of power terms come first.

    A sum can have its best model size inside the range of sizes. A product of powers has its best size at an end of
    the range, so ``Multiplicative`` is not tried if the runs show a best size in between.

    Args:
        runs: Runs of one method.
    """
    one_size = len(np.unique(runs.parameters_P)) == 1
    laws: list[Law] = [Rectified(one_model=True)] if one_size else [Chinchilla(), Rectified()]
    if not one_size and not has_interior_optimum(runs):
        laws.append(Multiplicative())
    unique_P = runs.tokens_P if runs.unique_tokens_P is None else runs.unique_tokens_P
    if (runs.tokens_P > MANY_EPOCHS * unique_P).any():
        laws = [Repeated(law) for law in laws]
    return laws


def law_of(
    method: str,
    observations: Sequence[Observation],
    *,
    huber_delta: float | None = HUBER_DELTA,
    num_replicates: int = NUM_REPLICATES,
    seed: int = 0,
) -> MethodLaw:
    """Choose a law by its errors on held-out budget levels, fit the law to all runs, and make bootstrap replicates.

    Args:
        method: Name of the method.
        observations: Runs of the method.
        huber_delta: Absolute residual of log loss above which the Huber loss is linear; None for least squares.
        num_replicates: Number of bootstrap replicates.
        seed: Seed of the bootstrap.

    Raises:
        ConfigError: If there are too few runs, families, sizes or amounts of data for every law.
    """
    return _law_of(method, tuple(observations), huber_delta, num_replicates, seed)


@lru_cache  # a search computes the same law before, during and after a confirmation
def _law_of(
    method: str, observations: tuple[Observation, ...], huber_delta: float | None, num_replicates: int, seed: int
) -> MethodLaw:
    runs = runs_of(observations)
    laws = laws_to_try(runs)
    ranked = choices(laws, runs, huber_delta=huber_delta)
    first = preferred(ranked, laws)
    tried = (first, *(choice for choice in ranked if choice is not first))
    refusal: ConfigError | None = None
    for choice in tried:
        try:
            found = fit(choice.law, runs, huber_delta=huber_delta)
        except ConfigError as error:
            refusal = refusal or error
            continue
        errors = tuple(held.root_mean_square for held in choice.hold_outs)
        replicates = bootstrap(found, runs, num_replicates=num_replicates, seed=seed)
        in_order = (choice, *(other for other in tried if other is not choice))
        families = tuple(held.num_families for held in choice.hold_outs)
        return MethodLaw(method, observations, in_order, replicates, errors, families)
    assert refusal is not None
    raise ConfigError(f"No law can be fitted to the runs of {method}. {refusal}") from refusal


def laws_of(
    observations: Mapping[str, Sequence[Observation]],
    *,
    huber_delta: float | None = HUBER_DELTA,
    num_replicates: int = NUM_REPLICATES,
) -> tuple[list[MethodLaw], dict[str, str]]:
    """Fit a law for each method.

    Args:
        observations: Runs of each method, by the name of the method.
        huber_delta: Absolute residual of log loss above which the Huber loss is linear; None for least squares.
        num_replicates: Number of bootstrap replicates.

    Returns:
        The laws, and for each method without a law the reason.

    Raises:
        ConfigError: If no method has a law.
    """
    found: list[MethodLaw] = []
    refused: dict[str, str] = {}
    for number, (method, rows) in enumerate(observations.items()):
        try:  # a seed per method, so that the replicates of methods are independent
            found.append(law_of(method, rows, huber_delta=huber_delta, num_replicates=num_replicates, seed=number))
        except ConfigError as error:
            refused[method] = str(error)
    if not found:
        raise ConfigError(" ".join(refused.values()))
    return found, refused
