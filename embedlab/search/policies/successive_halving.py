"""Successive halving by measured losses: the usual way to save compute, and the baseline for extrapolated losses."""

from __future__ import annotations

import math
from collections.abc import Generator

import numpy as np

from embedlab.errors import ConfigError
from embedlab.search.policies.policy import History, RoundPolicy
from embedlab.search.space import Candidate, Trial


class SuccessiveHalving(RoundPolicy):
    """Trains all candidates at one budget level, and only the best at each next level (Jamieson & Talwalkar 2016).

    The first level is the highest level from which the budget pays for all rounds, if every candidate costs the mean
    over all candidates. If there is no such level, the first level is the lowest.

    Args:
        eta: Factor by which the number of candidates is divided in each round.
        seed: Seed of the random order in which candidates are paid for in the first round. Candidates that the budget
            does not pay for are left out.

    Raises:
        ConfigError: If ``eta`` is at most 1.
    """

    def __init__(self, *, eta: float = 2.0, seed: int = 0) -> None:
        if not eta > 1:
            raise ConfigError(f"SuccessiveHalving's eta must be above 1, got {eta}.")
        self.eta = eta
        self.seed = seed

    def rounds(self, history: History, budget: float) -> Generator[list[Trial], History, None]:
        """Yield one round per budget level, with the best candidates of the previous level."""
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
        """Return the expected FLOPs of all rounds that start at a level, if every candidate costs the mean."""
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
        """Return the candidate with the lowest loss at the highest budget level with results."""
        return history.best_at_the_highest_level()
