"""`embedlab flops`: what training costs, from configurations alone."""

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
# What a configuration of fit holds and no cost depends on.
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
    """What training costs: a configuration of ``fit``, or each backbone of a suite under each of some methods."""
    registry.discover()  # so that a configuration can name a method by its class alone
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
    """Return the parser of the command; its arguments say which class has the options of ``model.method``."""
    parser = MethodParser(prog="embedlab flops", description="Shows what training costs, without training.")
    parser.add_argument("--config", action="config", help="A configuration as `embedlab fit` takes it.")
    parser.add_argument("--suite", nargs="+", metavar="BACKBONE", help="Several in place of model.backbone.path.")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="Names, or `all`, in place of model.method.")
    parser.add_argument("--budget", type=number_of_flops, help="FLOPs, to see how many pairs and tokens they buy.")
    for text, mean in MEAN_TOKENS.items():
        described = f"Of a mean {text}; by default {mean} (as in arXiv:2406.04165), or data.max_length if that is less."
        parser.add_argument(f"--{text}_tokens", type=int, help=described)
    parser.add_argument("--json", action="store_true", help="Print JSON in place of a table.")
    parser.add_class_arguments(EmbeddingModule, "model")
    parser.add_class_arguments(PairDataModule, "data")
    parser.link_arguments("model.backbone_config", "data.backbone", apply_on="instantiate")
    method = _only_method(arguments) or "FullFineTuning"
    parser.set_defaults({"model.method": method, "model.backbone.path": f"{LADDER}r0"})
    parser.add_argument(
        "--trainer", type=dict[str, Any], default={}, help=argparse.SUPPRESS
    )  # of which precision alone counts
    for without_effect in FIT_ONLY:
        parser.add_argument(f"--{without_effect}", type=Any, help=argparse.SUPPRESS)
    return parser


def _only_method(arguments: Sequence[str]) -> str | None:
    """The method that `--methods` names where it names one, so that `--model.method.rank 4` is an option of it."""
    words = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    words.add_argument("--methods", nargs="+", default=[])
    names: list[str] = words.parse_known_args(list(arguments))[0].methods
    return names[0] if len(names) == 1 and names[0] in registry.discover() else None


def _configured(path: str, folder: Path) -> str:
    """A rung of the ladder need not be trained to know what it costs."""
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
    return [module.method if type(module.method) is cls else cls() for cls in classes]  # the configured has options
