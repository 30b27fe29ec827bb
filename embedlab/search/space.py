"""What a search can train: every backbone by every method, on rising budgets up to the one that the answer is for.

A candidate is what a budget is spent on, a trial a candidate and a budget. The budgets of a
candidate's trials are its budget levels. The highest is its target, and the search is for the candidate whose target
has the least loss. Levels are counted so that all targets are on the same one, even where a candidate lacks small
budgets.
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

_DIGITS = 12  # of a trial's digest: a collision among a million trials has a probability of 2e-3


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A backbone with a method and all that belongs to it. Two are the same if the same would be trained.

    Attributes:
        backbone: path or id.
        method: class of the fine-tuning method.
        method_options: its arguments.
        learning_rate: peak; None for the method's own.
        seed: of everything.
        parameters: N, without tables.
        flops_per_token: of training.
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
        """A name of it with an amount of something, fit to be that of a folder, the same on every machine."""
        key = [self.backbone, self.method, self.method_options, self.learning_rate, self.seed, float(amount)]
        digest = sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:_DIGITS]
        backbone = re.sub(r"[^A-Za-z0-9.]+", "-", self.backbone.rstrip("/").rpartition("/")[2])
        return f"{backbone}-{self.method}-{amount:.3g}-{digest}".replace("+", "").replace(" ", "-")


@dataclass(frozen=True)
class Trial:
    """A candidate and what it may spend.

    Attributes:
        candidate: what is trained.
        budget: algorithmic FLOPs of the whole run, from its first step on.
    """

    candidate: Candidate
    budget: float

    @property
    def tokens(self) -> float:
        """D, which the budget pays for."""
        return self.budget / self.candidate.flops_per_token

    @cached_property
    def id(self) -> str:
        """The same on every machine and in every version of Python, and fit to be the name of a folder."""
        return self.candidate.named(self.budget)


@dataclass(frozen=True, kw_only=True)
class MethodGrid:
    """A method with every combination of some values of its options.

    Args:
        method: class of the fine-tuning method.
        options: by name, the values to try.
        learning_rates: peaks to try; none for the method's own.

    Raises:
        ConfigError: if one is no number above 0, or comes twice.
    """

    method: str
    options: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    learning_rates: Sequence[float] = ()

    def __post_init__(self) -> None:
        rates = list(self.learning_rates)
        if len(set(rates)) < len(rates) or not all(math.isfinite(rate) and rate > 0 for rate in rates):
            raise ConfigError(
                f"learning_rates of {self.method} is {rates}. Expected numbers above 0, each once; leave it out to "
                "have one found."
            )

    def variants(self) -> list[dict[str, Any]]:
        """Options of the method, a dictionary for each combination.

        Raises:
            ConfigError: if an option has no values, or is no list of them.
        """
        for name, values in self.options.items():
            if isinstance(values, str) or not isinstance(values, Sequence) or not values:
                raise ConfigError(
                    f"Option '{name}' of {self.method} is {values!r}. Expected a list of the values to try, for "
                    f"instance [8, 32]; leave it out for the default."
                )
        return [dict(zip(self.options, values, strict=True)) for values in product(*self.options.values())]


class Cost(NamedTuple):
    """What a backbone costs to train by a method.

    Attributes:
        parameters: N, without tables.
        flops_per_token: algorithmic.
    """

    parameters: float
    flops_per_token: float


class Space:
    """All trials that a search may run, and what they cost.

    Args:
        trials: of all candidates.
        cooldown: the share of each run, at its end, that no other run of the candidate has in common with it. 1 where
            every run starts anew; with a warm-up-stable-decay schedule the share of its decay, since runs then branch
            off one trunk; 0 where a shorter run is a checkpoint of the longer one.

    Raises:
        ConfigError: if there is no trial, one comes twice or has no budget, or the share is none.
    """

    def __init__(self, trials: Iterable[Trial], *, cooldown: float = 1.0) -> None:
        if not 0 <= cooldown <= 1:
            raise ConfigError(f"cooldown is a share of each run and must lie in [0, 1], got {cooldown}.")
        self.cooldown = cooldown
        levels: dict[Candidate, dict[float, Trial]] = {}
        for trial in trials:
            if not (math.isfinite(trial.budget) and trial.budget > 0):
                raise ConfigError(f"The budget of {trial.id} is {trial.budget}. Expected finite FLOPs above 0.")
            of_candidate = levels.setdefault(trial.candidate, {})
            if trial.budget in of_candidate:
                raise ConfigError(f"{trial.id} comes twice in the search. Name each of its parts once.")
            of_candidate[trial.budget] = trial
        if not levels:
            raise ConfigError("There is nothing to search: expected at least one backbone, method and budget.")
        self._levels = {one: tuple(found[budget] for budget in sorted(found)) for one, found in levels.items()}
        self.num_levels = max(map(len, self._levels.values()))

    @property
    def candidates(self) -> list[Candidate]:
        """In the order in which they were given."""
        return list(self._levels)

    @property
    def trials(self) -> list[Trial]:
        """Candidate by candidate, each with rising budgets."""
        return [trial for levels in self._levels.values() for trial in levels]

    def __contains__(self, trial: Trial) -> bool:
        return trial in self._levels.get(trial.candidate, ())

    def target(self, candidate: Candidate) -> Trial:
        """The trial that the search is for."""
        return self._levels[candidate][-1]

    def level(self, trial: Trial) -> int:
        """From 0 to ``num_levels`` - 1, which is the level of every target."""
        levels = self._levels[trial.candidate]
        return levels.index(trial) + self.num_levels - len(levels)

    def at(self, level: int, candidates: Iterable[Candidate] | None = None) -> list[Trial]:
        """The trials on a level, of those candidates that have it."""
        found = []
        for candidate in self._levels if candidates is None else candidates:
            levels = self._levels[candidate]
            number = level - self.num_levels + len(levels)
            if 0 <= number < len(levels):
                found.append(levels[number])
        return found

    def up_to(self, level: int, candidate: Candidate) -> list[Trial]:
        """The trials of a candidate on a level and below."""
        return [trial for number in range(level + 1) for trial in self.at(number, [candidate])]

    def price(self, trials: Iterable[Trial], paid: Collection[Trial] = ()) -> float:
        """FLOPs of some trials, beyond those of trials that are paid for.

        Of each candidate that is the trunk up to where the longest run leaves it, once, and the end of every run.
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
        """Those of some trials that a budget pays for, the first ones first."""
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
    """Every backbone by every variant of every method, at every budget and from every seed.

    Args:
        backbones: paths or ids.
        methods: with the options to try.
        cost_of: backbone, method and its options to what it costs; `embedlab flops` knows.
        budgets: FLOPs, the same for all candidates: they compete for compute.
        tokens: in their place, amounts of data that are the same for all.
        seeds: of everything.
        cooldown: as ``Space`` has it.

    Raises:
        ConfigError: if both budgets and tokens are given or none, or ``Space`` refuses them.
    """
    if (budgets is None) == (tokens is None):
        raise ConfigError(
            "Say how much the runs of a search may spend: budgets in FLOPs, or tokens, and not both. The largest is "
            "the one that the answer is for."
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
