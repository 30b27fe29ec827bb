"""Simulation of searches on a table of finished runs, to compare policies without training."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from embedlab.errors import ConfigError, RecordError
from embedlab.scaling.observations import Observation
from embedlab.search.loop import TrialRunner
from embedlab.search.policies.policy import TrialResult
from embedlab.search.space import Candidate, Space, Trial

_ROUNDING = 1e-9  # tolerance for rounding errors, as a share of the budget
_SAME = 1.1  # maximum ratio between targets that count as equal


@dataclass(frozen=True)
class RunTable:
    """Finished runs as a space to search.

    Attributes:
        space: Space with one trial per run.
        losses: Loss of each trial on held-out data.
    """

    space: Space
    losses: Mapping[Trial, float]

    def regret(self, chosen: Candidate) -> float:
        """Return the relative excess of a candidate's loss at its target over the lowest loss of all targets.

        Args:
            chosen: Candidate that a policy chose.
        """
        least = min(self.losses[self.space.target(candidate)] for candidate in self.space.candidates)
        return self.losses[self.space.target(chosen)] / least - 1

    def only(self, candidates: Collection[Candidate]) -> RunTable:
        """Return a table with only the runs of the given candidates."""
        losses = {trial: loss for trial, loss in self.losses.items() if trial.candidate in candidates}
        return RunTable(Space(losses, cooldown=self.space.cooldown), losses)


def run_table(observations: Iterable[Observation], *, cooldown: float = 1.0) -> RunTable:
    """Return a table of the runs that a law could be fitted to.

    Runs with equal backbone, method, learning rate and FLOPs count as repetitions with different seeds.

    Args:
        observations: Rows of the runs. Rows that are marked as left out are skipped.
        cooldown: Share of each run that no other run of the same candidate can reuse; see ``Space``.

    Raises:
        RecordError: If there is no finished run, or if the largest runs of the candidates have neither equal tokens nor
            equal FLOPs.
    """
    losses: dict[Trial, float] = {}
    for row in observations:
        if row.left_out is not None:
            continue
        seed = 0
        while (trial := _trial(row, seed)) in losses:
            seed += 1
        losses[trial] = row.loss
    if not losses:
        raise RecordError("There is no finished run to simulate a search on. Expected a table with a loss in each row.")
    space = Space(losses, cooldown=cooldown)
    targets = [space.target(candidate) for candidate in space.candidates]
    amounts = ([trial.tokens for trial in targets], [trial.budget for trial in targets])
    if all(max(values) > _SAME * min(values) for values in amounts):
        raise RecordError(
            "The largest runs of the candidates have neither equal numbers of tokens nor equal FLOPs "
            f"({min(amounts[0]):g} to {max(amounts[0]):g} tokens, {min(amounts[1]):g} to {max(amounts[1]):g} FLOPs), "
            "so a search cannot compare the candidates at a common target. Leave out candidates, or runs that are "
            "larger than the largest runs of other candidates."
        )
    return RunTable(space, losses)


def _trial(row: Observation, seed: int) -> Trial:
    candidate = Candidate(
        backbone=row.backbone,
        method=row.method,
        learning_rate=row.learning_rate,
        seed=seed,
        parameters=row.parameters,
        flops_per_token=row.flops / row.tokens,
    )
    return Trial(candidate, row.flops)


class TrialSimulator(TrialRunner):
    """Runner that looks up the loss of each trial in a table, and charges the FLOPs that training would have cost.

    Args:
        table: Table of finished runs.
        budget: Budget of the simulated search in FLOPs.
    """

    def __init__(self, table: RunTable, budget: float) -> None:
        self._table = table
        self._paid: set[Trial] = set()
        self._rounding = _ROUNDING * budget
        self.left = budget

    def run(self, trials: Sequence[Trial]) -> list[TrialResult]:
        """Return the result of each trial, and subtract its price from the remaining budget.

        Raises:
            ConfigError: If the remaining budget does not pay for a trial.
        """
        results = []
        for trial in trials:
            price = self._table.space.price([trial], self._paid)
            if price > self.left + self._rounding:
                raise ConfigError(
                    f"{trial.id} costs {price:g} FLOPs, but only {self.left:g} FLOPs of the budget are left."
                )
            self.left -= price
            self._paid.add(trial)
            results.append(TrialResult(trial=trial, loss=self._table.losses[trial], cost=price))
        return results
