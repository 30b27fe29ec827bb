"""The space of a search: all trials that a search can run, and what they cost.

A candidate is a choice of backbone, method, method options, learning rate and seed. A trial is a candidate with a
budget. The budgets of a candidate's trials are its budget levels, and the trial at the highest level is the candidate's
target. A search looks for the candidate with the lowest loss at its target. All targets have the same level number,
even if some candidates have no trials at small budgets.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from itertools import product
from typing import Any, NamedTuple

from embedlab.errors import ConfigError

_DIGITS = 12  # hexadecimal digits of a trial's digest: among a million trials, a collision has a probability of 2e-3


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A choice of backbone, method, method options, learning rate and seed.

    Two candidates are equal if these five choices are equal; parameters and FLOPs are not compared.

    Attributes:
        backbone: Path, Hugging Face id or ladder rung of the backbone.
        method: Class name of the fine-tuning method.
        method_options: Arguments of the method, by name.
        learning_rate: Peak learning rate; None for the method's default.
        seed: Seed of all random number generators.
        parameters: Number of parameters of the backbone, without embedding tables (N).
        flops_per_token: Algorithmic FLOPs of training per token.
    """

    backbone: str
    method: str
    method_options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    learning_rate: float | None = None
    seed: int = 0
    parameters: float = field(compare=False)
    flops_per_token: float = field(compare=False)

    def __str__(self) -> str:
        options = ", ".join(f"{name}={value}" for name, value in self.method_options.items())
        return f"{self.backbone.rstrip('/').rpartition('/')[2]} {self.method}{f'({options})' if options else ''}"

    def named(self, amount: float) -> str:
        """Return a folder name for the candidate and an amount; it is equal on every machine.

        Args:
            amount: Amount that tells folders of the candidate apart, for example a budget in FLOPs.
        """
        key = [self.backbone, self.method, self.method_options, self.learning_rate, self.seed, float(amount)]
        digest = sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:_DIGITS]
        backbone = re.sub(r"[^A-Za-z0-9.]+", "-", self.backbone.rstrip("/").rpartition("/")[2])
        return f"{backbone}-{self.method}-{amount:.3g}-{digest}".replace("+", "").replace(" ", "-")


@dataclass(frozen=True)
class Trial:
    """A candidate to train with a budget.

    Attributes:
        candidate: Candidate to train.
        budget: Algorithmic FLOPs of the whole run. With a shared trunk, the FLOPs of the trunk are included.
    """

    candidate: Candidate
    budget: float

    @property
    def tokens(self) -> float:
        """Number of tokens that the budget pays for (D)."""
        return self.budget / self.candidate.flops_per_token

    @cached_property
    def id(self) -> str:
        """Identifier of the trial, usable as a folder name; equal on every machine and in every version of Python."""
        return self.candidate.named(self.budget)


@dataclass(frozen=True, kw_only=True)
class MethodGrid:
    """A method with the values to try for its options; every combination of the values is tried.

    Args:
        method: Class name of the fine-tuning method.
        options: List of the values to try for each option, by name. By default, the method's default options.
        learning_rates: Peak learning rates to try. By default, the search finds a learning rate by calibration.

    Raises:
        ConfigError: If a learning rate is not a finite number above 0, or is given twice.
    """

    method: str
    options: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    learning_rates: Sequence[float] = ()

    def __post_init__(self) -> None:
        rates = list(self.learning_rates)
        if len(set(rates)) < len(rates) or not all(math.isfinite(rate) and rate > 0 for rate in rates):
            raise ConfigError(
                f"learning_rates of {self.method} is {rates}. Expected numbers above 0, each once. Leave it out to let "
                "the search find a learning rate."
            )

    def variants(self) -> list[dict[str, Any]]:
        """Return every combination of option values, each as a dictionary by option name.

        Raises:
            ConfigError: If the values of an option are not a list, or the list is empty.
        """
        for name, values in self.options.items():
            if isinstance(values, str) or not isinstance(values, Sequence) or not values:
                raise ConfigError(
                    f"Option '{name}' of {self.method} is {values!r}. Expected a list of the values to try, for "
                    "example [8, 32]. Leave the option out for its default."
                )
        return [dict(zip(self.options, values, strict=True)) for values in product(*self.options.values())]


class Cost(NamedTuple):
    """Size of a backbone, and the cost to train it with a method.

    Attributes:
        parameters: Number of parameters of the backbone, without embedding tables (N).
        flops_per_token: Algorithmic FLOPs of training per token.
    """

    parameters: float
    flops_per_token: float


