"""Halving by the loss that a candidate is expected to reach, since who learns fast at first need not win."""

from __future__ import annotations

import math
from collections.abc import Generator

import numpy as np

from embedlab.errors import ConfigError, RecordError
from embedlab.scaling.learning_curve import NOISE, extrapolated
from embedlab.search.policies.policy import History, RoundPolicy
from embedlab.search.space import Candidate, Trial


class ExtrapolatedHalving(RoundPolicy):
    """Short runs of all; then, round by round, the next level for the part with the best extrapolated losses.

    Part of the budget goes to the levels of all candidates up to the highest that it pays for. Each round extrapolates
    every remaining candidate's losses to its target, keeps the best part and trains them one level higher. The last one
    left climbs as high as the budget allows, which confirms it or shows that another is better.

    Args:
        eta: by which the number of candidates is divided each round.
        first_share: of the budget, which the first round may cost.
        fewest_levels: of each candidate in the first round, where there are more; where the budget does not pay for
            that, candidates are left out at random.
        noise: by which losses differ from any law, as a share of them.
        seed: of the candidates that are left out.
    """

    def __init__(
        self,
        *,
        eta: float = 2.0,
        first_share: float = 0.5,
        fewest_levels: int = 4,
        noise: float = NOISE,
        seed: int = 0,
    ) -> None:
        if not eta > 1:
            raise ConfigError(f"ExtrapolatedHalving's eta must be above 1, got {eta}.")
        if not 0 < first_share <= 1:
            raise ConfigError(
                f"ExtrapolatedHalving's first_share is a share of the budget in (0, 1], got {first_share}."
            )
        if fewest_levels < 1:
            raise ConfigError(f"ExtrapolatedHalving's fewest_levels must be at least 1, got {fewest_levels}.")
        if not noise > 0:
            raise ConfigError(f"ExtrapolatedHalving's noise is a share of the loss above 0, got {noise}.")
        self.eta = eta
        self.first_share = first_share
        self.fewest_levels = fewest_levels
        self.noise = noise
        self.seed = seed

    def rounds(self, history: History, budget: float) -> Generator[list[Trial], History, None]:
        """The first levels of all candidates, then one level more for the better part of them, again and again."""
        space = history.space
        history = yield self._first_round(history, budget)
        alive = [candidate for candidate in space.candidates if history.of(candidate)]
        while alive:
            ranked = sorted(alive, key=lambda candidate: self.loss_at_target(history, candidate))
            alive = ranked[: math.ceil(len(ranked) / self.eta)]
            following = []
            for candidate in alive:
                reached = space.level(history.of(candidate)[-1].trial)
                if reached + 1 < space.num_levels and math.isfinite(self.loss_at_target(history, candidate)):
                    following += space.at(reached + 1, [candidate])
            wanted = history.affordable(following, budget - history.spent)
            if not wanted:
                return
            history = yield wanted

    def _first_round(self, history: History, budget: float) -> list[Trial]:
        """As many levels of all as the share pays for, or as many candidates as it pays the fewest levels of."""
        space = history.space
        share = self.first_share * budget
        lowest = max(0, min(self.fewest_levels - 1, space.num_levels - 2))  # the target's level is no short run
        for level in reversed(range(lowest, space.num_levels)):
            trials = [trial for candidate in space.candidates for trial in space.up_to(level, candidate)]
            if history.is_affordable(trials, share):
                return trials
        chosen: list[Trial] = []
        candidates = space.candidates
        for number in np.random.default_rng(self.seed).permutation(len(candidates)):
            trials = space.up_to(lowest, candidates[number]) or [space.target(candidates[number])]
            if history.is_affordable([*chosen, *trials], share):
                chosen += trials
        return chosen

    def loss_at_target(self, history: History, candidate: Candidate) -> float:
        """Measured, or else extrapolated; infinite for a candidate that diverged, failed or has not been tried."""
        results = history.of(candidate)
        target = history.space.target(candidate)
        if not results or not all(math.isfinite(result.loss) for result in results):
            return math.inf
        if target in history:
            return history[target].loss
        tokens = [result.trial.tokens for result in results]
        return extrapolated(tokens, [result.loss for result in results], target.tokens, noise=self.noise).loss

    def choose(self, history: History) -> Candidate:
        """The least loss at the target, measured or extrapolated."""
        losses = {candidate: self.loss_at_target(history, candidate) for candidate in history.space.candidates}
        best = min(losses, key=lambda candidate: losses[candidate])
        if not math.isfinite(losses[best]):
            raise RecordError(
                "No candidate has come through its trials, so there is nothing to choose from. Give the search a "
                "larger budget, or see why its trials fail."
            )
        return best
