"""From a plan to the space that is searched: what fits together, its learning rates, and what each run costs."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from embedlab.errors import ConfigError, TrainingError
from embedlab.search.calibration import Losses, best_step, next_steps, rate_at, smoothed
from embedlab.search.jobs import JobRunner
from embedlab.search.launchers.launcher import JobResult
from embedlab.search.plan import SearchPlan
from embedlab.search.probing import Probe, Probed
from embedlab.search.space import Candidate, Space, Trial
from embedlab.search.trials import CHECKPOINTS, job

Rates = Mapping[Candidate, Sequence[float]]
"""Learning rates to train with; a candidate that is not in it has its method's own."""


def combinations(plan: SearchPlan) -> list[Candidate]:
    """Every backbone by every variant of every method, without a learning rate and what only a probe knows."""
    return [
        Candidate(
            backbone=backbone,
            method=grid.method,
            method_options=options,
            seed=plan.seeds[0],
            parameters=math.nan,
            flops_per_token=math.nan,
        )
        for backbone in plan.suite
        for grid in plan.grids
        for options in grid.variants()
    ]


def require_each_backbone(plan: SearchPlan, probed: Probed) -> None:
    """Refuses a suite with a backbone that no method trains, or that no budget is enough for.

    Raises:
        ConfigError: if there is one.
    """
    for backbone in plan.suite:
        reasons = [reason for one, reason in probed.refused.items() if one.backbone == backbone]
        probes = {one: found for one, found in probed.probes.items() if one.backbone == backbone}
        if not probes:
            raise ConfigError(f"{backbone} cannot be trained by any of the methods: {' '.join(dict.fromkeys(reasons))}")
        for one, found in probes.items():
            if not budgets_of(plan, found):
                steps = max(plan.budgets) / found.flops_per_step
                raise ConfigError(
                    f"The largest budget of {max(plan.budgets):g} FLOPs pays {one} for {steps:.2g} steps of "
                    f"{found.flops_per_step:.3g} FLOPs, and min_steps is {plan.min_steps}. Raise budgets, lower "
                    "fit's data.batch_size or min_steps, or leave the backbone out."
                )


def require_each_variant(probed: Probed) -> None:
    """Refuses a method, or options of it, that trains none of the backbones: it is misspelled, or fits none.

    Raises:
        ConfigError: if there is one.
    """
    trained = {_variant(one) for one in probed.probes}
    for one, reason in probed.refused.items():
        if _variant(one) not in trained:
            options = f" with {dict(one.method_options)}" if one.method_options else ""
            raise ConfigError(f"{one.method}{options} trains none of the backbones. {reason}")


def budgets_of(plan: SearchPlan, found: Probe) -> list[float]:
    """Those that pay for enough steps."""
    return [budget for budget in plan.budgets if budget >= plan.min_steps * found.flops_per_step]


def space_for(plan: SearchPlan, probes: Mapping[Candidate, Probe], rates: Rates) -> Space:
    """All trials of a plan.

    Args:
        plan: of the search.
        probes: of the combinations that train.
        rates: to train them with.
    """
    own: Sequence[float | None] = [None]
    trials = []
    for one, found in probes.items():
        known = replace(one, parameters=found.parameters, flops_per_token=found.flops_per_token)
        for rate in rates.get(one, own):
            for seed in plan.seeds:
                candidate = replace(known, learning_rate=rate, seed=seed)
                trials += [Trial(candidate, float(budget)) for budget in budgets_of(plan, found)]
    return Space(trials, cooldown=plan.cooldown())


def named_rates(plan: SearchPlan, candidates: Collection[Candidate]) -> dict[Candidate, Sequence[float]]:
    """The learning rates that the plan names."""
    return {
        one: grid.learning_rates
        for grid in plan.grids
        if grid.learning_rates
        for one in candidates
        if one.method == grid.method and one.method_options in grid.variants()
    }


def calibration_budget(plan: SearchPlan, found: Probe) -> float | None:
    """FLOPs of each of its runs; None where there are none, because they would be too short."""
    budget = plan.calibration.budget or min(budgets_of(plan, found))
    return budget if plan.calibration.enabled and budget >= plan.min_steps * found.flops_per_step else None


def calibrate(
    plan: SearchPlan,
    probes: Mapping[Candidate, Probe],
    fit: Path,
    folder: Path,
    runner: JobRunner,
    on_end: Callable[[Trial, JobResult], None],
) -> dict[Candidate, Sequence[float]]:
    """A learning rate for each combination, smoothed over the sizes of those that have all else in common.

    Args:
        plan: of the search.
        probes: of the combinations whose rate is to be found.
        fit: configuration of ``embedlab fit`` that they are laid over.
        folder: for the runs.
        runner: of their jobs.
        on_end: is told of each run that has ended.

    Raises:
        TrainingError: if one fails, which a run that diverges does not.
    """
    factor = plan.calibration.factor
    tried: dict[Candidate, Losses] = {
        one: {} for one, found in probes.items() if calibration_budget(plan, found) is not None
    }
    while wanted := _wanted(tried, probes):
        of_job = {}
        for one, step in wanted:
            found = probes[one]
            budget = calibration_budget(plan, found)
            assert budget is not None
            candidate = replace(one, learning_rate=rate_at(found.learning_rate, factor, step))
            trial = Trial(candidate, budget)
            of_job[job(fit, folder / trial.id, trial.id, candidate, {"budget": budget})] = one, step, trial
        for ended in runner.run(list(of_job)):
            one, step, trial = of_job[ended.job]
            record = ended.record
            if record is None or record.status == "failed":  # says nothing of the rate, on which all trials depend
                raise TrainingError(
                    f"The run of the calibration in {ended.job.folder} failed: {ended.error} When that is mended, the "
                    "same command goes on."
                )
            is_loss = record.status == "finished" and math.isfinite(record.loss)
            tried[one][step] = record.loss if is_loss else math.inf
            shutil.rmtree(ended.job.folder / CHECKPOINTS, ignore_errors=True)
            on_end(trial, ended)
    found_steps = {one: best for one, losses in tried.items() if (best := best_step(losses)) is not None}
    rates: dict[Candidate, Sequence[float]] = {}
    for one, found in probes.items():
        alike: dict[float, list[float]] = {}  # by size, which several backbones may have
        for other, best in found_steps.items():
            if _variant(other) == _variant(one):
                alike.setdefault(probes[other].parameters, []).append(best)
        if alike:
            steps = {size: sum(of_it) / len(of_it) for size, of_it in alike.items()}
            at_size = smoothed(steps, [found.parameters])[found.parameters]
            rates[one] = [rate_at(found.learning_rate, factor, at_size)]
    return rates


def _wanted(tried: Mapping[Candidate, Losses], probes: Mapping[Candidate, Probe]) -> list[tuple[Candidate, int]]:
    """The rates to try now: of each variant of a method those of its smallest size that lacks some."""
    wanted: dict[str, list[tuple[Candidate, int]]] = {}
    begin: dict[str, int] = {}
    for one in sorted(tried, key=lambda one: probes[one].parameters):
        variant = _variant(one)
        if variant in wanted:
            continue
        steps = next_steps(tried[one], begin.get(variant, 0))
        if steps:
            wanted[variant] = [(one, step) for step in steps]
        best = best_step(tried[one])
        begin[variant] = 0 if best is None else round(best)
    return [pair for pairs in wanted.values() for pair in pairs]


def _variant(one: Candidate) -> str:
    return f"{one.method} {sorted(one.method_options.items())}"
