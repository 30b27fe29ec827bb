"""The laws of each method, with their uncertainty: weights and fits ways to predict losses, and measures the errors.

Recipes, crossovers and reports are computed from these laws. Names of arrays end in their axes:

    R  bootstrap replicates or random draws      C  configurations      G  budgets
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
from scipy.stats import rankdata
from scipy.stats import t as student_t

from embedlab.errors import ConfigError, plain_text
from embedlab.scaling.bootstrap import NUM_REPLICATES, Interval, Replicates, bootstrap, weakly_identified
from embedlab.scaling.error_growth import ErrorGrowth, error_growth, shared_error
from embedlab.scaling.fitting import HUBER_DELTA, NUM_STARTS, Configurations, Fit, Runs
from embedlab.scaling.isoflop import has_interior_optimum
from embedlab.scaling.laws import Bounded, Chinchilla, Law, Multiplicative, Rectified, Repeated
from embedlab.scaling.members import FittedMember, Member, Worths, fitted_members, log_loss, weighted_sum
from embedlab.scaling.observations import Observation, runs_of
from embedlab.scaling.outliers import Outlier, outliers_of
from embedlab.scaling.token_costs import TokenCosts
from embedlab.scaling.validation import Choice, HoldOut, averaged, choices

FARTHEST = 10.0
"""Factor beyond the runs, in FLOPs and in tokens per parameter, up to which a law is trusted."""

NUM_DRAWS = 1000
"""Number of random draws of the losses of a run."""

_SEED_OF_ERRORS = 1
_MOST_SHARES = 5  # laws among which the replicates are divided at most, since bounds of intervals need enough of them
_NEARLY = 0.5  # share of the largest weight from which a simpler law is the one that is reported
_HIGH = 0.5  # loss as a share of that of a guess, below which a bound of losses hardly changes a law
MANY_EPOCHS = 1.5  # epochs of at least one run, above which the effect of repeated data is fitted


@dataclass(frozen=True)
class LawPart:
    """A law as it was fitted, with its share in the predictions of a method.

    Attributes:
        share: Share of the law in predictions, from 0 to 1.
        replicates: Fit of the law with bootstrap replicates.
        worths: Worths of the backbones, as the weighted mean over the members that use the law.
    """

    share: float
    replicates: Replicates
    worths: Worths

    def log_loss(self, one: Fit, at: Configurations) -> np.ndarray:
        """Return the natural logarithm of the loss that a fit or a replicate of the law predicts: (C,).

        Args:
            one: The fit, or one of its bootstrap replicates.
            at: Configurations to predict the losses of.
        """
        return log_loss(one, self.worths, at)


@dataclass(frozen=True)
class MethodLaw:
    """The laws of one method, with their uncertainty.

    Attributes:
        method: Name of the method.
        observations: Runs that the laws were fitted to.
        choices: The members that were tried; the one with the largest weight comes first.
        parts: The laws of the members with a weight; the one whose parameters are reported comes first.
        hold_outs: Errors of the weighted mean of the members for each number of held-out budget levels.
        growth: Sizes of the errors of predictions, by the distance from the runs.
        outliers: Runs that no law was fitted to, because their losses are far from those of all other runs.
    """

    method: str
    observations: tuple[Observation, ...]
    choices: tuple[Choice, ...]
    parts: tuple[LawPart, ...]
    hold_outs: tuple[HoldOut, ...]
    growth: ErrorGrowth
    outliers: tuple[Outlier, ...] = ()

    @property
    def replicates(self) -> Replicates:
        """Fit of the law whose parameters are reported, with its bootstrap replicates."""
        return self.parts[0].replicates

    @property
    def fit(self) -> Fit:
        """Fit of the law whose parameters are reported."""
        return self.replicates.fit

    @property
    def held_out_error(self) -> tuple[float, ...]:
        """Root mean square errors of log loss on the 1, 2 and 3 largest budget levels, as far as they were held out."""
        return tuple(held.root_mean_square for held in self.hold_outs if held.num_budgets <= 3)

    @property
    def r_squared(self) -> float:
        """Share of the variance of log loss over the runs that the weighted mean of the laws explains."""
        log_loss_P = np.log([row.loss for row in self.observations])
        residual_P = log_loss_P - self.log_loss(self.runs.configurations)
        total = float(np.square(log_loss_P - log_loss_P.mean()).sum())
        return 1 - float(np.square(residual_P).sum()) / total if total else 1.0

    @property
    def weights(self) -> dict[str, float]:
        """Share of each formula in predictions, by its name; the formula of ``fit`` comes first."""
        found: dict[str, float] = {}
        for part in self.parts:
            name = part.replicates.fit.law.name
            found[name] = found.get(name, 0.0) + part.share
        return found

    @property
    def knows_repetition(self) -> bool:
        """Whether most of the weight is on laws that correct for repeated data."""
        return sum(part.share for part in self.parts if "R" in part.replicates.fit.names) > 0.5

    def quantity(self, of: Callable[[np.ndarray], np.ndarray], at: Configurations) -> tuple[np.ndarray, np.ndarray]:
        """Return the estimate of what follows from predicted losses, and its values (R, ...) in the replicates.

        In a replicate, all laws are fitted with the same random weights of the runs, so a replicate is a weighted mean
        of laws like the estimate.

        Args:
            of: Function of the logarithms of predicted losses (C,) that returns the quantity, on a scale without
                bounds.
            at: Configurations whose losses are predicted.
        """
        estimate = np.asarray(of(self.log_loss(at)), dtype=float)
        replicates = zip(*(part.replicates.fits_R for part in self.parts), strict=True)
        values_R = np.stack([np.asarray(of(self._mean(fits, at)), dtype=float) for fits in replicates])
        spread = sum(part.share * part.replicates.spread for part in self.parts)
        return estimate, estimate + spread * (values_R - estimate)

    def _mean(self, fits: Sequence[Fit], at: Configurations) -> np.ndarray:
        """Return the weighted mean of the log losses that one fit of each law predicts: (C,)."""
        means = [part.share * part.log_loss(fit, at) for part, fit in zip(self.parts, fits, strict=True)]
        return np.asarray(np.sum(means, axis=0))

    @property
    def caution(self) -> str:
        """Warnings about runs that no law describes: outliers, and runs that have hardly learned; empty without any."""
        found = [self.chance_warning] if self.chance_warning else []
        if self.outliers:
            listed = "; ".join(plain_text(one.words, longest=None) for one in self.outliers)
            found.insert(0, f"Left out, because their losses are far from those of all other runs: {listed}.")
        return " ".join(found)

    @property
    def chance_warning(self) -> str:
        """A warning about runs whose losses are near the loss of random guessing; empty if there are none."""
        near = [row for row in self.observations if row.is_near_chance]
        if not near:
            return ""
        found = (
            f"{len(near)} of {len(self.observations)} runs, of up to {max(row.flops for row in near):.3g} FLOPs, "
            f"have losses near the loss of random guessing ({near[0].chance:.3g}). "
        )
        if sum(part.share for part in self.parts if isinstance(part.replicates.fit.law, Bounded)) > 0.5:
            return found + "The law is bounded by this loss, but such runs say little about larger budgets."
        return found + (
            "Early in training, losses fall faster than a power law, so the law may predict too high losses for larger "
            "runs. Leave out small budgets, or add larger budgets."
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

    @cached_property
    def token_costs(self) -> TokenCosts:
        """What a token costs at any model size."""
        return TokenCosts(self.observations)

    def knows(self, parameters: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Return where the tokens per parameter are within ``FARTHEST`` times the range of the runs.

        Args:
            parameters: Model sizes, in parameters; an array of any shape.
            tokens: Amounts of data, in tokens; an array of the same shape.
        """
        ratios = [row.tokens / row.parameters for row in self.observations]
        ratio = tokens / parameters
        return np.asarray((min(ratios) / FARTHEST <= ratio) & (ratio <= max(ratios) * FARTHEST))

    def frontier(
        self, sizes_C: np.ndarray, flops_G: np.ndarray, backbones: Sequence[str] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the logarithm of the minimum loss over some model sizes, at each budget.

        Args:
            sizes_C: Model sizes, in parameters.
            flops_G: Budgets, in FLOPs.
            backbones: Name of the backbone of each size; None for models of these sizes in general.

        Returns:
            The estimates (G,), and the values in the bootstrap replicates with errors of the law added (R, G). A value
            is NaN at a budget for which no size has a trusted number of tokens per parameter.
        """
        tokens_GC = flops_G[:, None] / self.token_costs.interpolated(sizes_C)
        sizes_GC = np.broadcast_to(sizes_C, tokens_GC.shape)
        names = None if backbones is None else list(backbones) * len(flops_G)
        is_known_GC = self.knows(sizes_GC, tokens_GC)
        none_G = ~is_known_GC.any(axis=1)
        at = Configurations(sizes_GC.ravel(), tokens_GC.ravel(), None, names)

        def least(log_loss_C: np.ndarray) -> np.ndarray:
            least_G = np.where(is_known_GC, log_loss_C.reshape(sizes_GC.shape), np.inf).min(axis=1)
            return np.asarray(np.where(none_G, np.nan, least_G))

        estimate_G, log_RG = self.quantity(least, at)
        growth_G = self.growth.per_decade * self.decades(flops_G)
        return estimate_G, log_RG + growth_G * self.draws("", len(log_RG))[:, None]

    def decades(self, flops: np.ndarray) -> np.ndarray:
        """Return by how many factors of 10 FLOPs exceed those of the largest run; 0 where they do not exceed them."""
        return np.asarray(np.maximum(np.log10(flops / self.largest_flops), 0.0))

    def log_loss(self, at: Configurations) -> np.ndarray:
        """Return the natural logarithms of predicted losses (C,), as weighted means over the laws.

        Args:
            at: Configurations to predict the losses of.
        """
        return self._mean([part.replicates.fit for part in self.parts], at)

    def log_losses(self, at: Configurations, num_draws: int = NUM_DRAWS) -> tuple[np.ndarray, np.ndarray]:
        """Return the logarithms of predicted losses of single runs.

        Args:
            at: Configurations to predict the losses of.
            num_draws: Number of random draws (R).

        Returns:
            The estimates (C,), and random draws of the losses that runs might have (R, C). A draw has one error of the
            law for all configurations, and a noise of its own for each.
        """
        estimate_C = self.log_loss(at)
        growth_C = self.growth.per_decade * self.decades(at.tokens_C * self.token_costs.interpolated(at.parameters_C))
        names = [str(number) for number in range(len(at.tokens_C))] if at.backbones is None else at.backbones
        noise_RC = np.stack([self.draws(name, num_draws) for name in names], axis=1)
        log_RC = estimate_C + growth_C * self.draws("", num_draws)[:, None] + self.growth.noise * noise_RC
        return estimate_C, log_RC

    def draws(self, name: str, num_draws: int) -> np.ndarray:
        """Return random draws of Student's t-distribution with the degrees of freedom of the errors: (R,).

        The same name gives the same draws. Errors of the laws of several methods have the correlation
        ``ErrorGrowth.shared``.

        Args:
            name: Name of what is drawn: that of a backbone for its noise, or the empty text for the error of the law.
            num_draws: Number of draws (R).
        """
        own_R = _normal([*self.method.encode(), 0, *name.encode()], num_draws)
        if not name:
            own_R = np.sqrt(self.growth.shared) * _normal([], num_draws) + np.sqrt(1 - self.growth.shared) * own_R
        # Equally spaced probabilities in random order give more exact quantiles than independent draws.
        return np.asarray(student_t.ppf((rankdata(own_R) - 0.5) / num_draws, self.growth.degrees))


def _normal(key: Sequence[int], num_draws: int) -> np.ndarray:
    """Return draws of the normal distribution; of the same key, fewer draws are the first of more."""
    return np.random.default_rng([_SEED_OF_ERRORS, *key]).standard_normal(num_draws)


def with_shared_errors(laws: Sequence[MethodLaw]) -> list[MethodLaw]:
    """Return laws of methods that are compared, with the correlation of their errors on held-out budgets.

    Args:
        laws: Laws of the methods.
    """
    shared = shared_error([{held.num_budgets: held.bias for held in law.hold_outs} for law in laws])
    return [replace(law, growth=replace(law.growth, shared=shared)) for law in laws]


Track = Callable[[Collection[str]], Iterable[str]]
"""Function that returns the names of methods as they are, and may show how many were asked for."""


def members_to_try(runs: Runs) -> list[Member]:
    """Return the members that the runs can tell apart, the preferred ones first.

    A sum of power terms can have its best model size inside the range of sizes. A product of powers has its best size
    at an end of the range, so ``Multiplicative`` is not tried if the runs show a best size in between. If a run repeats
    its data, each law is tried with and without the correction for repeated data. If a loss is near that of random
    guessing, the first law is tried in its bounded form, too.

    Args:
        runs: Runs of one method.
    """
    one_size = len(np.unique(runs.parameters_P)) == 1
    laws: list[Law] = [Rectified(one_model=True)] if one_size else [Chinchilla(), Rectified()]
    to_bound = laws[:1]
    if not one_size and not has_interior_optimum(runs):
        laws.append(Multiplicative())
    unique_P = runs.tokens_P if runs.unique_tokens_P is None else runs.unique_tokens_P
    if (runs.tokens_P > MANY_EPOCHS * unique_P).any():
        laws = [*(Repeated(law) for law in laws), *laws]
        to_bound = [laws[0], *to_bound]
    if runs.chance is not None and runs.loss_P.max() > _HIGH * runs.chance:
        laws += [Bounded(law, runs.chance) for law in to_bound]
    has_worths = (False,) if runs.backbones is None or len(set(runs.backbones)) < 2 else (False, True)
    is_near_best = (False,) if one_size else (False, True)
    return [Member(law, near, worths) for law in laws for near in is_near_best for worths in has_worths]


def law_of(
    method: str,
    observations: Sequence[Observation],
    *,
    members: Sequence[Member] | None = None,
    huber_delta: float | None = HUBER_DELTA,
    num_replicates: int = NUM_REPLICATES,
    seed: int = 0,
) -> MethodLaw:
    """Weight members by their errors on held-out budget levels, fit them to all runs, and make bootstrap replicates.

    Args:
        method: Name of the method.
        observations: Runs of the method.
        members: Ways to predict losses that are tried, the preferred one first; by default those that the runs can tell
            apart.
        huber_delta: Absolute residual of log loss above which the Huber loss is linear; None for least squares.
        num_replicates: Number of bootstrap replicates.
        seed: Seed of the bootstrap.

    Raises:
        ConfigError: If there are too few runs, families, sizes or amounts of data for every law.
    """
    tried = None if members is None else tuple(members)
    return _law_of(method, tuple(observations), tried, huber_delta, num_replicates, seed)


@lru_cache  # a search computes the same law before, during and after a confirmation
def _law_of(
    method: str,
    observations: tuple[Observation, ...],
    members: tuple[Member, ...] | None,
    huber_delta: float | None,
    num_replicates: int,
    seed: int,
) -> MethodLaw:
    observations, outliers = _without_outliers(observations, members, huber_delta)
    runs = runs_of(observations)
    fitted, ranked = _fitted_choices(method, observations, members, huber_delta)
    weights = [choice.weight for choice in ranked if choice.weight > 0]
    parts = law_parts(fitted, weights, runs, num_replicates=num_replicates, seed=seed)
    hold_outs, growth = errors_of_mean(fitted, ranked, runs)
    return MethodLaw(method, observations, tuple(ranked), parts, hold_outs, growth, outliers)


@lru_cache
def _without_outliers(
    observations: tuple[Observation, ...], members: tuple[Member, ...] | None, huber_delta: float | None
) -> tuple[tuple[Observation, ...], tuple[Outlier, ...]]:
    runs = runs_of(observations)
    law = (members or members_to_try(runs))[0].law
    found = outliers_of(law, observations, runs, huber_delta)
    names = {one.name for one in found}
    return tuple(row for row in observations if row.name not in names), tuple(found)


@lru_cache  # without the bootstrap, so that another number of replicates fits no law twice
def _fitted_choices(
    method: str,
    observations: tuple[Observation, ...],
    members: tuple[Member, ...] | None,
    huber_delta: float | None,
) -> tuple[list[FittedMember], list[Choice]]:
    """Return the members with a weight, fitted to all runs, and all members that were tried, the best first."""
    runs = runs_of(observations)
    ranked = choices(members_to_try(runs) if members is None else members, runs, huber_delta=huber_delta)
    refusal: ConfigError | None = None
    while True:
        try:
            used = [choice.member for choice in ranked if choice.weight > 0]
            return fitted_members(used, runs, huber_delta=huber_delta, num_starts=NUM_STARTS), ranked
        except ConfigError as error:
            refusal = refusal or error
            ranked = _without_first(ranked)
            if not ranked:
                raise ConfigError(f"No law can be fitted to the runs of {method}. {refusal}") from refusal


def _without_first(ranked: Sequence[Choice]) -> list[Choice]:
    """Return the choices without those of the first law, the first of the rest with all the weight."""
    rest = [choice for choice in ranked if choice.member.law is not ranked[0].member.law]
    return [replace(choice, weight=float(number == 0)) for number, choice in enumerate(rest)]


def law_parts(
    fitted: Sequence[FittedMember], weights: Sequence[float], runs: Runs, *, num_replicates: int, seed: int
) -> tuple[LawPart, ...]:
    """Return the laws of fitted members with bootstrap replicates, in which all laws have the same random weights.

    The first law is the one whose parameters are reported: the law with the fewest parameters among those with at least
    half of the largest weight.

    Args:
        fitted: Members with a weight, the largest weight first.
        weights: Weight of each member.
        runs: Runs that the members were fitted to.
        num_replicates: Number of fits of all laws together. Each law has the same number of replicates, at least a
            fifth of this number.
        seed: Seed of the bootstrap.

    Raises:
        ConfigError: If there are too few families of runs to draw from.
    """
    of_law: dict[int, list[tuple[FittedMember, float]]] = {}
    for one, weight in zip(fitted, weights, strict=True):
        of_law.setdefault(id(one.fit), []).append((one, weight))
    groups = sorted(of_law.values(), key=lambda group: -sum(weight for _, weight in group))
    shares = [sum(weight for _, weight in group) for group in groups]
    near = [number for number, share in enumerate(shares) if share >= _NEARLY * shares[0]]
    simplest = min(near, key=lambda n: (len(groups[n][0][0].fit.theta_K), groups[n][0][0].member.is_near_best))
    groups.insert(0, groups.pop(simplest))
    shares.insert(0, shares.pop(simplest))
    count = -(-num_replicates // min(len(groups), _MOST_SHARES))
    parts = []
    for group, share in zip(groups, shares, strict=True):
        one = group[0][0]
        weights_P = one.weights_P if one.member.is_near_best else None
        replicates = bootstrap(one.fit, runs, num_replicates=count, seed=seed, weights_P=weights_P)
        worths = weighted_sum((weight / share, member.worths) for member, weight in group)
        parts.append(LawPart(share, replicates, worths))
    return tuple(parts)


def errors_of_mean(
    fitted: Sequence[FittedMember], ranked: Sequence[Choice], runs: Runs
) -> tuple[tuple[HoldOut, ...], ErrorGrowth]:
    """Return the hold-outs of the weighted mean of members, and how its errors grow with the distance from the runs.

    Args:
        fitted: Members with a weight, in the order of ``ranked``.
        ranked: Members with their weights and hold-outs.
        runs: Runs that the members were fitted to.
    """
    weights = [choice.weight for choice in ranked if choice.weight > 0]
    mean_P = sum(weight * one.log_loss(runs.configurations) for weight, one in zip(weights, fitted, strict=True))
    hold_outs = averaged(ranked)
    measured = [(np.array(held.decades), np.array(held.errors)) for held in hold_outs]
    num_fitted = round(sum(weight * len(one.fit.theta_K) for weight, one in zip(weights, fitted, strict=True)))
    return hold_outs, error_growth(np.log(runs.loss_P) - mean_P, measured, num_fitted)


def laws_of(
    observations: Mapping[str, Sequence[Observation]],
    *,
    huber_delta: float | None = HUBER_DELTA,
    num_replicates: int = NUM_REPLICATES,
    track: Track = iter,
) -> tuple[list[MethodLaw], dict[str, str]]:
    """Fit a law for each method.

    Args:
        observations: Runs of each method, by the name of the method.
        huber_delta: Absolute residual of log loss above which the Huber loss is linear; None for least squares.
        num_replicates: Number of bootstrap replicates.
        track: Shows how many laws are fitted already; by default, nothing is shown.

    Returns:
        The laws, and for each method without a law the reason.

    Raises:
        ConfigError: If no method has a law.
    """
    found: list[MethodLaw] = []
    refused: dict[str, str] = {}
    for number, method in enumerate(track(observations.keys())):
        rows = observations[method]
        try:  # a seed per method, so that the replicates of methods are independent
            found.append(law_of(method, rows, huber_delta=huber_delta, num_replicates=num_replicates, seed=number))
        except ConfigError as error:
            refused[method] = str(error)
    if not found:
        raise ConfigError(" ".join(refused.values()))
    return with_shared_errors(found), refused
