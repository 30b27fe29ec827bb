"""Preparation of a search: turns a plan into the space of trials, with calibrated learning rates and known costs."""

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
"""Learning rates to train each candidate with. A candidate without an entry uses the method's default rate."""


def combinations(plan: SearchPlan) -> list[Candidate]:
    """Return a candidate for every combination of backbone, method and option values.

    The candidates have no learning rate, and parameters and FLOPs per token are NaN until a probe has measured them.
    """
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
    """Check that at least one method can train each backbone, and that the budgets pay for enough steps.

    Raises:
        ConfigError: If no method can train a backbone, or if the largest budget pays a combination with a backbone for
            fewer than ``min_steps`` steps.
    """
    for backbone in plan.suite:
        reasons = [reason for one, reason in probed.refused.items() if one.backbone == backbone]
        probes = {one: found for one, found in probed.probes.items() if one.backbone == backbone}
        if not probes:
            raise ConfigError(
                f"{backbone} cannot be trained with any of the methods: {' '.join(dict.fromkeys(reasons))}"
            )
        for one, found in probes.items():
            if not budgets_of(plan, found):
                steps = max(plan.budgets) / found.flops_per_step
                raise ConfigError(
                    f"The largest budget of {max(plan.budgets):g} FLOPs pays for {steps:.2g} steps of {one} at "
                    f"{found.flops_per_step:.3g} FLOPs per step, but min_steps is {plan.min_steps}. Raise budgets, "
                    "lower fit's data.batch_size or min_steps, or leave the backbone out."
                )


def require_each_variant(probed: Probed) -> None:
    """Check that each method, with each combination of option values, can train at least one backbone.

    Raises:
        ConfigError: If a method can train no backbone, for example because an option is misspelled.
    """
    trained = {_variant(one) for one in probed.probes}
    for one, reason in probed.refused.items():
        if _variant(one) not in trained:
            options = f" with {dict(one.method_options)}" if one.method_options else ""
            raise ConfigError(f"{one.method}{options} cannot train any of the backbones. {reason}")


def budgets_of(plan: SearchPlan, found: Probe) -> list[float]:
    """Return the budgets of a plan, in FLOPs, that pay for at least ``min_steps`` steps of a probed combination."""
    return [budget for budget in plan.budgets if budget >= plan.min_steps * found.flops_per_step]


def space_for(plan: SearchPlan, probes: Mapping[Candidate, Probe], rates: Rates) -> Space:
    """Return the space of all trials of a plan.

    Args:
        plan: Plan of the search.
        probes: Probe of each combination of backbone and method that can be trained.
        rates: Learning rates to train the combinations with.
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
    """Return the learning rates of each candidate whose method lists learning rates in the plan."""
    return {
        one: grid.learning_rates
        for grid in plan.grids
        if grid.learning_rates
        for one in candidates
        if one.method == grid.method and one.method_options in grid.variants()
    }


def calibration_budget(plan: SearchPlan, found: Probe) -> float | None:
    """Return the budget of each calibration run of a probed combination, in FLOPs.

    Returns:
        The budget; None if calibration is disabled, or if the budget pays for fewer than ``min_steps`` steps.
    """
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
    """Find a learning rate for each combination, smoothed over the model sizes of each method with its options.

    Args:
        plan: Plan of the search.
        probes: Probe of each combination to find a learning rate for.
        fit: Path of the configuration of ``embedlab fit`` that all runs share.
        folder: Folder for the calibration runs.
        runner: Runner that trains the calibration runs.
        on_end: Function that is called with each calibration run that has ended.

    Returns:
        A list with one learning rate for each combination. A combination has no entry if all calibration runs of its
        method and options diverged, or if there were none.

    Raises:
        TrainingError: If a run fails. A run that diverges has not failed.
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
            if record is None or record.status == "failed":  # the rate remains unknown, but all trials depend on it
                raise TrainingError(
                    f"The calibration run in {ended.job.folder} failed: {ended.error} Fix the cause, then repeat the "
                    "command to continue the search."
                )
            is_loss = record.status == "finished" and math.isfinite(record.loss)
            tried[one][step] = record.loss if is_loss else math.inf
            shutil.rmtree(ended.job.folder / CHECKPOINTS, ignore_errors=True)
            on_end(trial, ended)
    found_steps = {one: best for one, losses in tried.items() if (best := best_step(losses)) is not None}
    rates: dict[Candidate, Sequence[float]] = {}
    for one, found in probes.items():
        alike: dict[float, list[float]] = {}  # several backbones may have an equal size
        for other, best in found_steps.items():
            if _variant(other) == _variant(one):
                alike.setdefault(probes[other].parameters, []).append(best)
        if alike:
            steps = {size: sum(of_it) / len(of_it) for size, of_it in alike.items()}
            at_size = smoothed(steps, [found.parameters])[found.parameters]
            rates[one] = [rate_at(found.learning_rate, factor, at_size)]
    return rates


def _wanted(tried: Mapping[Candidate, Losses], probes: Mapping[Candidate, Probe]) -> list[tuple[Candidate, int]]:
    """Return the learning rates to try next, as pairs of a candidate and a number of steps from the default rate.

    For each method with its options, only the smallest backbone whose calibration is incomplete has rates to try.
    """
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
