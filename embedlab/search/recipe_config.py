"""A recipe as a configuration that `embedlab fit` runs as it stands, made from that of the nearest run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from embedlab.errors import ConfigError
from embedlab.search.method_laws import MethodLaw
from embedlab.search.observations import Observation
from embedlab.search.plan import ONLY_AT_THE_END
from embedlab.search.recipe import Recipe

_SPARE = 1.1  # epochs that may be seen, by those that are expected


def recipe_config(answer: Recipe, laws: Sequence[MethodLaw]) -> str:
    """YAML of the best configuration.

    Args:
        answer: the recipe.
        laws: that it was made from.

    Raises:
        ConfigError: if no run of the method left its configuration, or none on the backbone.
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
    config = _config_of(source)
    if source.backbone != best.backbone:
        on_it = next(row for row in everything if row.backbone == best.backbone)
        config["model"]["backbone"] = _config_of(on_it)["model"]["backbone"]
    name = f"recipe-{answer.budget:g}"
    epochs = best.epochs or best.tokens / source.unique_tokens
    if best.learning_rate is not None:
        optimizer = config["model"].get("optimizer") or {}
        config["model"]["optimizer"] = optimizer | {"learning_rate": best.learning_rate}
    config["trainer"] |= {"max_steps": -1, "max_epochs": math.ceil(_SPARE * epochs)}
    if config["trainer"].get("val_check_interval") == ONLY_AT_THE_END:  # which saves a search time
        config["trainer"] |= {"check_val_every_n_epoch": 1, "val_check_interval": None}
    config |= {"budget": float(best.flops), "output": f"runs/{name}", "ckpt_path": None}
    config.pop("branch", None)  # points of the run's own budget, where it was one of a search that shares trunks
    low, high = best.interval_80
    head = (
        f"embedlab fit --config {name}.yaml",
        "",
        f"{best.method} of {best.backbone} for {best.flops:g} FLOPs, {best.tokens:.3g} tokens.",
        f"Predicted loss {best.loss:.4g}, with 80 % probability {low:.4g} to {high:.4g}.",
        f"From the configuration of {source.folder}.",
    )
    return "".join(f"# {line}".rstrip() + "\n" for line in head) + yaml.safe_dump(config, sort_keys=False)


def _config_of(row: Observation) -> dict[str, Any]:
    if row.folder is None:
        raise ConfigError(
            "A recipe from somebody else's table is no configuration: only runs of `embedlab fit` leave theirs. Leave "
            "out --output."
        )
    path = Path(row.folder) / "config.yaml"
    try:
        config: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"The configuration of run {row.name} cannot be read from {path}: {error}.") from error
    return config
