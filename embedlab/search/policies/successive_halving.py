"""Successive halving by the loss so far: the usual way to save, and what extrapolation has to be better than."""

from __future__ import annotations

import math
from collections.abc import Generator

import numpy as np

from embedlab.errors import ConfigError
from embedlab.search.policies.policy import History, RoundPolicy
from embedlab.search.space import Candidate, Trial


class SuccessiveHalving(RoundPolicy):
    """All candidates on a level, the best part of them on the next, and so on (Jamieson & Talwalkar 2016).

    The first level is the highest from which the budget pays for all rounds, were all candidates to cost the mean.

    Args:
        eta: by which the number of candidates is divided each round.
        seed: of the candidates that are left out where the budget does not pay for all of them on the lowest level.
    """

    def __init__(self, *, eta: float = 2.0, seed: int = 0) -> None:
        if not eta > 1:
            raise ConfigError(f"SuccessiveHalving's eta must be above 1, got {eta}.")
        self.eta = eta
        self.seed = seed

    def rounds(self, history: History, budget: float) -> Generator[list[Trial], History, None]:
        """A round for each level."""
        space = history.space
        planned = [level for level in range(space.num_levels) if self._mean_price(history, level) <= budget]
        level = max(planned, default=0)
        candidates = space.candidates
        order = np.random.default_rng(self.seed).permutation(len(candidates))
        wanted = space.at(level, [candidates[number] for number in order])
        while wanted:
            history = yield (tried := history.affordable(wanted, budget - history.spent))
            level += 1
            ranked = sorted(tried, key=lambda trial: history[trial].loss)
            promoted = ranked[: math.ceil(len(ranked) / self.eta)]
            wanted = space.at(level, [trial.candidate for trial in promoted]) if level < space.num_levels else []

    def _mean_price(self, history: History, first: int) -> float:
        space = history.space
        share, price = 1.0, 0.0
        before: list[Trial] = []
        for level in range(first, space.num_levels):
            trials = space.at(level)
            price += share * space.price(trials, before)
            before = trials
            share = max(math.ceil(share * len(space.candidates) / self.eta), 1) / len(space.candidates)
        return price

    def choose(self, history: History) -> Candidate:
        """The least loss on the highest level."""
        return history.best_at_the_highest_level()
