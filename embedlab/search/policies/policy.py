"""How a search decides what to train next, whether the trials are run or replayed from a table of finished ones.

A policy is a function of what has finished and what is left to spend. It keeps nothing between two calls, so a search
that was killed goes on from its ledger as if nothing had happened.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import final

from embedlab.errors import RecordError
from embedlab.search.space import Candidate, Space, Trial

_ROUNDING = 1e-9  # of the whole budget: sums of FLOPs in another order differ by less


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """How a trial ended.

    Attributes:
        trial: what was run.
        loss: on held-out data; infinite where it diverged or failed.
        cost: FLOPs that it took from the budget.
    """

    trial: Trial
    loss: float
    cost: float


class History:
    """What a policy knows.

    Args:
        space: all that may be trained.
        results: of the trials that have ended.
    """

    def __init__(self, space: Space, results: Iterable[TrialResult] = ()) -> None:
        self.space = space
        self._results = {result.trial: result for result in results}

    def __iter__(self) -> Iterator[TrialResult]:
        return iter(self._results.values())

    def __len__(self) -> int:
        return len(self._results)

    def __contains__(self, trial: Trial) -> bool:
        return trial in self._results

    def __getitem__(self, trial: Trial) -> TrialResult:
        return self._results[trial]

    @property
    def spent(self) -> float:
        """FLOPs."""
        return sum(result.cost for result in self)

    def and_also(self, results: Iterable[TrialResult]) -> History:
        """This and more."""
        return History(self.space, [*self, *results])

    def of(self, candidate: Candidate) -> list[TrialResult]:
        """A candidate's results, with rising budgets."""
        own = (result for result in self if result.trial.candidate == candidate)
        return sorted(own, key=lambda result: result.trial.budget)

    def price(self, trials: Iterable[Trial]) -> float:
        """FLOPs that some trials would add."""
        return self.space.price(trials, self._results)

    def affordable(self, trials: Iterable[Trial], remaining: float) -> list[Trial]:
        """Those of some trials that what remains pays for, the first ones first."""
        slack = _ROUNDING * (abs(remaining) + self.spent)
        return self.space.affordable(trials, remaining + slack, self._results)

    def is_affordable(self, trials: Iterable[Trial], remaining: float) -> bool:
        """Whether what remains pays for all of some trials."""
        return self.price(trials) <= remaining + _ROUNDING * (abs(remaining) + self.spent)

    def best_at_the_highest_level(self) -> Candidate:
        """Of the candidates that have come highest the one with the least loss there.

        Raises:
            RecordError: if no trial has a loss.
        """
        finished = [result for result in self if math.isfinite(result.loss)]
        if not finished:
            raise RecordError(
                "No trial has ended with a loss, so there is nothing to choose from. Give the search a larger budget."
            )
        return min(finished, key=lambda result: (-self.space.level(result.trial), result.loss)).trial.candidate


class Policy(ABC):
    """What to train next, and in the end what to train at the target.

    A new policy is a class in a file of its own, in ``embedlab/search/policies`` or anywhere else.
    """

    @abstractmethod
    def propose(self, history: History, remaining: float) -> list[Trial]:
        """Trials to run now, in order, in any number at once; none if the search is over.

        None of them may be in the history, and all together may cost no more than remains.

        Args:
            history: what has ended.
            remaining: FLOPs.
        """

    @abstractmethod
    def choose(self, history: History) -> Candidate:
        """The candidate that is expected to have the least loss at its target.

        Raises:
            RecordError: if no trial has a loss.
        """


class RoundPolicy(Policy):
    """A policy that is told as a story of rounds, each of which knows all that the rounds before it found.

    ``propose`` tells the story anew each time, with the budget that there was at first, and returns what its first
    unfinished round still lacks. So what a round asks for depends neither on how many of its trials run at once nor on
    whether the search was interrupted within it.
    """

    @abstractmethod
    def rounds(self, history: History, budget: float) -> Generator[list[Trial], History, None]:
        """Yields the trials of each round and is sent what is known when they have ended.

        Args:
            history: without any result.
            budget: FLOPs of the whole search.
        """

    @final
    def propose(self, history: History, remaining: float) -> list[Trial]:
        """What the first round that has not ended still lacks."""
        known = History(history.space)
        rounds = self.rounds(known, remaining + history.spent)
        try:
            wanted = next(rounds)
            while not (missing := [trial for trial in dict.fromkeys(wanted) if trial not in history]):
                known = known.and_also(history[trial] for trial in wanted)
                wanted = rounds.send(known)
        except StopIteration:
            return []
        return history.affordable(missing, remaining)
