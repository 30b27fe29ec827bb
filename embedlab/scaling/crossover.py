"""Crossovers of methods: the budget above which one method is better than another, in the runs and by the laws.

An interval is open on a side where the searched budgets do not limit the crossover. Names of arrays end in their axes:

    R  bootstrap replicates      G  budgets on a grid      C  sizes of the backbones
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import NamedTuple

import numpy as np

from embedlab.errors import plain_text
from embedlab.scaling.bootstrap import Interval
from embedlab.scaling.method_laws import FARTHEST, MethodLaw
from embedlab.scaling.observations import Observation
from embedlab.scaling.recipe import suite_of

_GRID = 121  # number of budgets
_MOST_SIZES = 200  # number of model sizes among which the minimum loss is searched
_NO_BETTER = 1e-3  # of log loss, because a crossover is interpolated between budgets


@dataclass(frozen=True)
class MeasuredChange:
    """A change of places of two methods in the runs, from one budget level to the next that has runs of both.

    Attributes:
        below: Name of the method whose best run has the lower loss at the lower level.
        above: Name of the method whose best run has the lower loss at the higher level.
        bracket: FLOPs of the best runs next to each other: the larger ones of the lower level, and the smaller ones of
            the higher level.
    """

    below: str
    above: str
    bracket: Interval


@dataclass(frozen=True)
class Crossover:
    """The budget at which two methods change places: below it one method is better, above it the other.

    Attributes:
        below: Name of the method that is better at small budgets.
        above: Name of the method that is better at large budgets.
        flops: Budget of the crossover in FLOPs; 0 or infinity if one method is better at all searched budgets.
        interval_80: 80 % interval of the budget in FLOPs. A bound of 0 or infinity means that the searched budgets do
            not limit the crossover on that side.
        interval_90: 90 % interval of the budget in FLOPs, with bounds as in ``interval_80``.
        interval_95: 95 % interval of the budget in FLOPs, with bounds as in ``interval_80``.
        probability: Probability that the methods change places within the searched budgets.
        looked_at: Smallest and largest searched budget in FLOPs; only budgets that both laws can predict are searched.
        measured: Changes of places in the runs, in the order of budgets.
        is_on_frontier: Whether no third method is better at the crossover, or at the largest budget if there is none.
    """

    below: str
    above: str
    flops: float
    interval_80: Interval
    interval_90: Interval
    interval_95: Interval
    probability: float
    looked_at: Interval
    measured: tuple[MeasuredChange, ...]
    is_on_frontier: bool

    @property
    def exists(self) -> bool:
        """Whether the estimated crossover lies within the searched budgets."""
        return 0 < self.flops < np.inf

    def is_told(self, num_methods: int) -> bool:
        """Return whether a reader should be told: pairs that change places on the frontier, or in their runs.

        Args:
            num_methods: Number of methods; of two methods, also that one is better throughout is told.
        """
        return num_methods == 2 or bool(self.measured) or (self.exists and self.is_on_frontier)

    @property
    def words(self) -> str:
        """Sentences about the crossover: first what the runs show, then what the laws say."""
        below, above = plain_text(self.below), plain_text(self.above)
        first, last = (f"{bound:.2g}" for bound in self.looked_at)
        said = [] if not self.measured else [words_of(self.measured)]
        if self.exists:
            low, high = self.interval_80
            interval = {
                (True, True): f"80 % interval: {low:.2g} to {high:.2g}",
                (True, False): f"80 % interval: above {low:.2g}",
                (False, True): f"80 % interval: below {high:.2g}",
                (False, False): "the runs do not limit it",
            }[low > 0, high < np.inf]
            said.append(f"By the laws, {below} is better up to {self.flops:.2g} FLOPs ({interval}), and {above} above.")
        else:
            better, worse = (above, below) if self.flops == 0 else (below, above)
            said.append(f"By the laws, {better} is better than {worse} at every budget from {first} to {last} FLOPs.")
            if self.measured:
                said.append("They do not show what the runs show, which may be noise.")
        said.append(f"The probability that they change places from {first} to {last} FLOPs is {self.probability:.0%}.")
        return " ".join(said)


def words_of(changes: Sequence[MeasuredChange]) -> str:
    """Return a sentence about the changes of places of two methods in the runs.

    Args:
        changes: What ``measured_changes`` found, with at least one entry.
    """
    first = changes[0]
    below, above = plain_text(first.below), plain_text(first.above)
    if len(changes) == 1:
        low, high = first.bracket
        return f"In the runs, {below} is better up to {low:.3g} FLOPs, and {above} from {high:.3g} FLOPs on."
    where = "; ".join(
        f"between {one.bracket.low:.3g} and {one.bracket.high:.3g} FLOPs, where {plain_text(one.above)} becomes better"
        for one in changes
    )
    return f"In the runs, {below} and {above} change places {len(changes)} times: {where}."


def measured_changes(one: Sequence[Observation], other: Sequence[Observation]) -> tuple[MeasuredChange, ...]:
    """Return the changes of places of two methods from budget level to budget level, in the order of budgets.

    The best runs of a level are compared. Levels are halvings of the largest budget; only levels with runs of both
    methods count.

    Args:
        one: Runs of one method, at least 1.
        other: Runs of the other method, at least 1.
    """
    largest = max(row.flops for row in (*one, *other))

    def best_of_levels(rows: Sequence[Observation]) -> dict[int, Observation]:
        best: dict[int, Observation] = {}
        for row in sorted(rows, key=lambda row: row.loss):
            best.setdefault(round(float(np.log2(largest / row.flops))), row)
        return best

    best, best_of_other = best_of_levels(one), best_of_levels(other)
    compared = [
        (best[level], best_of_other[level])
        for level in sorted(best.keys() & best_of_other.keys(), reverse=True)
        if best[level].loss != best_of_other[level].loss
    ]
    found = []
    for lower, higher in pairwise(sorted(pair, key=lambda row: row.loss) for pair in compared):
        if lower[0].method != higher[0].method:
            bracket = Interval(max(row.flops for row in lower), min(row.flops for row in higher))
            found.append(MeasuredChange(lower[0].method, higher[0].method, bracket))
    return tuple(found)


class _Frontier(NamedTuple):
    """Logarithm of the minimum loss of a method at budgets on a grid, as ``MethodLaw.frontier`` returns it."""

    estimate_G: np.ndarray
    replicates_RG: np.ndarray


def crossovers(laws: Sequence[MethodLaw]) -> list[Crossover]:
    """Return the crossovers of all pairs of methods.

    Budgets from the smallest run of a pair to ``FARTHEST`` times its largest run are searched. Pairs of which the laws
    can predict too few common budgets are left out.

    Args:
        laws: Laws of the methods.
    """
    if len(laws) < 2:
        return []
    sizes_C = np.unique([size for _, size in suite_of(laws)])
    if len(sizes_C) > _MOST_SIZES:
        sizes_C = sizes_C[np.linspace(0, len(sizes_C) - 1, _MOST_SIZES).astype(int)]
    flops = [row.flops for law in laws for row in law.observations]
    log_flops_G = np.linspace(np.log(min(flops)), np.log(FARTHEST * max(flops)), _GRID)
    frontiers = [_Frontier(*law.frontier(sizes_C, np.exp(log_flops_G))) for law in laws]
    least_G = np.min([np.where(np.isnan(one.estimate_G), np.inf, one.estimate_G) for one in frontiers], axis=0)
    found = []
    for (one, first), (other, second) in combinations(zip(laws, frontiers, strict=True), 2):
        its = [row.flops for row in (*one.observations, *other.observations)]
        is_searched_G = (log_flops_G >= np.log(min(its)) - 1e-9) & (log_flops_G <= np.log(FARTHEST * max(its)) + 1e-9)
        between = _between(one, other, first, second, log_flops_G, is_searched_G, least_G)
        if between is not None:
            found.append(between)
    return found


def _between(
    one: MethodLaw,
    other: MethodLaw,
    first: _Frontier,
    second: _Frontier,
    log_flops_G: np.ndarray,
    is_searched_G: np.ndarray,
    least_G: np.ndarray,
) -> Crossover | None:
    """Return the crossover of two methods; None if fewer than two searched budgets can be predicted by both laws.

    Args:
        one: Law of one method.
        other: Law of the other method.
        first: Frontier of the one method.
        second: Frontier of the other method.
        log_flops_G: Natural logarithms of the budgets of the frontiers.
        is_searched_G: Whether each budget is searched.
        least_G: Logarithm of the minimum loss of all methods at each budget.
    """
    count = min(len(first.replicates_RG), len(second.replicates_RG))
    more_G = first.estimate_G - second.estimate_G
    more_RG = first.replicates_RG[:count] - second.replicates_RG[:count]
    is_known_G = np.isfinite(more_G) & is_searched_G
    if is_known_G.sum() < 2:
        return None
    of_one_G = first.estimate_G[is_known_G]
    more_G, more_RG, log_flops_G = more_G[is_known_G], more_RG[:, is_known_G], log_flops_G[is_known_G]
    measured = measured_changes(one.observations, other.observations)
    # The runs say which method is better at small budgets, or else the laws at the largest budget do.
    if (measured[0].below == other.method) if len(measured) == 1 else (more_G[-1] < 0):
        one, other, more_G, more_RG = other, one, -more_G, -more_RG
        of_one_G = second.estimate_G[is_known_G]
    if len(measured) == 1:
        expected = float(np.mean(np.log(measured[0].bracket)))
    else:
        largest = max(one.largest_flops, other.largest_flops)
        inside = _changes(more_G[log_flops_G <= np.log(largest)], log_flops_G)
        expected = float(inside[-1]) if len(inside) else np.inf
    log_flops = _change(more_G, log_flops_G, expected)
    flops, flops_R = np.exp(log_flops), np.exp([_change(row_G, log_flops_G, log_flops) for row_G in more_RG])
    # Quantiles must be values of replicates: a mean of two replicates is undefined if both are infinite.
    intervals = [
        Interval(*(float(q) for q in np.quantile(flops_R, [(1 - p) / 2, (1 + p) / 2], method="inverted_cdf")))
        for p in (0.8, 0.9, 0.95)
    ]
    at = int(np.abs(log_flops_G - log_flops).argmin()) if np.isfinite(log_flops) else -1
    return Crossover(
        below=one.method,
        above=other.method,
        flops=float(flops),
        interval_80=intervals[0],
        interval_90=intervals[1],
        interval_95=intervals[2],
        probability=float(np.mean((flops_R > 0) & np.isfinite(flops_R))),
        looked_at=Interval(float(np.exp(log_flops_G[0])), float(np.exp(log_flops_G[-1]))),
        measured=measured,
        is_on_frontier=bool(of_one_G[at] <= least_G[is_known_G][at] + _NO_BETTER),
    )


def _changes(more_G: np.ndarray, log_flops_G: np.ndarray) -> np.ndarray:
    """Return the logarithms of the budgets at which the first method ceases to have the lower loss, in rising order.

    Budgets between grid points come from linear interpolation over log FLOPs.

    Args:
        more_G: Log loss of the first method minus log loss of the second method.
        log_flops_G: Natural logarithms of the budgets in FLOPs; may go on beyond ``more_G``.
    """
    last = np.flatnonzero((more_G[:-1] < 0) & (more_G[1:] >= 0))
    share = more_G[last] / (more_G[last] - more_G[last + 1])
    return np.asarray(log_flops_G[last] + share * (log_flops_G[last + 1] - log_flops_G[last]))


def _change(more_G: np.ndarray, log_flops_G: np.ndarray, near: float) -> float:
    """Return the logarithm of the budget at which the first method ceases to have the lower loss.

    Of several such budgets, the one nearest to ``near`` is returned: a change that the runs show is not replaced by
    one far beyond the runs. The result is minus infinity if the first method does not have the lower loss at the
    largest budget and there is no change, and infinity if it has the lower loss there and there is no change.

    Args:
        more_G: Log loss of the first method minus log loss of the second method.
        log_flops_G: Natural logarithms of the budgets in FLOPs.
        near: Natural logarithm of the budget near which the change is wanted; infinity for the last change.
    """
    found = _changes(more_G, log_flops_G)
    if len(found) == 0 or (np.isinf(near) and more_G[-1] < 0):
        return float(np.inf if more_G[-1] < 0 else -np.inf)
    return float(found[-1] if np.isinf(near) else found[np.abs(found - near).argmin()])
