"""A recipe as a configuration that `embedlab fit` runs as it stands, made from that of the nearest run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from embedlab.errors import ConfigError, plain_text
from embedlab.scaling.method_laws import MethodLaw
from embedlab.scaling.observations import Observation
from embedlab.scaling.recipe import Recipe
from embedlab.scaling.recipe_options import options_of_run

ONLY_AT_THE_END = 10**9
"""``trainer.val_check_interval`` of runs that are evaluated only when they stop."""

_SPARE = 1.1  # epochs that may be seen, by those that are expected
_MOST_NAMES = 20  # of what is left out


@dataclass(frozen=True)
class RecipeConfig:
    """A recipe as a file.

    Attributes:
        text: YAML of the best configuration, with comments that say what to expect.
        left_out: A line for the user about options of the run that no recipe takes over; None if there are none.
    """

    text: str
    left_out: str | None


def recipe_config(answer: Recipe, laws: Sequence[MethodLaw]) -> RecipeConfig:
    """Return the best configuration as a file.

    The run that it is made from may be a stranger's. Only options that decide and run nothing are taken over; whatever
    else the run's configuration says is left out, by name.

    Args:
        answer: The recipe.
        laws: The laws that it was made from.

    Raises:
        ConfigError: If no run of the method left its configuration, or none on the backbone.
        RecordError: If the configuration cannot be read.
    """
    best = answer.best
    law = next(one for one in laws if one.method == best.method)
    everything = [row for one in laws for row in one.observations]

    def farness(row: Observation) -> tuple[bool, float, float]:
        rate = best.learning_rate
        return (
            row.backbone != best.backbone,
            abs(math.log(row.parameters / best.parameters)),
            0.0 if rate is None or row.learning_rate is None else abs(math.log(row.learning_rate / rate)),
        )

    source = min(law.observations, key=farness)
    config, left_out = _options_of(source)
    if source.backbone != best.backbone:
        on_it = next(row for row in everything if row.backbone == best.backbone)
        other, left_out_of_it = _options_of(on_it)
        config["model"]["backbone"] = other["model"]["backbone"]
        left_out += [name for name in left_out_of_it if name.startswith("model.backbone.") and name not in left_out]
    name = f"recipe-{answer.budget:g}"
    epochs = best.epochs or best.tokens / source.unique_tokens
    if best.learning_rate is not None:
        optimizer = config["model"].get("optimizer") or {}
        config["model"]["optimizer"] = optimizer | {"learning_rate": best.learning_rate}
    config["trainer"] = (config.get("trainer") or {}) | {"max_steps": -1, "max_epochs": math.ceil(_SPARE * epochs)}
    if config["trainer"].get("val_check_interval") == ONLY_AT_THE_END:  # which saves a search time
        config["trainer"] |= {"check_val_every_n_epoch": 1, "val_check_interval": None}
    config |= {"budget": float(best.flops), "output": f"runs/{name}"}
    low, high = best.interval_80
    head = [
        f"embedlab fit --config {name}.yaml",
        "",
        f"{best.method} of {best.backbone} for {best.flops:g} FLOPs, {best.tokens:.3g} tokens.",
        f"Predicted loss {best.loss:.4g}, with 80 % probability {low:.4g} to {high:.4g}.",
        f"From the configuration of {source.folder}.",
    ]
    line = _line(left_out, Path(str(source.folder))) if left_out else None
    head += ["", line] if line else []
    comments = "".join(f"# {plain_text(one, longest=None)}".rstrip() + "\n" for one in head)
    return RecipeConfig(comments + yaml.safe_dump(config, sort_keys=False), line)


def _line(left_out: Sequence[str], folder: Path) -> str:
    names = ", ".join(left_out[:_MOST_NAMES])
    more = f" and {len(left_out) - _MOST_NAMES} more" if len(left_out) > _MOST_NAMES else ""
    return (
        f"Left out of the recipe, which holds nothing that can run code: {names}{more}. Read what {folder} says of it "
        "in config.yaml, and the code that it names; if you trust that, write it into the recipe yourself."
    )


def _options_of(row: Observation) -> tuple[dict[str, Any], list[str]]:
    if row.folder is None:
        raise ConfigError(
            "A recipe from somebody else's table is no configuration: only runs of `embedlab fit` leave theirs. Leave "
            "out --output."
        )
    return options_of_run(Path(row.folder))
