"""Halving by extrapolated losses, because a candidate that learns fast at first may not be the best in the end."""

from __future__ import annotations

import math
from collections.abc import Generator

import numpy as np

from embedlab.errors import ConfigError, RecordError
from embedlab.scaling.learning_curve import NOISE, extrapolated
from embedlab.search.policies.policy import History, RoundPolicy
from embedlab.search.space import Candidate, Trial


class ExtrapolatedHalving(RoundPolicy):
    """Trains all candidates in short runs, then the candidates with the best extrapolated losses at higher levels.

    The first round trains all candidates at the lowest budget levels, up to the highest level that a share of the
    budget pays for. Each further round extrapolates the losses of every remaining candidate to its target, keeps the
    best candidates, and trains them one level higher. The last remaining candidate is trained at ever higher levels as
    long as the budget allows. Its losses then confirm the choice, or show that another candidate is better.

    Args:
        eta: Factor by which the number of candidates is divided in each round.
        first_share: Maximum share of the budget that the first round may cost.
        fewest_levels: Minimum number of budget levels of each candidate in the first round, but not more than there are
            below the targets. If the budget does not pay for this number of levels, random candidates are left out.
        noise: Standard deviation of losses around a scaling law, as a share of the loss.
        seed: Seed of the random choice of the candidates that are left out.

    Raises:
        ConfigError: If an argument is out of range.
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
                f"ExtrapolatedHalving's first_share is a share of the budget and must be in (0, 1], got {first_share}."
            )
        if fewest_levels < 1:
            raise ConfigError(f"ExtrapolatedHalving's fewest_levels must be at least 1, got {fewest_levels}.")
        if not noise > 0:
            raise ConfigError(f"ExtrapolatedHalving's noise is a share of the loss and must be above 0, got {noise}.")
        self.eta = eta
        self.first_share = first_share
        self.fewest_levels = fewest_levels
        self.noise = noise
        self.seed = seed

    def rounds(self, history: History, budget: float) -> Generator[list[Trial], History, None]:
        """Yield a round with the first levels of all candidates, then rounds with the next level of good candidates."""
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
        """Return the trials of the first round.

        All candidates are trained up to the highest level that the share of the budget pays for. If the share does not
        pay for the minimum number of levels of all candidates, random candidates are trained at these levels.
        """
        space = history.space
        share = self.first_share * budget
        # A run at the target's level is not a short run, so the first round does not need to include that level.
        lowest = max(0, min(self.fewest_levels - 1, space.num_levels - 2))
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
        """Return the loss of a candidate at its target, measured or else extrapolated.

        The loss is infinite for a candidate that diverged, failed or has not been tried.
        """
        results = history.of(candidate)
        target = history.space.target(candidate)
        if not results or not all(math.isfinite(result.loss) for result in results):
            return math.inf
        if target in history:
            return history[target].loss
        tokens = [result.trial.tokens for result in results]
        return extrapolated(tokens, [result.loss for result in results], target.tokens, noise=self.noise).loss

    def choose(self, history: History) -> Candidate:
        """Return the candidate with the lowest loss at its target, measured or else extrapolated.

        Raises:
            RecordError: If every candidate diverged, failed or has not been tried.
        """
        losses = {candidate: self.loss_at_target(history, candidate) for candidate in history.space.candidates}
        best = min(losses, key=lambda candidate: losses[candidate])
        if not math.isfinite(losses[best]):
            raise RecordError(
                "Every candidate diverged, failed or was not tried, so there is nothing to choose from. Give the "
                "search a larger budget, or fix the errors of its trials."
            )
        return best
