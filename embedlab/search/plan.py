"""What a search is told to do, and what of it may not change while it is under way."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from embedlab.errors import ConfigError, RecordError, plain_text
from embedlab.records.nested import flattened, has, remove
from embedlab.records.stored import read_bytes
from embedlab.scaling.recipe_config import ONLY_AT_THE_END
from embedlab.search.calibration import Calibration
from embedlab.search.space import MethodGrid

# What the search itself says to `embedlab fit`.
_OF_THE_SEARCH = (
    "output",
    "budget",
    "ckpt_path",
    "seed_everything",
    "model.backbone.path",
    "model.method",
    "model.optimizer.learning_rate",
    "trainer.max_steps",
)


_HOW_OFTEN = {"check_val_every_n_epoch": None, "val_check_interval": ONLY_AT_THE_END}
_DECAY, _WARMUP = 0.2, 0.1  # of WarmupStableDecay, where none is given


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """What is trained, and for how much.

    Args:
        suite: backbones, paths or ids.
        methods: names of fine-tuning methods, or each with the values to try of its options.
        budgets: FLOPs of a run; the largest is the one that the answer is for.
        fit: what all runs have in common: a configuration of `embedlab fit`, or the path of one. They are evaluated
            at their end alone, unless its trainer says how often.
        seeds: each combination is trained from every one of them.
        total_flops: of all trials, by default what the whole grid costs; a policy decides what they are spent on.
        min_steps: a budget that pays a combination for fewer steps is left out for it.
        calibration: of learning rates; those of a method that names its own are taken as they are.
        keep_checkpoints: keep the checkpoints of finished trials.
        share_trunk: let each run go on from where the run of the next smaller budget began to decay, so that what runs
            have in common is trained once; needs fit's model.schedule to be WarmupStableDecay.
    """

    suite: Sequence[str]
    methods: Sequence[str | MethodGrid]
    budgets: Sequence[float]
    fit: dict[str, Any] | str
    seeds: Sequence[int] = (0,)
    total_flops: float | None = None
    min_steps: int = 10
    calibration: Calibration = field(default_factory=Calibration)
    keep_checkpoints: bool = True
    share_trunk: bool = False

    def __post_init__(self) -> None:
        examples = {"methods": "[FullFineTuning, LoRA]", "budgets": "[1e12, 4e12, 1.6e13]", "seeds": "[0, 1]"}
        for name, example in examples.items():
            values = getattr(self, name)
            if not values or len(set(map(str, values))) < len(values):
                raise ConfigError(f"{name} is {list(values)}. Expected at least one, each once, like {example}.")
        if len(set(self.suite)) < max(2, len(self.suite)):
            raise ConfigError(
                f"suite is {list(self.suite)}. A search chooses between sizes, so it needs two backbones or more, each "
                "named once. `embedlab fit` trains a single one."
            )
        amounts = [("budgets", budget) for budget in self.budgets]
        amounts += [("total_flops", self.total_flops)] if self.total_flops is not None else []
        for name, amount in amounts:
            if not (math.isfinite(amount) and amount > 0):
                raise ConfigError(f"{name} holds {amount}. Expected finite numbers of FLOPs above 0.")
        trained = [
            (grid.method, json.dumps(one, sort_keys=True, default=str))
            for grid in self.grids
            for one in grid.variants()
        ]
        for method, options in trained:
            if trained.count((method, options)) > 1:
                raise ConfigError(f"methods has {method} with the options {options} more than once. Name each once.")
        if self.min_steps < 1:
            raise ConfigError(f"min_steps must be at least 1, got {self.min_steps}.")

    @property
    def grids(self) -> list[MethodGrid]:
        """The methods, those without options too."""
        return [MethodGrid(method=one) if isinstance(one, str) else one for one in self.methods]

    def fit_config(self) -> dict[str, Any]:
        """The configuration that all runs have in common.

        Raises:
            ConfigError: if it cannot be read, or says what the search is to say.
        """
        config: Any = self.fit
        if isinstance(self.fit, str):
            try:
                config = yaml.safe_load(read_bytes(Path(self.fit)).decode())
            except (RecordError, ValueError, RecursionError, yaml.YAMLError) as error:
                reason = plain_text(error, longest=500)
                raise ConfigError(
                    f"fit: {plain_text(self.fit)} cannot be read as a configuration: {reason.rstrip('.')}."
                ) from error
        if not isinstance(config, dict):
            raise ConfigError(
                f"fit is {plain_text(repr(config))}. Expected a configuration of `embedlab fit`, or the path of one."
            )
        both = [name for name in _OF_THE_SEARCH if has(config, name)]
        if both and not isinstance(self.fit, str):
            raise ConfigError(
                f"fit says {', '.join(both)}, which the search decides for each run. Leave it out: suite, methods, "
                "budgets, seeds and calibration stand for it."
            )
        common: dict[str, Any] = config
        for name in both:
            remove(common, name)
        trainer = common.get("trainer") or {}
        if isinstance(trainer, dict):  # a law needs no losses on the way
            how_often = _HOW_OFTEN if _HOW_OFTEN.keys().isdisjoint(trainer) else {}
            common = common | {"trainer": {"num_sanity_val_steps": 0} | trainer | how_often}
        return common

    def cooldown(self) -> float:
        """The share of each run that it has in common with no other one of its combination.

        Raises:
            ConfigError: if a trunk is to be shared under a schedule that has none, or that is not through with its
                warm-up where the next smaller run has begun to decay.
        """
        if not self.share_trunk:
            return 1.0
        schedule = (self.fit_config().get("model") or {}).get("schedule")
        arguments = schedule.get("init_args") or {} if isinstance(schedule, dict) else {}
        name = schedule.get("class_path") if isinstance(schedule, dict) else schedule
        if str(name).rpartition(".")[2] != "WarmupStableDecay":
            raise ConfigError(
                f"share_trunk needs a schedule with a constant rate before its decay, and fit's model.schedule is "
                f"{name}. Set it to WarmupStableDecay, or share_trunk to false."
            )
        decay, warmup = float(arguments.get("decay", _DECAY)), float(arguments.get("warmup", _WARMUP))
        if not 0 < decay < 1:
            raise ConfigError(f"share_trunk needs a decay between 0 and 1, and fit's model.schedule has {decay:g}.")
        for smaller, larger in pairwise(sorted(self.budgets)):
            if warmup * larger > (1 - decay) * smaller:
                raise ConfigError(
                    f"A run of {larger:g} FLOPs warms up over {warmup * larger:.4g} (model.schedule.warmup is "
                    f"{warmup:g}), and is to branch off that of {smaller:g}, which decays from "
                    f"{(1 - decay) * smaller:.4g} on. Lower warmup to {(1 - decay) * smaller / larger:.2g} or less, or "
                    "put a budget in between."
                )
        return decay

    def fixed(self, policy: Mapping[str, Any]) -> dict[str, Any]:
        """What may not change while a search is under way, by dotted names.

        Args:
            policy: as it is configured.
        """
        values = asdict(self) | {"fit": self.fit_config(), "methods": [asdict(grid) for grid in self.grids]}
        values["policy"] = policy
        del values["keep_checkpoints"]
        fixed: dict[str, Any] = json.loads(json.dumps(flattened(values, keep_empty=True), default=str))
        return fixed


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two plans, a line each."""
    names = sorted(before.keys() | now.keys())
    absent = "nothing"
    return [
        f"{plain_text(name)}: {plain_text(before.get(name, absent))} became {plain_text(now.get(name, absent))}"
        for name in names
        if before.get(name, absent) != now.get(name, absent)
    ]
