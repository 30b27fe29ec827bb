"""The search itself: ask the policy, run what it proposes, tell it what came of it, until it proposes nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

from embedlab.errors import PluginError
from embedlab.search.policies.policy import History, Policy, TrialResult
from embedlab.search.space import Trial


class TrialRunner(ABC):
    """Where trials are run: on devices, or in a table of runs that have been."""

    @abstractmethod
    def run(self, trials: Sequence[Trial]) -> Iterable[TrialResult]:
        """Runs some trials and gives the result of each."""


def search(policy: Policy, trainer: TrialRunner, history: History, budget: float) -> History:
    """Spends a budget.

    Args:
        policy: that decides what on.
        trainer: where it is spent.
        history: the space to search, and what has been found in it before.
        budget: FLOPs, of which those of the history are spent already.

    Raises:
        PluginError: if the policy proposes what it may not.
    """
    while True:
        remaining = budget - history.spent
        proposed = policy.propose(history, remaining)
        if not proposed:
            return history
        _require_allowed(policy, proposed, history, remaining)
        history = history.and_also(trainer.run(proposed))


def _require_allowed(policy: Policy, proposed: Sequence[Trial], history: History, remaining: float) -> None:
    name = type(policy).__name__
    for trial in proposed:
        if trial not in history.space:
            raise PluginError(f"The policy {name} proposes {trial.id}, which is no part of the search's space.")
        if trial in history:
            raise PluginError(f"The policy {name} proposes {trial.id}, which has been run.")
    if len(set(proposed)) < len(proposed):
        raise PluginError(f"The policy {name} proposes a trial twice.")
    if not history.is_affordable(proposed, remaining):
        raise PluginError(
            f"The policy {name} proposes trials for {history.price(proposed):g} FLOPs, and {remaining:g} remain."
        )
