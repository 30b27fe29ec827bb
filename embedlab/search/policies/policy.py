"""The interface of policies, which decide what a search trains next.

A policy serves real searches and searches that are simulated on a table of finished runs. It is a function of the
results so far and the remaining budget, and keeps no state between two calls. A killed search therefore continues from
its ledger as if it had not been interrupted.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import final

from embedlab.errors import RecordError
from embedlab.search.space import Candidate, Space, Trial

_ROUNDING = 1e-9  # share of the whole budget; sums of FLOPs in different orders differ by less


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """The result of a trial.

    Attributes:
        trial: Trial that was run.
        loss: Loss on held-out data; infinite if the trial did not finish, for example because it diverged or failed.
        cost: FLOPs that the trial took from the budget of the search.
    """

    trial: Trial
    loss: float
    cost: float


class History:
    """The results of a search so far.

    Args:
        space: Space of all trials that may be trained.
        results: Results of the trials that have ended.
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
        """Cost of all trials that have ended, in FLOPs."""
        return sum(result.cost for result in self)

    def and_also(self, results: Iterable[TrialResult]) -> History:
        """Return a new history with further results added."""
        return History(self.space, [*self, *results])

    def of(self, candidate: Candidate) -> list[TrialResult]:
        """Return the results of a candidate, in order of rising budgets."""
        own = (result for result in self if result.trial.candidate == candidate)
        return sorted(own, key=lambda result: result.trial.budget)

    def price(self, trials: Iterable[Trial]) -> float:
        """Return the FLOPs that trials would add to the cost of the trials that have ended."""
        return self.space.price(trials, self._results)

    def affordable(self, trials: Iterable[Trial], remaining: float) -> list[Trial]:
        """Return the trials that the remaining budget pays for.

        Trials are considered in the given order. A trial that costs more than what is left of the budget is skipped.

        Args:
            trials: Trials to choose from.
            remaining: Remaining budget in FLOPs.
        """
        slack = _ROUNDING * (abs(remaining) + self.spent)
        return self.space.affordable(trials, remaining + slack, self._results)

    def is_affordable(self, trials: Iterable[Trial], remaining: float) -> bool:
        """Return whether the remaining budget pays for all trials.

        Args:
            trials: Trials to pay for.
            remaining: Remaining budget in FLOPs.
        """
        return self.price(trials) <= remaining + _ROUNDING * (abs(remaining) + self.spent)

    def best_at_the_highest_level(self) -> Candidate:
        """Return the candidate with the lowest loss at the highest budget level that has a finite loss.

        Raises:
            RecordError: If no trial has a finite loss.
        """
        finished = [result for result in self if math.isfinite(result.loss)]
        if not finished:
            raise RecordError(
                "No trial has ended with a finite loss, so there is nothing to choose from. Give the search a larger "
                "budget, or fix the errors of its trials."
            )
        return min(finished, key=lambda result: (-self.space.level(result.trial), result.loss)).trial.candidate


class Policy(ABC):
    """Decides which trials to train next, and finally which candidate is the best at the largest budget.

    To add a policy, write a subclass in a file of its own, in ``embedlab/search/policies`` or in any other package.
    """

    @abstractmethod
    def propose(self, history: History, remaining: float) -> list[Trial]:
        """Return the trials to run next, in order of importance; an empty list ends the search.

        No trial may be in the history, and all trials together must cost at most the remaining budget. Any number of
        the trials may be run at once.

        Args:
            history: Results of the trials that have ended.
            remaining: Remaining budget in FLOPs.
        """

    @abstractmethod
    def choose(self, history: History) -> Candidate:
        """Return the candidate with the lowest expected loss at its target.

        Args:
            history: Results of the trials that have ended.

        Raises:
            RecordError: If no candidate has a finite loss.
        """


class RoundPolicy(Policy):
    """A policy that consists of rounds. Each round knows the results of all earlier rounds, but not its own results.

    Each call of ``propose`` starts again at the first round, with the original budget, and returns the missing trials
    of the first unfinished round. The trials of a round therefore depend neither on how many trials run at once, nor on
    whether the search was interrupted during the round.
    """

    @abstractmethod
    def rounds(self, history: History, budget: float) -> Generator[list[Trial], History, None]:
        """Yield the trials to train in each round, and receive the history with their results after the round.

        Args:
            history: History without results.
            budget: Budget of the whole search in FLOPs.
        """

    @final
    def propose(self, history: History, remaining: float) -> list[Trial]:
        """Return the affordable trials of the first unfinished round that have no result yet."""
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
