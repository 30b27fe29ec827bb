"""The command line: every command, its help and its errors."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import tempfile
import warnings
from argparse import SUPPRESS
from collections.abc import Callable, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from rich.table import Table
from rich.text import Text

from embedlab import registry
from embedlab.callbacks.checkpoint import RunCheckpoint
from embedlab.callbacks.closing import ClosingLines
from embedlab.callbacks.comparison import ComparisonTable  # noqa: F401  configurations name it without its module
from embedlab.callbacks.embedding_writer import EmbeddingWriter
from embedlab.callbacks.flop_budget import FlopBudget, number_of_flops
from embedlab.callbacks.flop_counter import FlopCounter
from embedlab.callbacks.progress import ProgressLines
from embedlab.callbacks.run_config import RunConfig
from embedlab.callbacks.run_record import RunRecorder
from embedlab.callbacks.throughput import Throughput
from embedlab.data.datamodule import PairDataModule
from embedlab.errors import ConfigError, EmbedLabError, suggestion
from embedlab.export import export, read_checkpoint
from embedlab.flop_rows import Shape, flop_rows
from embedlab.flop_table import print_rows
from embedlab.ladder import default_rung_config, ensure_rung, pretrain
from embedlab.method import FineTuningMethod
from embedlab.module import EmbeddingModule
from embedlab.search.commands import recipe_command
from embedlab.search.report_command import report_command
from embedlab.search.runs_command import runs_command

LADDER = "ladder:"
MEAN_TOKENS = {"query": 14, "document": 64}
# What a configuration of fit holds and no cost depends on.
FIT_ONLY = ("seed_everything", "output", "allow_repeat", "checkpoint", "record", "ckpt_path", "weights_only")


class _ErrorParser(ArgumentParser):
    """Turns a parsing error into one line of what was received, what was expected and what to do."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # argparse takes a negative number with an exponent for an option.
        self._negative_number_matcher = re.compile(r"^-\d*\.?\d+([eE][+-]?\d+)?$")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises ConfigError in place of printing a page of usage."""
        cause: BaseException | None = ex
        while cause is not None:
            if isinstance(cause, EmbedLabError):
                raise cause
            cause = cause.__cause__ or cause.__context__
        raise ConfigError(_readable(message)) from ex


class _TrainingParser(_ErrorParser, LightningArgumentParser):
    """The parser of the commands that run a Lightning trainer."""


def _readable(message: str) -> str:
    """Adds to a parser's message about a method what it leaves out: those that are registered, and the nearest."""
    if "FineTuningMethod" not in message and "model.method" not in message:
        return message.strip()
    names = list(registry.discover())
    words = re.findall(r"\w+", message)
    received = max(words, key=lambda word: max(_similarity(word, name) for name in names))
    if received in names:
        registry.method_class(received)  # says why a broken one cannot be used
    return f"{message.strip()}\nRegistered methods: {', '.join(names)}.{suggestion(received, names)}"


def _similarity(left: str, right: str) -> float:
    return SequenceMatcher(None, left.lower(), right.lower()).ratio()


