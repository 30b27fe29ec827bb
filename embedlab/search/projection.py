"""Projection of what a search will need before it starts: trials, FLOPs, hours, memory and disk space."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from embedlab.search.plan import SearchPlan
from embedlab.search.preparation import calibration_budget
from embedlab.search.probing import Probe
from embedlab.search.space import Candidate, Space, Trial

FEWEST_RATES = 3  # minimum number of learning rates that a calibration tries


def probe_of(probes: Mapping[Candidate, Probe], candidate: Candidate) -> Probe:
    """Return the probe of a candidate's combination of backbone and method, ignoring learning rate and seed."""
    return next(found for one, found in probes.items() if replace(candidate, learning_rate=None, seed=one.seed) == one)


class Projection:
    """Projected FLOPs, time and disk space of trials.

    Args:
        probes: Probe of each combination of backbone and method.
        num_slots: Number of trials that are trained at a time.
        space: Space of the trials. Trials outside of the space share no trunk with other trials. None for no space.
    """

    def __init__(self, probes: Mapping[Candidate, Probe], num_slots: int, space: Space | None = None) -> None:
        self._probes = probes
        self._num_slots = num_slots
        self._space = space

    def flops(self, trial: Trial) -> float:
        """Return the FLOPs that a trial adds to the trials of its candidate with smaller budgets."""
        if self._space is None or trial not in self._space:
            return trial.budget
        smaller = self._space.up_to(self._space.level(trial) - 1, trial.candidate)
        return self._space.price([trial], smaller)

    def seconds(self, trials: Iterable[Trial]) -> float:
        """Return the time in seconds until all trials are trained."""
        return sum(probe_of(self._probes, one.candidate).seconds(self.flops(one)) for one in trials) / self._num_slots

    def disk(self, trials: Sequence[Trial], *, keep_checkpoints: bool) -> float:
        """Return the disk space that the checkpoints of trials need, in bytes.

        Args:
            trials: Trials to train.
            keep_checkpoints: Whether the checkpoints of finished trials are kept.
        """
        of_trial = {one: float(probe_of(self._probes, one.candidate).checkpoint_bytes) for one in trials}
        has_trunk = self._space is not None and self._space.cooldown < 1
        if keep_checkpoints:  # with a shared trunk, each trial keeps a branch point, too
            return (2 if has_trunk else 1) * sum(of_trial.values())
        under_way = self._num_slots * max(of_trial.values(), default=0.0)
        of_candidate = {one.candidate: size for one, size in of_trial.items()}
        return under_way + (sum(of_candidate.values()) + under_way if has_trunk else 0.0)


def calibration_trials(plan: SearchPlan, probes: Mapping[Candidate, Probe]) -> list[Trial]:
    """Return the minimum set of runs that the calibration of the combinations needs."""
    budgets = {one: calibration_budget(plan, found) for one, found in probes.items()}
    return [Trial(one, budget) for one, budget in budgets.items() if budget is not None for _ in range(FEWEST_RATES)]


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a search will need, before it starts.

    Attributes:
        plan: Plan of the search.
        space: Space of its trials.
        probes: Measurements of each combination of backbone and method.
        calibrations: Minimum set of runs that the calibration of learning rates needs.
        total_flops: Maximum number of FLOPs spent by all trials together.
        num_slots: Number of trials that are trained at a time.
    """

    plan: SearchPlan
    space: Space
    probes: Mapping[Candidate, Probe]
    calibrations: Sequence[Trial]
    total_flops: float
    num_slots: int
