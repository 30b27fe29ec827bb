"""The command `embedlab flops`, which computes the cost of training from configurations alone, without training."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from embedlab.cli.flop_table import print_rows
from embedlab.cli.methods import MethodParser
from embedlab.data.datamodule import PairDataModule
from embedlab.flops.estimate import StepShape, flop_rows
from embedlab.method import FineTuningMethod, registry
from embedlab.pretraining.ladder import LADDER, default_rung_config
from embedlab.training.callbacks.flop_budget import number_of_flops
from embedlab.training.module import EmbeddingModule

MEAN_TOKENS = {"query": 14, "document": 64}
# Options of `embedlab fit` that have no effect on the cost. They are accepted, so that a configuration of fit works.
FIT_ONLY = (
    "seed_everything",
    "output",
    "allow_repeat",
    "accept_changes",
    "checkpoint",
    "record",
    "branch",
    "ckpt_path",
    "weights_only",
)


def flops(arguments: Sequence[str]) -> None:
    """Run `embedlab flops`: print the cost of a configuration, or of each backbone of a suite with each method.

    Args:
        arguments: Name of the command, and the words of the command line after the name.

    Raises:
        EmbedLabError: If an option is invalid, or a backbone or a method cannot be loaded.
    """
    registry.discover()  # so that a configuration can name a method by its class name without a module
    parser = flops_parser(arguments)
    options = parser.parse_args(list(arguments[1:]))
    instances = parser.instantiate(options)
    module: EmbeddingModule = instances.model
    data: PairDataModule = instances.data
    means = {f"{text}_tokens": min(mean, data.max_length) for text, mean in MEAN_TOKENS.items()}
    stated = {name: options[name] for name in means if options[name] is not None}
    shape = StepShape(
        max_length=data.max_length,
        tokens_per_chunk=data.tokens_per_chunk,
        optimizer_states=module.optimizer_config.states,
        precision=str(options.trainer.get("precision") or "32-true"),
        **(means | stated),
    )
    rows = []
    chosen = _methods_of(options.methods, module)
    with tempfile.TemporaryDirectory() as folder:
        for path in options.suite or [module.backbone_config.path]:
            backbone = replace(module.backbone_config, path=_configured(path, Path(folder)))
            rows += [replace(row, backbone=path) for row in flop_rows(backbone, chosen, shape)]
    if options.json:
        print(json.dumps([row.as_dict(shape, options.budget) for row in rows], indent=1))
    else:
        print_rows(rows, module.backbone_config, shape, options.budget)


def flops_parser(arguments: Sequence[str]) -> MethodParser:
    """Return the parser of the command.

    Args:
        arguments: Name of the command and the words of the command line. A single name after ``--methods`` decides
            which class the options ``--model.method.*`` belong to.
    """
    parser = MethodParser(prog="embedlab flops", description="Estimate the cost of training without training.")
    parser.add_argument("--config", action="config", help="Path to a configuration file of `embedlab fit`.")
    parser.add_argument(
        "--suite", nargs="+", metavar="BACKBONE", help="Paths or ids of backbones, instead of model.backbone.path."
    )
    parser.add_argument(
        "--methods", nargs="+", metavar="METHOD", help="Names of methods, or `all`, instead of model.method."
    )
    parser.add_argument(
        "--budget",
        type=number_of_flops,
        help="Budget in FLOPs. The output then states how many pairs and tokens the budget pays for.",
    )
    for text, mean in MEAN_TOKENS.items():
        described = (
            f"Mean number of tokens per {text}. The default is {mean} (as in arXiv:2406.04165), or data.max_length if "
            "that is smaller."
        )
        parser.add_argument(f"--{text}_tokens", type=int, help=described)
    parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")
    parser.add_class_arguments(EmbeddingModule, "model")
    parser.add_class_arguments(PairDataModule, "data")
    parser.link_arguments("model.backbone_config", "data.backbone", apply_on="instantiate")
    method = _only_method(arguments) or "FullFineTuning"
    parser.set_defaults({"model.method": method, "model.backbone.path": f"{LADDER}r0"})
    parser.add_argument(
        "--trainer", type=dict[str, Any], default={}, help=argparse.SUPPRESS
    )  # only trainer.precision has an effect on the cost
    for without_effect in FIT_ONLY:
        parser.add_argument(f"--{without_effect}", type=Any, help=argparse.SUPPRESS)
    return parser


def _only_method(arguments: Sequence[str]) -> str | None:
    """Return the method that `--methods` names if there is exactly one name; otherwise None.

    Options such as `--model.method.rank 4` then belong to this method.
    """
    words = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    words.add_argument("--methods", nargs="+", default=[])
    names: list[str] = words.parse_known_args(list(arguments))[0].methods
    return names[0] if len(names) == 1 and names[0] in registry.discover() else None


def _configured(path: str, folder: Path) -> str:
    """Return the path of a backbone; for a rung of the ladder, write its configuration, which suffices for the cost.

    Args:
        path: Path or id of a backbone, or a rung of the ladder, for example ``ladder:r0``.
        folder: Folder for the configurations of rungs.
    """
    if not path.startswith(LADDER):
        return path
    name = path.removeprefix(LADDER)
    default_rung_config(name).save_pretrained(folder / name)
    return str(folder / name)


def _methods_of(names: Sequence[str] | None, module: EmbeddingModule) -> list[FineTuningMethod]:
    if names is None:
        return [module.method]
    if list(names) == ["all"]:
        names = [name for name, entry in registry.discover().items() if entry.cls is not None]
    classes = [registry.method_class(name) for name in names]
    return [module.method if type(module.method) is cls else cls() for cls in classes]  # keeps its options
