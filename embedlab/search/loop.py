"""The loop of a search: runs the trials that a policy proposes, until the policy proposes no more trials."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

from embedlab.errors import PluginError
from embedlab.search.policies.policy import History, Policy, TrialResult
from embedlab.search.space import Trial


class TrialRunner(ABC):
    """A way to run trials: by training them on devices, or by looking up finished runs in a table."""

    @abstractmethod
    def run(self, trials: Sequence[Trial]) -> Iterable[TrialResult]:
        """Run trials, and return or yield the result of each trial."""


def search(policy: Policy, trainer: TrialRunner, history: History, budget: float) -> History:
    """Run the trials that a policy proposes, until the policy proposes no more trials.

    Args:
        policy: Policy that proposes trials.
        trainer: Runner of the trials.
        history: Space to search, with the results of earlier trials.
        budget: Budget of the search in FLOPs, including the cost of the earlier trials.

    Returns:
        The history with the results of all trials.

    Raises:
        PluginError: If the policy proposes a trial that is not in the space, that has a result already or that it has
            proposed twice, or trials that cost more than the remaining budget.
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
            raise PluginError(f"The policy {name} proposes {trial.id}, which is not in the search's space.")
        if trial in history:
            raise PluginError(f"The policy {name} proposes {trial.id}, which has been run already.")
    if len(set(proposed)) < len(proposed):
        raise PluginError(f"The policy {name} proposes a trial twice.")
    if not history.is_affordable(proposed, remaining):
        raise PluginError(
            f"The policy {name} proposes trials for {history.price(proposed):g} FLOPs, but only {remaining:g} "
            "FLOPs remain."
        )
