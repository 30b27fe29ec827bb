"""One search from its plan to its report: probe, calibrate, train what the policy proposes, confirm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from embedlab.records import Ledger
from embedlab.scaling.bootstrap import NUM_REPLICATES
from embedlab.scaling.observations import Observation, of_ledger, with_best_learning_rates
from embedlab.search.confirmation import Confirmation, confirm, next_budget
from embedlab.search.folder import SearchFolder
from embedlab.search.jobs import JobRunner
from embedlab.search.loop import search
from embedlab.search.plan import SearchPlan
from embedlab.search.policies.policy import History, Policy
from embedlab.search.preparation import (
    budgets_of,
    calibrate,
    combinations,
    named_rates,
    require_each_backbone,
    require_each_variant,
    space_for,
)
from embedlab.search.probing import Probe, Probed, probe
from embedlab.search.progress import Progress
from embedlab.search.projection import Forecast, Projection, calibration_trials
from embedlab.search.space import Candidate, Space
from embedlab.search.trials import TrialTrainer

_DISK_OF_A_RUN = 2**20  # log, record, configuration and events, roughly


class SearchRun:
    """A search.

    Args:
        plan: what is trained.
        policy: which of it.
        folder: for all of it.
        runner: that trains it.
        say: Function that tells the user a line.

    Attributes:
        num_failed: trials that were tried and failed.
    """

    def __init__(
        self, plan: SearchPlan, policy: Policy, folder: SearchFolder, runner: JobRunner, say: Callable[[str], object]
    ) -> None:
        self._plan = plan
        self._policy = policy
        self._folder = folder
        self._runner = runner
        self._say = say
        self.num_failed = 0

    def forecast(self) -> Forecast:
        """Return what the search will take.

        Raises:
            ConfigError: If the search cannot be run.
        """
        probed = self._probed()
        rates = named_rates(self._plan, probed.probes)
        space = space_for(self._plan, probed.probes, rates)
        return Forecast(
            plan=self._plan,
            space=space,
            probes=probed.probes,
            calibrations=calibration_trials(self._plan, _without(probed.probes, rates)),
            total_flops=self._total(space),
            num_slots=self._runner.num_slots,
        )

    def run(self) -> None:
        """Trains all that the policy proposes, and writes the report.

        Raises:
            ConfigError: if it cannot be run.
            KeyboardInterrupt: if it was asked to stop.
        """
        probed = self._probed()
        probes = probed.probes
        named = named_rates(self._plan, probes)
        space_for(self._plan, probes, named)  # refuses what is none
        self._folder.bind()
        progress = Progress(self._folder.events, probes, self._runner.num_slots, self._say)
        try:
            rates = calibrate(
                self._plan,
                _without(probes, named),
                self._folder.fit,
                self._folder.calibration,
                self._runner,
                progress.calibrated,
            )
            self._say_rates(rates)
            space = space_for(self._plan, probes, named | rates)
            self.require_room(space, probes)
            total = self._total(space)
            progress.begin(space, total)
            trainer = TrialTrainer(
                self._folder.fit,
                self._folder.trials,
                self._runner,
                space,
                keep_checkpoints=self._plan.keep_checkpoints,
                on_end=progress.trained,
            )
            history = search(self._policy, trainer, History(space), total)
        finally:
            progress.close()
        self._say_result(history, trainer)

    def confirm(self, budget: float | None, *, num_replicates: int = NUM_REPLICATES) -> Confirmation:
        """Trains the recipe for a budget beyond the runs, by default one step of budgets beyond.

        Raises:
            ConfigError: if the runs give no law that reaches that far.
        """
        observations = observations_of_search(self._folder)
        budget = budget or next_budget(self._plan.budgets)
        self._say(f"Training the recipe for {budget:g} FLOPs, from runs of smaller budgets alone.")
        return confirm(
            budget,
            observations,
            self._folder.confirmation,
            self._runner,
            fit=self._folder.fit,
            num_replicates=num_replicates,
        )

    def _probed(self) -> Probed:
        found = combinations(self._plan)
        self._say(
            f"Probing {len(found)} combinations of backbone and method by a few steps each. What is not here yet is "
            "fetched or pre-trained first.",
        )
        probed = probe(found, max(self._plan.budgets), self._folder.fit, self._folder.probes, self._runner)
        require_each_backbone(self._plan, probed)
        require_each_variant(probed)
        for one, reason in probed.refused.items():
            self._say(f"Left out, {one}: {reason}")
        for one, measured in probed.probes.items():
            paid = budgets_of(self._plan, measured)
            short = [f"{budget:g}" for budget in self._plan.budgets if budget not in paid]
            if short:
                self._say(
                    f"Left out, {one}: {', '.join(short)} FLOPs, less than min_steps ({self._plan.min_steps}) steps."
                )
        return probed

    def _total(self, space: Space) -> float:
        return self._plan.total_flops or space.price(space.trials)

    def require_room(self, space: Space, probes: Mapping[Candidate, Probe]) -> None:
        """Refuse a search whose checkpoints and logs find no room on the disk.

        Raises:
            ConfigError: If there is too little room.
        """
        projection = Projection(probes, self._runner.num_slots, space)
        missing = [trial for trial in space.trials if not (self._folder.trials / trial.id).exists()]
        if missing:
            share = min(1.0, self._total(space) / space.price(space.trials))  # of the trials that a policy can pay for
            disk = projection.disk(missing, keep_checkpoints=self._plan.keep_checkpoints)
            self._folder.require_room(share * (disk + _DISK_OF_A_RUN * len(missing)))

    def _say_rates(self, rates: Mapping[Candidate, Any]) -> None:
        if rates:
            self._say("Learning rates: " + ", ".join(f"{one} {rate:g}" for one, (rate,) in rates.items()) + ".")

    def _say_result(self, history: History, trainer: TrialTrainer) -> None:
        self.num_failed = len(trainer.errors)
        self._say(f"{len(history)} of {len(history.space.trials)} trials have ended, for {history.spent:.3g} FLOPs.")
        if trainer.errors:
            one, error = next(iter(trainer.errors.items()))
            self._say(
                f"{len(trainer.errors)} of them failed; the same command tries them again. {one.id}: {error}",
            )
        chosen = self._policy.choose(history)
        rate = "" if chosen.learning_rate is None else f", learning rate {chosen.learning_rate:g}"
        target = history.space.target(chosen)
        self._say(f"{type(self._policy).__name__} chooses {chosen} for {target.budget:g} FLOPs{rate}.")


def _without(probes: Mapping[Candidate, Probe], rates: Mapping[Candidate, Any]) -> dict[Candidate, Probe]:
    return {one: found for one, found in probes.items() if one not in rates}


def observations_of_search(folder: SearchFolder) -> list[Observation]:
    """Return the finished trials of a search, each with the best of its learning rates."""
    return with_best_learning_rates(of_ledger(Ledger([folder.trials])))
