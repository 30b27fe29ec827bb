"""Converts a recipe into a configuration that `embedlab fit` runs without changes, so that the user writes none.

The configuration starts from the configuration of the run that is most similar to the recommendation.
"""

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

_SPARE = 1.1  # maximum number of epochs, as a multiple of the expected number
_MOST_NAMES = 20  # options left out that a message names


@dataclass(frozen=True)
class RecipeConfig:
    """The content of a recipe file.

    Attributes:
        text: YAML of the best configuration, with comments that state the predicted loss and the source.
        left_out: Sentences for the user that name the options of the run that the recipe leaves out; None if no option
            is left out.
    """

    text: str
    left_out: str | None


def recipe_config(answer: Recipe, laws: Sequence[MethodLaw], loss: str = "loss") -> RecipeConfig:
    """Return the file content for the best configuration of a recipe.

    The options come from the run of the method that is nearest in backbone, size and learning rate. This run may be
    somebody else's, so only options that cannot run code are copied. All other options are left out, and
    ``RecipeConfig.left_out`` names them.

    Args:
        answer: Recipe for one budget.
        laws: Laws that the recipe was computed from.
        loss: What the predicted loss is, in words, for example ``1 - validation/arxiv/ndcg@10``.

    Raises:
        ConfigError: If a run to copy options from comes from a table, which holds no configurations.
        RecordError: If the configuration of a run cannot be read.
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
    if config["trainer"].get("val_check_interval") == ONLY_AT_THE_END:  # a search sets this to save time
        config["trainer"] |= {"check_val_every_n_epoch": 1, "val_check_interval": None}
    config |= {"budget": float(best.flops), "output": f"runs/{name}"}
    low, high = best.interval_80
    head = [
        f"embedlab fit --config {name}.yaml",
        "",
        f"{best.method} of {best.backbone} for {best.flops:g} FLOPs, {best.tokens:.3g} tokens.",
        f"Predicted {loss}: {best.loss:.4g} (80 % interval: {low:.4g} to {high:.4g}).",
        f"The options come from the configuration of the run in {source.folder}.",
    ]
    line = _line(left_out, Path(str(source.folder))) if left_out else None
    head += ["", line] if line else []
    comments = "".join(f"# {plain_text(one, longest=None)}".rstrip() + "\n" for one in head)
    return RecipeConfig(comments + yaml.safe_dump(config, sort_keys=False), line)


def _line(left_out: Sequence[str], folder: Path) -> str:
    names = ", ".join(left_out[:_MOST_NAMES])
    more = f" and {len(left_out) - _MOST_NAMES} more" if len(left_out) > _MOST_NAMES else ""
    return (
        f"Left out of the recipe, because these options could run code: {names}{more}. Read the options in config.yaml "
        f"of {folder} and the code that they name. If you trust the code, add the options to the recipe yourself."
    )


def _options_of(row: Observation) -> tuple[dict[str, Any], list[str]]:
    if row.folder is None:
        raise ConfigError(
            "A recipe from a table of runs cannot be written as a configuration, because only runs of `embedlab fit` "
            "save their options. Leave out --output."
        )
    return options_of_run(Path(row.folder))
