"""The complete grid of candidates and budgets, which every other policy tries to avoid."""

from __future__ import annotations

import math
from collections.abc import Generator

import numpy as np

from embedlab.errors import ConfigError
from embedlab.scaling.fitting import Fit, Runs, fit
from embedlab.scaling.laws import Chinchilla
from embedlab.search.policies.policy import History, RoundPolicy, TrialResult
from embedlab.search.space import Candidate, Trial


class IsoFlopGrid(RoundPolicy):
    """Trains every candidate at every budget, smallest budgets first (Ziarko et al. 2024, arXiv:2406.04165).

    If the budget of the search does not pay for all targets, a scaling law of model size and data is fitted for each
    method, and predicts the losses at the missing targets. The paper instead draws straight lines through logarithms,
    by eye.
    """

    def rounds(self, history: History, budget: float) -> Generator[list[Trial], History, None]:
        """Yield one round per budget level, with all candidates that the budget pays for."""
        for level in range(history.space.num_levels):
            history = yield history.affordable(history.space.at(level), budget - history.spent)

    def choose(self, history: History) -> Candidate:
        """Return the candidate with the lowest loss at its target, measured or else predicted by a law.

        If no target has a loss and no law can be fitted, the candidate with the lowest loss at the highest budget level
        is returned.

        Raises:
            RecordError: If no trial has a finite loss.
        """
        space = history.space
        at_target: dict[Candidate, float] = {}
        by_method: dict[str, list[Candidate]] = {}
        for candidate in space.candidates:
            by_method.setdefault(_method(candidate), []).append(candidate)
        for candidates in by_method.values():
            results = [result for one in candidates for result in history.of(one) if math.isfinite(result.loss)]
            at_target |= {
                result.trial.candidate: result.loss
                for result in results
                if result.trial == space.target(result.trial.candidate)
            }
            others = [candidate for candidate in candidates if space.target(candidate) not in history]
            if not others:
                continue
            try:
                law = _law(results)
            except ConfigError:
                continue
            tokens = np.array([space.target(candidate).tokens for candidate in others])
            predicted = law.loss(np.array([candidate.parameters for candidate in others]), tokens)
            at_target |= dict(zip(others, predicted.tolist(), strict=True))
        if not at_target:
            return history.best_at_the_highest_level()
        return min(at_target, key=lambda candidate: at_target[candidate])


def _method(candidate: Candidate) -> str:
    return f"{candidate.method} {sorted(candidate.method_options.items())} {candidate.learning_rate}"


def _law(results: list[TrialResult]) -> Fit:
    trials = [result.trial for result in results]
    runs = Runs(
        np.array([trial.candidate.parameters for trial in trials]),
        np.array([trial.tokens for trial in trials]),
        np.array([result.loss for result in results]),
    )
    return fit(Chinchilla(), runs)
