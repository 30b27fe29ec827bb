"""A search in a table of finished runs, which hands out what was paid for: policies are compared without training."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from embedlab.errors import ConfigError, RecordError
from embedlab.scaling.observations import Observation
from embedlab.search.loop import TrialRunner
from embedlab.search.policies.policy import TrialResult
from embedlab.search.space import Candidate, Space, Trial

_ROUNDING = 1e-9  # of the budget
_SAME = 1.1  # targets that differ by no more than this factor are the same


@dataclass(frozen=True)
class RunTable:
    """Finished runs as a space to search.

    Attributes:
        space: a trial for each run.
        losses: of all trials.
    """

    space: Space
    losses: Mapping[Trial, float]

    def regret(self, chosen: Candidate) -> float:
        """How much higher the chosen candidate's loss at its target is than the least one, as a share of that."""
        least = min(self.losses[self.space.target(candidate)] for candidate in self.space.candidates)
        return self.losses[self.space.target(chosen)] / least - 1

    def only(self, candidates: Collection[Candidate]) -> RunTable:
        """The runs of some candidates."""
        losses = {trial: loss for trial, loss in self.losses.items() if trial.candidate in candidates}
        return RunTable(Space(losses, cooldown=self.space.cooldown), losses)


def run_table(observations: Iterable[Observation], *, cooldown: float = 1.0) -> RunTable:
    """The runs that a law could be fitted to; those that are alike in all but their noise count as seeds.

    Args:
        observations: the runs.
        cooldown: what runs of a candidate have in common, as ``Space`` has it.

    Raises:
        RecordError: if there is none, or the largest runs of the candidates agree neither in data nor in FLOPs.
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
        raise RecordError("There is no finished run to simulate. Expected a table with a loss in each row.")
    space = Space(losses, cooldown=cooldown)
    targets = [space.target(candidate) for candidate in space.candidates]
    amounts = ([trial.tokens for trial in targets], [trial.budget for trial in targets])
    if all(max(values) > _SAME * min(values) for values in amounts):
        raise RecordError(
            "The largest runs of the candidates had neither the same data nor the same FLOPs "
            f"({min(amounts[0]):g} to {max(amounts[0]):g} tokens, {min(amounts[1]):g} to {max(amounts[1]):g} FLOPs), "
            "so none of them is what a search would be for. Leave out candidates or the runs that go further."
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
    """A trainer in which every trial has been run, but is seen only when it is paid for.

    Args:
        table: of the runs.
        budget: FLOPs that there are to pay with.
    """

    def __init__(self, table: RunTable, budget: float) -> None:
        self._table = table
        self._paid: set[Trial] = set()
        self._rounding = _ROUNDING * budget
        self.left = budget

    def run(self, trials: Sequence[Trial]) -> list[TrialResult]:
        """Hands out the losses of some trials for their price.

        Raises:
            ConfigError: if what is left does not pay for one of them.
        """
        results = []
        for trial in trials:
            price = self._table.space.price([trial], self._paid)
            if price > self.left + self._rounding:
                raise ConfigError(f"{trial.id} costs {price:g} FLOPs, and {self.left:g} are left to pay with.")
            self.left -= price
            self._paid.add(trial)
            results.append(TrialResult(trial=trial, loss=self._table.losses[trial], cost=price))
        return results
