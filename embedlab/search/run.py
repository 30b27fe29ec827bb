"""Run of a search: probes the combinations, calibrates learning rates, trains the proposed trials, and confirms."""

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

_DISK_OF_A_RUN = 2**20  # bytes of log, record, configuration and events, roughly


class SearchRun:
    """A search with a plan, in a folder.

    Args:
        plan: Plan of the search.
        policy: Policy that chooses the trials to train.
        folder: Folder of the search.
        runner: Runner that trains the trials.
        say: Function that prints a line for the user.

    Attributes:
        num_failed: Number of trials that failed in this process.
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
        """Return a forecast of what the search will need, without training a trial.

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
        """Train all trials that the policy proposes, and print which candidate the policy chooses.

        Raises:
            ConfigError: If the search cannot be run.
            KeyboardInterrupt: If the search was asked to stop.
        """
        probed = self._probed()
        probes = probed.probes
        named = named_rates(self._plan, probes)
        space_for(self._plan, probes, named)  # raises an error for an invalid space before anything is trained
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
        """Train the recipe for a budget beyond the runs, and compare its loss with the prediction.

        Args:
            budget: Budget in FLOPs; None for the next budget after the budgets of the plan.
            num_replicates: Number of bootstrap replicates.

        Raises:
            ConfigError: If no law can be fitted to the runs, or the budget is too far beyond the runs.
            TrainingError: If the run of the recipe leaves no record.
        """
        observations = observations_of_search(self._folder)
        budget = budget or next_budget(self._plan.budgets)
        self._say(f"Training the recipe for {budget:g} FLOPs, predicted only from runs with smaller budgets.")
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
            f"Probing {len(found)} combinations of backbone and method with a few training steps each. Missing "
            "backbones are downloaded or pre-trained first.",
        )
        probed = probe(found, max(self._plan.budgets), self._folder.fit, self._folder.probes, self._runner)
        require_each_backbone(self._plan, probed)
        require_each_variant(probed)
        for one, reason in probed.refused.items():
            self._say(f"Leaving out {one}: {reason}")
        for one, measured in probed.probes.items():
            paid = budgets_of(self._plan, measured)
            short = [f"{budget:g}" for budget in self._plan.budgets if budget not in paid]
            if short:
                self._say(
                    f"Leaving out {one} at {', '.join(short)} FLOPs: fewer than min_steps ({self._plan.min_steps}) "
                    "steps."
                )
        return probed

    def _total(self, space: Space) -> float:
        return self._plan.total_flops or space.price(space.trials)

    def require_room(self, space: Space, probes: Mapping[Candidate, Probe]) -> None:
        """Check that there is enough free disk space for the checkpoints and logs of the missing trials.

        Args:
            space: Space of the search.
            probes: Probe of each combination of backbone and method.

        Raises:
            ConfigError: If there is too little free disk space.
        """
        projection = Projection(probes, self._runner.num_slots, space)
        missing = [trial for trial in space.trials if not (self._folder.trials / trial.id).exists()]
        if missing:
            # The share of the trials that a policy can pay for.
            share = min(1.0, self._total(space) / space.price(space.trials))
            disk = projection.disk(missing, keep_checkpoints=self._plan.keep_checkpoints)
            self._folder.require_room(share * (disk + _DISK_OF_A_RUN * len(missing)))

    def _say_rates(self, rates: Mapping[Candidate, Any]) -> None:
        if rates:
            self._say("Learning rates: " + ", ".join(f"{one} {rate:g}" for one, (rate,) in rates.items()) + ".")

    def _say_result(self, history: History, trainer: TrialTrainer) -> None:
        self.num_failed = len(trainer.errors)
        self._say(
            f"{len(history)} of {len(history.space.trials)} trials have ended. They cost {history.spent:.3g} FLOPs."
        )
        if trainer.errors:
            one, error = next(iter(trainer.errors.items()))
            self._say(
                f"{len(trainer.errors)} trials failed. Repeat the command to retry them. Error of {one.id}: {error}",
            )
        chosen = self._policy.choose(history)
        rate = "" if chosen.learning_rate is None else f", learning rate {chosen.learning_rate:g}"
        target = history.space.target(chosen)
        self._say(f"{type(self._policy).__name__} chooses {chosen} for {target.budget:g} FLOPs{rate}.")


def _without(probes: Mapping[Candidate, Probe], rates: Mapping[Candidate, Any]) -> dict[Candidate, Probe]:
    return {one: found for one, found in probes.items() if one not in rates}


def observations_of_search(folder: SearchFolder) -> list[Observation]:
    """Return one observation per trial that has a record.

    A trial is marked as left out if a similar trial with another learning rate has a lower loss.

    Args:
        folder: Folder of the search.
    """
    return with_best_learning_rates(of_ledger(Ledger([folder.trials])))