class Space:
    """All trials that a search may run, and what they cost.

    Args:
        trials: Trials of all candidates.
        cooldown: Share of each run, at its end, that no other run of the same candidate can reuse. 1 if every run
            starts from its first step. With a warm-up-stable-decay schedule, the share of the run in which the learning
            rate decays, because runs branch off a shared trunk. 0 if a shorter run is a checkpoint of a longer run.

    Raises:
        ConfigError: If there are no trials, a trial is given twice, a budget is not a finite number above 0, or
            ``cooldown`` is not between 0 and 1.
    """

    def __init__(self, trials: Iterable[Trial], *, cooldown: float = 1.0) -> None:
        if not 0 <= cooldown <= 1:
            raise ConfigError(f"cooldown is a share of each run and must be in [0, 1], got {cooldown}.")
        self.cooldown = cooldown
        levels: dict[Candidate, dict[float, Trial]] = {}
        for trial in trials:
            if not (math.isfinite(trial.budget) and trial.budget > 0):
                raise ConfigError(
                    f"The budget of {trial.id} is {trial.budget}. Expected a finite number of FLOPs above 0."
                )
            of_candidate = levels.setdefault(trial.candidate, {})
            if trial.budget in of_candidate:
                raise ConfigError(
                    f"The search contains the trial {trial.id} twice. Name each backbone, method, budget and seed once."
                )
            of_candidate[trial.budget] = trial
        if not levels:
            raise ConfigError("The search has no trials. Expected at least one backbone, one method and one budget.")
        self._levels = {one: tuple(found[budget] for budget in sorted(found)) for one, found in levels.items()}
        self.num_levels = max(map(len, self._levels.values()))

    @property
    def candidates(self) -> list[Candidate]:
        """All candidates, in the order in which their trials were given."""
        return list(self._levels)

    @property
    def trials(self) -> list[Trial]:
        """All trials, grouped by candidate. The budgets of each candidate rise."""
        return [trial for levels in self._levels.values() for trial in levels]

    def __contains__(self, trial: Trial) -> bool:
        return trial in self._levels.get(trial.candidate, ())

    def target(self, candidate: Candidate) -> Trial:
        """Return the trial of a candidate with the largest budget."""
        return self._levels[candidate][-1]

    def level(self, trial: Trial) -> int:
        """Return the budget level of a trial, from 0 to ``num_levels`` - 1. All targets are at the highest level."""
        levels = self._levels[trial.candidate]
        return levels.index(trial) + self.num_levels - len(levels)

    def at(self, level: int, candidates: Iterable[Candidate] | None = None) -> list[Trial]:
        """Return the trials at a budget level.

        Args:
            level: Budget level.
            candidates: Candidates to return trials of; None for all candidates. Candidates without a trial at the level
                are left out.
        """
        found = []
        for candidate in self._levels if candidates is None else candidates:
            levels = self._levels[candidate]
            number = level - self.num_levels + len(levels)
            if 0 <= number < len(levels):
                found.append(levels[number])
        return found

    def up_to(self, level: int, candidate: Candidate) -> list[Trial]:
        """Return the trials of a candidate up to a budget level, including that level."""
        return [trial for number in range(level + 1) for trial in self.at(number, [candidate])]

    def price(self, trials: Iterable[Trial], paid: Collection[Trial] = ()) -> float:
        """Return the FLOPs that trials add to trials that are already paid for.

        The trunk of each candidate is counted once, up to the point where the longest run branches off. The end of
        each run (the share ``cooldown``) is counted for every run.

        Args:
            trials: Trials to price. Trials that are already paid for cost nothing.
            paid: Trials that are already paid for.
        """
        new = {trial: None for trial in trials if trial not in paid}
        trunks: dict[Candidate, float] = {}
        for trial in new:
            trunks[trial.candidate] = max(trial.budget, trunks.get(trial.candidate, 0.0))
        before = dict.fromkeys(trunks, 0.0)
        if self.cooldown < 1:
            for trial in paid:
                if trial.candidate in before:
                    before[trial.candidate] = max(trial.budget, before[trial.candidate])
        longer = sum(max(0.0, budget - before[candidate]) for candidate, budget in trunks.items())
        return self.cooldown * sum(trial.budget for trial in new) + (1 - self.cooldown) * longer

    def affordable(self, trials: Iterable[Trial], budget: float, paid: Collection[Trial] = ()) -> list[Trial]:
        """Return the trials that a budget pays for.

        Trials are considered in the given order. A trial that costs more than the remaining budget is skipped.

        Args:
            trials: Trials to choose from.
            budget: Budget in FLOPs.
            paid: Trials that are already paid for.
        """
        left = budget
        done = set(paid)
        found = []
        for trial in trials:
            price = self.price([trial], done)
            if price <= left:
                left -= price
                done.add(trial)
                found.append(trial)
        return found


def space_of(
    backbones: Sequence[str],
    methods: Sequence[MethodGrid],
    cost_of: Callable[[str, str, Mapping[str, Any]], Cost],
    *,
    budgets: Sequence[float] | None = None,
    tokens: Sequence[float] | None = None,
    seeds: Sequence[int] = (0,),
    cooldown: float = 1.0,
) -> Space:
    """Return the space of every combination of backbone, method variant, seed and budget.

    Either ``budgets`` or ``tokens`` must be given, but not both.

    Args:
        backbones: Paths, Hugging Face ids or ladder rungs of the backbones.
        methods: Methods with the option values and learning rates to try.
        cost_of: Function from a backbone, a method and its options to the cost. `embedlab flops` prints these costs.
        budgets: Budgets of the runs in FLOPs, equal for all candidates: candidates compete at equal compute.
        tokens: Numbers of tokens to train on, equal for all candidates: candidates compete at equal data.
        seeds: Seeds of all random number generators; each combination is trained once per seed.
        cooldown: Share of each run that no other run of the same candidate can reuse; see ``Space``.

    Raises:
        ConfigError: If both or neither of ``budgets`` and ``tokens`` are given, or if the trials do not form a valid
            ``Space``.
    """
    if (budgets is None) == (tokens is None):
        given = "neither" if tokens is None else "both"
        raise ConfigError(
            f"A search needs budgets in FLOPs or numbers of tokens, got {given}. Give one of the two, not both."
        )
    trials = []
    for backbone, grid, seed in product(backbones, methods, seeds):
        rates: Sequence[float | None] = grid.learning_rates or [None]
        for options, rate in product(grid.variants(), rates):
            parameters, flops_per_token = cost_of(backbone, grid.method, options)
            candidate = Candidate(
                backbone=backbone,
                method=grid.method,
                method_options=options,
                learning_rate=rate,
                seed=seed,
                parameters=parameters,
                flops_per_token=flops_per_token,
            )
            amounts = budgets if budgets is not None else [flops_per_token * amount for amount in tokens or ()]
            trials += [Trial(candidate, float(amount)) for amount in amounts]
    return Space(trials, cooldown=cooldown)
