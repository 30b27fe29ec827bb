"""The plan of a search: what to train, at which budgets, and which settings must not change during the search."""

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

# Options of `embedlab fit` that the search sets for each run.
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
_DECAY, _WARMUP = 0.2, 0.1  # default arguments of WarmupStableDecay


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """Backbones, methods and budgets to search, and the settings of the runs.

    Args:
        suite: Backbones to train, at least two: paths, Hugging Face ids, or rungs of the ladder such as ``ladder:r0``.
        methods: Names of the fine-tuning methods to train with. In place of a name, a method can be given with lists of
            the option values and learning rates to try.
        budgets: Training budgets of single runs in FLOPs. The search looks for the best choice at the largest budget.
        fit: Configuration of `embedlab fit` that all runs share, or the path of a configuration file. Runs are
            evaluated only at their end, unless the trainer section sets how often to evaluate.
        seeds: Random seeds. Each combination of backbone, method and budget is trained once per seed.
        total_flops: Maximum number of FLOPs spent by all trials together, not counting the short runs that find
            learning rates. The policy decides which trials to spend the FLOPs on. By default, there is no limit.
        min_steps: Minimum number of training steps per run. For each combination of backbone and method, budgets that
            pay for fewer steps are left out.
        calibration: How to find the learning rates. Methods that list learning rates in ``methods`` are not calibrated.
        keep_checkpoints: Keep the checkpoints of finished trials.
        share_trunk: Start each run from the step where the run with the next smaller budget began to decay its
            learning rate, so that the common part (the trunk) is trained only once. Needs the schedule
            WarmupStableDecay in ``model.schedule`` of ``fit``.

    Raises:
        ConfigError: If a value is missing, out of range or given twice.
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
                raise ConfigError(f"{name} is {list(values)}. Expected at least one, each once, for example {example}.")
        if len(set(self.suite)) < max(2, len(self.suite)):
            raise ConfigError(
                f"suite is {list(self.suite)}. A search compares model sizes, so it needs at least two backbones, each "
                "named once. To train a single backbone, use `embedlab fit`."
            )
        amounts = [("budgets", budget) for budget in self.budgets]
        amounts += [("total_flops", self.total_flops)] if self.total_flops is not None else []
        for name, amount in amounts:
            if not (math.isfinite(amount) and amount > 0):
                raise ConfigError(f"{name} contains {amount}. Expected finite numbers of FLOPs above 0.")
        trained = [
            (grid.method, json.dumps(one, sort_keys=True, default=str))
            for grid in self.grids
            for one in grid.variants()
        ]
        for method, options in trained:
            if trained.count((method, options)) > 1:
                raise ConfigError(f"methods contains {method} with the options {options} more than once. Name it once.")
        if self.min_steps < 1:
            raise ConfigError(f"min_steps must be at least 1 step, got {self.min_steps}.")

    @property
    def grids(self) -> list[MethodGrid]:
        """Methods with the option values to try. A method that is given by its name alone has no option values."""
        return [MethodGrid(method=one) if isinstance(one, str) else one for one in self.methods]

    def fit_config(self) -> dict[str, Any]:
        """Return the configuration that all runs share.

        Options that the search sets for each run, such as the budget, are dropped if ``fit`` is the path of a file.

        Raises:
            ConfigError: If the configuration cannot be read, or if ``fit`` is not a path and sets an option that the
                search sets.
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
                f"fit is {plain_text(repr(config))}. Expected a configuration of `embedlab fit`, or the path of a "
                "configuration file."
            )
        both = [name for name in _OF_THE_SEARCH if has(config, name)]
        if both and not isinstance(self.fit, str):
            raise ConfigError(
                f"fit sets {', '.join(both)}, but the search sets this for each run. Leave it out and use suite, "
                "methods, budgets, seeds and calibration."
            )
        common: dict[str, Any] = config
        for name in both:
            remove(common, name)
        trainer = common.get("trainer") or {}
        if isinstance(trainer, dict):  # a scaling law needs only the loss at the end of a run
            how_often = _HOW_OFTEN if _HOW_OFTEN.keys().isdisjoint(trainer) else {}
            common = common | {"trainer": {"num_sanity_val_steps": 0} | trainer | how_often}
        return common

    def cooldown(self) -> float:
        """Return the share of each run, at its end, that no other run of the same candidate can reuse.

        Without a shared trunk the share is 1. With a shared trunk it is the share of the run in which the learning rate
        decays.

        Raises:
            ConfigError: If ``share_trunk`` is set, but the schedule is not WarmupStableDecay, its decay is not between
                0 and 1, or the warm-up of a run ends after the run with the next smaller budget begins to decay.
        """
        if not self.share_trunk:
            return 1.0
        schedule = (self.fit_config().get("model") or {}).get("schedule")
        arguments = schedule.get("init_args") or {} if isinstance(schedule, dict) else {}
        name = schedule.get("class_path") if isinstance(schedule, dict) else schedule
        if str(name).rpartition(".")[2] != "WarmupStableDecay":
            raise ConfigError(
                f"share_trunk needs a schedule with a constant learning rate before its decay, but fit's "
                f"model.schedule is {name}. Set model.schedule to WarmupStableDecay, or share_trunk to false."
            )
        decay, warmup = float(arguments.get("decay", _DECAY)), float(arguments.get("warmup", _WARMUP))
        if not 0 < decay < 1:
            raise ConfigError(
                f"share_trunk needs a decay between 0 and 1, but the decay of fit's model.schedule is {decay:g}."
            )
        for smaller, larger in pairwise(sorted(self.budgets)):
            if warmup * larger > (1 - decay) * smaller:
                raise ConfigError(
                    f"A run of {larger:g} FLOPs warms up for {warmup * larger:.4g} FLOPs (model.schedule.warmup is "
                    f"{warmup:g}), but the run of {smaller:g} FLOPs that it branches off begins to decay at "
                    f"{(1 - decay) * smaller:.4g} FLOPs. Lower warmup to at most "
                    f"{(1 - decay) * smaller / larger:.2g}, or add a budget between the two."
                )
        return decay

    def fixed(self, policy: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings that must not change during a search, by dotted name.

        Args:
            policy: Configuration of the policy.
        """
        values = asdict(self) | {"fit": self.fit_config(), "methods": [asdict(grid) for grid in self.grids]}
        values["policy"] = policy
        del values["keep_checkpoints"]
        fixed: dict[str, Any] = json.loads(json.dumps(flattened(values, keep_empty=True), default=str))
        return fixed


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return one line for each setting that differs between two plans."""
    names = sorted(before.keys() | now.keys())
    absent = "(not set)"
    return [
        f"{plain_text(name)}: {plain_text(before.get(name, absent))} became {plain_text(now.get(name, absent))}"
        for name in names
        if before.get(name, absent) != now.get(name, absent)
    ]
