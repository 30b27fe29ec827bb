"""The command line: every command, its help and its errors."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
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
from embedlab.callbacks.comparison import ComparisonTable  # noqa: F401  configurations name it without its module
from embedlab.callbacks.embedding_writer import EmbeddingWriter
from embedlab.callbacks.flop_budget import FlopBudget
from embedlab.callbacks.flop_counter import FlopCounter
from embedlab.callbacks.progress import ProgressLines
from embedlab.callbacks.run_config import RunConfig
from embedlab.callbacks.throughput import Throughput
from embedlab.data.datamodule import PairDataModule
from embedlab.errors import ConfigError, EmbedLabError, suggestion
from embedlab.export import export, read_checkpoint
from embedlab.ladder import ensure_rung, pretrain
from embedlab.module import EmbeddingModule

LADDER = "ladder:"


class _ErrorParser(ArgumentParser):
    """Turns a parsing error into one line of what was received, what was expected and what to do."""

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

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What the trainer, the model and the data share is written once."""
        parser.add_argument("--output", type=str, default="runs/fit", help="The run's folder.")
        parser.add_argument("--budget", type=float | None, help="FLOPs to train for, instead of epochs or steps.")
        parser.add_argument(
            "--allow_repeat",
            "--allow-repeat",
            action="store_true",
            help="Let a budget see the data more often than trainer.max_epochs.",
        )
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
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
        if self.subcommand == "predict":
            kwargs["callbacks"].append(EmbeddingWriter())
        return super().instantiate_trainer(**kwargs)


def _train(arguments: Sequence[str]) -> None:
    EmbedLabCLI(
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


COMMANDS: dict[str, tuple[str, Callable[[Sequence[str]], None]]] = {
    "fit": ("train an embedding model", _train),
    "validate": ("evaluate a checkpoint on the validation sets", _train),
    "test": ("evaluate a checkpoint on the test split", _train),
    "predict": ("write the embeddings of a file of texts", _train),
    "export": ("write a checkpoint as a Sentence-Transformers folder", _function(export)),
    "pretrain": ("pre-train a ladder of small language models from raw text", _function(pretrain)),
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
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
