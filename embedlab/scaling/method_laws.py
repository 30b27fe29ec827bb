"""A law for each method, chosen, fitted and doubted: what every plan rests on.

Names end in their axes:

    R  replicates      C  configurations      G  budgets
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
"""Times beyond its runs, in FLOPs and in tokens a parameter, up to which a law is trusted."""

_SEED_OF_ERRORS = 1
MANY_EPOCHS = 1.5  # passes over the data, in some run, from which on their worth can be fitted


@dataclass(frozen=True)
class MethodLaw:
    """What the runs of one method say.

    Attributes:
        method: its name.
        observations: the runs.
        choices: the laws that were tried, the one that was taken first.
        replicates: of the best one's fit.
        held_out_error: by which it is off, as a share of the loss (root mean square), one, two and three budgets beyond
            what it was fitted to, as far as the runs allow that; empty if they do not.
        held_out_families: how many families of runs each of these is the error of.
    """

    method: str
    observations: tuple[Observation, ...]
    choices: tuple[Choice, ...]
    replicates: Replicates
    held_out_error: tuple[float, ...]
    held_out_families: tuple[int, ...] = ()

    @property
    def fit(self) -> Fit:
        """Of the law to all runs."""
        return self.replicates.fit

    @property
    def caution(self) -> str:
        """That runs have hardly learned, whose losses fall otherwise than a law has it; empty where they have."""
        near = [row for row in self.observations if row.is_near_chance]
        if not near:
            return ""
        return (
            f"{len(near)} of its {len(self.observations)} runs, of up to {max(row.flops for row in near):.3g} FLOPs, "
            f"have losses near that of a guess, {near[0].chance:.3g}. Losses fall faster than a power of data where "
            "learning begins, so the law may say too high ones beyond its runs: leave small budgets out, or add larger "
            "ones."
        )

    @cached_property
    def weakly_identified(self) -> dict[str, Interval]:
        """The parameters that the runs hardly determine, with their 90 % intervals by profile likelihood."""
        return weakly_identified(self.replicates, self.runs)

    @property
    def runs(self) -> Runs:
        """The numbers of its observations."""
        return runs_of(self.observations)

    @property
    def largest_flops(self) -> float:
        """Of its runs."""
        return max(row.flops for row in self.observations)

    def flops_per_token(self, parameters_C: np.ndarray) -> np.ndarray:
        """What its runs cost, at any size: between sizes along the line through their logarithms."""
        by_size: dict[float, list[float]] = {}
        for row in self.observations:
            by_size.setdefault(row.parameters, []).append(row.flops / row.tokens)
        sizes = np.array(sorted(by_size))
        # Per parameter it hardly changes, so beyond the sizes of the runs it is taken to stay.
        per_parameter = np.array([np.median(by_size[size]) / size for size in sizes])
        return np.asarray(parameters_C * np.exp(np.interp(np.log(parameters_C), np.log(sizes), np.log(per_parameter))))

    def knows(self, parameters: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Of which configurations, of any shape, the tokens a parameter are not too far from those of the runs."""
        ratios = [row.tokens / row.parameters for row in self.observations]
        ratio = tokens / parameters
        return np.asarray((min(ratios) / FARTHEST <= ratio) & (ratio <= max(ratios) * FARTHEST))

    def frontier(self, sizes_C: np.ndarray, flops_G: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logarithms of the least loss over some sizes: (G,) by the fit, and (R, G) as it might be.

        NaN at a budget of which the law knows none of the sizes.
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
        """By which a prediction may be off, as a share of the loss, besides what the bootstrap says.

        The largest of the hold-outs' errors: the largest budgets are often of a run or two, which by chance lie near
        the law and say little. It holds both how far the law is off beyond its runs and the noise of a single run.
        """
        return max(self.held_out_error, default=0.0)

    def log_losses(
        self, parameters_C: np.ndarray, tokens_C: np.ndarray, unique_tokens: float | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Logarithms of predicted losses: (C,) by the fit, and (R, C) as they might be, hold-out errors in them."""
        unique_C = None if unique_tokens is None else np.minimum(tokens_C, unique_tokens)
        estimate_C, log_RC = self.replicates.quantity(lambda one: np.log(one.loss(parameters_C, tokens_C, unique_C)))
        return estimate_C, log_RC + self.errors(len(log_RC))[:, None]

    def errors(self, num_replicates: int) -> np.ndarray:
        """(R,): by what each replicate may be off; where a law is off, it is off for all sizes and budgets.

        An error that is known from few runs is not known well: it has Student's distribution, with as many degrees of
        freedom as there are families in the largest hold-out.
        """
        if not self.held_out_error:
            return np.zeros(num_replicates)
        families = max(self.held_out_families, default=np.inf)
        generator = np.random.default_rng([_SEED_OF_ERRORS, *self.method.encode()])
        # Each as probable as another, in an order of chance: quantiles as exact as so many replicates can have them.
        probability_R = (generator.permutation(num_replicates) + 0.5) / num_replicates
        return np.asarray(self.error * student_t.ppf(probability_R, families))


def laws_to_try(runs: Runs) -> list[Law]:
    """The laws that these runs can tell apart, sums first, whose best size is neither the least nor the largest.

    A product of powers has its best size at an end, so it is not tried where the runs show it in between.
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
    """Chooses a law by hold-out, fits it to all runs and draws them anew.

    Raises:
        ConfigError: if there are too few runs, sizes or amounts of data for any law.
    """
    return _law_of(method, tuple(observations), huber_delta, num_replicates, seed)


@lru_cache  # a search asks for the same law before a confirmation, for it and after it
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
    raise ConfigError(f"The runs of {method} give no law. {refusal}") from refusal


def laws_of(
    observations: Mapping[str, Sequence[Observation]],
    *,
    huber_delta: float | None = HUBER_DELTA,
    num_replicates: int = NUM_REPLICATES,
) -> tuple[list[MethodLaw], dict[str, str]]:
    """A law for each method, and of those that have none the reason.

    Raises:
        ConfigError: if no method has one.
    """
    found: list[MethodLaw] = []
    refused: dict[str, str] = {}
    for number, (method, rows) in enumerate(observations.items()):
        try:  # another seed for each: what runs of one method might have been says nothing of another's
            found.append(law_of(method, rows, huber_delta=huber_delta, num_replicates=num_replicates, seed=number))
        except ConfigError as error:
            refused[method] = str(error)
    if not found:
        raise ConfigError(" ".join(refused.values()))
    return found, refused
