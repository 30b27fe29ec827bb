"""Random search: the baseline that every other policy has to beat."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np

from embedlab.search.policies.policy import History, RoundPolicy
from embedlab.search.space import Candidate, Trial


class RandomSearch(RoundPolicy):
    """Trains the targets of candidates in random order, and chooses the best (Bergstra & Bengio 2012).

    Targets that cost more than the remaining budget are skipped, so when little budget remains, only cheap targets are
    trained.

    Args:
        seed: Seed of the random order.
    """

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed

    def rounds(self, history: History, budget: float) -> Generator[list[Trial], History, None]:
        """Yield one round with all affordable targets, in random order."""
        candidates = history.space.candidates
        order = np.random.default_rng(self.seed).permutation(len(candidates))
        yield history.affordable([history.space.target(candidates[number]) for number in order], budget)

    def choose(self, history: History) -> Candidate:
        """Return the candidate with the lowest loss at its target."""
        return history.best_at_the_highest_level()
