"""Random search: what any policy has to be better than."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np

from embedlab.search.policies.policy import History, RoundPolicy
from embedlab.search.space import Candidate, Trial


class RandomSearch(RoundPolicy):
    """Trains candidates in random order at their targets and takes the best (Bergstra & Bengio 2012).

    A target that what remains does not pay for is passed over, so small budgets see small backbones only.

    Args:
        seed: of the order.
    """

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed

    def rounds(self, history: History, budget: float) -> Generator[list[Trial], History, None]:
        """One round."""
        candidates = history.space.candidates
        order = np.random.default_rng(self.seed).permutation(len(candidates))
        yield history.affordable([history.space.target(candidates[number]) for number in order], budget)

    def choose(self, history: History) -> Candidate:
        """The least loss at the target."""
        return history.best_at_the_highest_level()