class EmbedLabCLI(LightningCLI):
    """fit, validate, test and predict."""

    command = "fit"

    @classmethod
    def subcommands(cls) -> dict[str, set[str]]:
        """The one that is asked for: making the parser of another takes a quarter of a second."""
        return {cls.command: LightningCLI.subcommands()[cls.command]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What the trainer, the model and the data share is written once."""
        parser.add_argument("--output", type=str, default="runs/fit", help="The run's folder.")
        parser.add_argument("--budget", type=number_of_flops, help="FLOPs to train for, instead of epochs or steps.")
        parser.add_argument(
            "--allow_repeat",
            "--allow-repeat",
            type=bool,
            nargs="?",
            const=True,
            default=False,
            help="Let a budget see the data more often than trainer.max_epochs.",
        )
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.add_lightning_class_args(RunRecorder, "record")
        parser.link_arguments("output", "trainer.default_root_dir")
        parser.link_arguments("model.backbone_config", "data.backbone", apply_on="instantiate")
        parser.link_arguments("seed_everything", "model.seed", compute_fn=int)
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        parser.set_defaults({"model.method": "FullFineTuning"})

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Finds the checkpoint to go on from, and refuses what is none."""
        super().parse_arguments(parser, args)
        config = self.config[self.config.subcommand]
        last = Path(config.output) / "checkpoints" / "last.ckpt"
        if config.get("ckpt_path") == "last":
            if not last.is_file():
                raise ConfigError(f"--ckpt_path last: there is no {last}. Give the run's folder with --output.")
            config.ckpt_path = str(last)
        if config.get("ckpt_path") is not None:
            read_checkpoint(Path(config.ckpt_path))

    def before_instantiate_classes(self) -> None:
        """Refuses to write over another run, bounds the run, and makes the ladder's rung."""
        config = self.config[self.subcommand]
        output = Path(config.output)
        trainer = config.trainer
        if trainer.max_epochs is None:
            trainer.max_epochs = 1 if trainer.max_steps == -1 else -1  # steps alone may take any number of epochs
        if self.subcommand == "fit" and config.get("ckpt_path") is None and (output / "config.yaml").exists():
            raise ConfigError(
                f"The output folder {output} holds a run already. Go on with it by --ckpt_path last, or choose "
                "another with --output."
            )
        path = config.model.backbone.path
        if path.startswith(LADDER):
            config.model.backbone.path = str(ensure_rung(path.removeprefix(LADDER)))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A trainer that logs to TensorBoard in the run's folder unless the user names another logger."""
        config = self.config_init[self.subcommand]
        if config.trainer.logger in (None, True):
            kwargs["logger"] = TensorBoardLogger(config.output, name="", version="", default_hp_metric=False)
        callbacks = config.trainer.callbacks or []
        kwargs["callbacks"] = [*(callbacks if isinstance(callbacks, list) else [callbacks]), Throughput()]
        if not any(isinstance(callback, FlopCounter) for callback in kwargs["callbacks"]):
            kwargs["callbacks"].append(FlopCounter())
        if config.budget is not None:
            kwargs["callbacks"].append(FlopBudget(config.budget, allow_repeat=config.allow_repeat))
        own_bar = any(isinstance(callback, ProgressBar) for callback in kwargs["callbacks"])
        if config.trainer.enable_progress_bar is not False and not own_bar:
            kwargs["callbacks"].append(RichProgressBar() if sys.stdout.isatty() else ProgressLines())
        kwargs["callbacks"].append(ClosingLines())
        if self.subcommand == "predict":
            kwargs["callbacks"].append(EmbeddingWriter())
        return super().instantiate_trainer(**kwargs)


def _train(arguments: Sequence[str]) -> None:
    class OneCommand(EmbedLabCLI):
        command = arguments[0]

    OneCommand(
        EmbeddingModule,
        PairDataModule,
        args=list(arguments),
        parser_class=_TrainingParser,
        seed_everything_default=0,
        save_config_callback=RunConfig,
        save_config_kwargs={"overwrite": True},
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        trainer_defaults={
            "num_sanity_val_steps": -1,  # the evaluation before training
            "log_every_n_steps": 10,
            "enable_model_summary": False,
            "use_distributed_sampler": False,  # batches are cut for each rank already
        },
    )


def methods() -> None:
    """Lists the registered fine-tuning methods, where they come from and their options."""
    table = Table("method", "from", "options", "what it does", show_lines=True)
    for row in registry.rows():
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def _flops(arguments: Sequence[str]) -> None:
    """What training costs: a configuration of ``fit``, or each backbone of a suite under each of some methods."""
    parser = _ErrorParser(prog="embedlab flops", description="Shows what training costs, without training.")
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
    parser.set_defaults({"model.method": "FullFineTuning", "model.backbone.path": f"{LADDER}r0"})
    parser.add_argument("--trainer", type=dict[str, Any], default={}, help=SUPPRESS)  # of which precision alone counts
    for without_effect in FIT_ONLY:
        parser.add_argument(f"--{without_effect}", type=Any, help=SUPPRESS)
    options = parser.parse_args(list(arguments[1:]))
    instances = parser.instantiate(options)
    module: EmbeddingModule = instances.model
    data: PairDataModule = instances.data
    means = {f"{text}_tokens": min(mean, data.max_length) for text, mean in MEAN_TOKENS.items()}
    stated = {name: options[name] for name in means if options[name] is not None}
    shape = Shape(
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


def _function(command: Callable[..., None]) -> Callable[[Sequence[str]], None]:
    """A command from a function: its signature and docstring are the schema and the help."""

    def run(arguments: Sequence[str]) -> None:
        parser = _ErrorParser(prog=f"embedlab {arguments[0]}")
        parser.add_argument("--config", action="config", help="Path to a configuration file.")
        parser.add_function_arguments(command)
        options: Namespace = parser.parse_args(list(arguments[1:]))
        options.pop("config", None)
        command(**parser.instantiate(options).as_dict())

    return run


def _planning(command: Callable[[ArgumentParser, Sequence[str]], None]) -> Callable[[Sequence[str]], None]:
    """A command of ``embedlab.search``, with this parser's errors."""

    def run(arguments: Sequence[str]) -> None:
        command(_ErrorParser(prog=f"embedlab {arguments[0]}"), [_underscored(word) for word in arguments[1:]])

    return run


def _underscored(word: str) -> str:
    """`--max-memory` is `--max_memory`."""
    name, equals, value = word.partition("=")
    return (f"--{name[2:].replace('-', '_')}" if name.startswith("--") else name) + equals + value


COMMANDS: dict[str, tuple[str, Callable[[Sequence[str]], None]]] = {
    "fit": ("train an embedding model", _train),
    "validate": ("evaluate a checkpoint on the validation sets", _train),
    "test": ("evaluate a checkpoint on the test split", _train),
    "predict": ("write the embeddings of a file of texts", _train),
    "export": ("write a checkpoint as a Sentence-Transformers folder", _function(export)),
    "pretrain": ("pre-train a ladder of small language models from raw text", _function(pretrain)),
    "flops": ("show what training costs, without training", _flops),
    "runs": ("list, show or export what has been run", _planning(runs_command)),
    "recipe": ("say what to train with a budget, from finished runs", _planning(recipe_command)),
    "report": ("show what finished runs say, as a page to look at", _planning(report_command)),
    "methods": ("list the registered fine-tuning methods", _function(methods)),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command; errors that the user can mend end with exit status 2 and no traceback."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: embedlab COMMAND [--config FILE] [OPTIONS]\n\ncommands:")
        for name, (summary, _) in COMMANDS.items():
            print(f"  {name:<10}{summary}")
        print("\n`embedlab COMMAND --help` lists a command's options.")
        return
    _quiet()
    try:
        if arguments[0] not in COMMANDS:
            raise ConfigError(
                f"Unknown command '{arguments[0]}'. Commands: {', '.join(COMMANDS)}."
                + suggestion(arguments[0], COMMANDS)
            )
        registry.discover()
        COMMANDS[arguments[0]][1](arguments)
    except MisconfigurationException as error:
        print(f"embedlab: ConfigError: {error}", file=sys.stderr)
        sys.exit(2)
    except EmbedLabError as error:
        print(f"embedlab: {type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2)


def _quiet() -> None:
    """Keeps what users cannot act on off the screen."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*treespec.*")
    warnings.filterwarnings("ignore", message=".*args parameter is intended.*")  # main has split off the command
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*")  # metrics are computed over all ranks' texts
    warnings.filterwarnings("ignore", message=".*Total length of `list` across ranks is zero.*")  # without validation
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
