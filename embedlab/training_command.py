"""fit, validate, test and predict: the trainer, the model and the data of one configuration."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger

from embedlab import registry
from embedlab.callbacks.branch_points import BranchPoints
from embedlab.callbacks.checkpoint import RunCheckpoint
from embedlab.callbacks.closing import ClosingLines
from embedlab.callbacks.comparison import ComparisonTable  # noqa: F401  configurations name it without its module
from embedlab.callbacks.embedding_writer import EmbeddingWriter
from embedlab.callbacks.few_steps import FewSteps  # noqa: F401  a search's probes name it
from embedlab.callbacks.flop_budget import FlopBudget, number_of_flops
from embedlab.callbacks.flop_counter import FlopCounter
from embedlab.callbacks.progress import ProgressLines
from embedlab.callbacks.run_config import RunConfig
from embedlab.callbacks.run_record import RunRecorder
from embedlab.callbacks.throughput import Throughput
from embedlab.config_file import Node, Scalar
from embedlab.data.datamodule import PairDataModule
from embedlab.errors import ConfigError, Preparation, in_one_line
from embedlab.export import read_checkpoint
from embedlab.ladder import LADDER, ensure_rung
from embedlab.methods_command import MethodParser
from embedlab.module import EmbeddingModule
from embedlab.trainer_options import refuse_trainer_option


class _TrainingParser(MethodParser, LightningArgumentParser):
    """The parser of the commands that run a Lightning trainer."""

    def add_class_arguments(self, *args: Any, **kwargs: Any) -> list[str]:
        """Adds the options of a class, of which none opens a file: the path of data is never a configuration."""
        added: list[str] = super().add_class_arguments(*args, **kwargs | {"sub_configs": False})
        return added

    def noticed(self, name: str, node: Node) -> None:
        """Refuses what a trainer takes and embedlab does elsewhere, or what would be refused late."""
        if isinstance(node, Scalar):
            refuse_trainer_option(name, node)


class _HasBegun(Callback):
    """Knows whether the first step of work began: what goes wrong before it is a matter of the configuration."""

    def __init__(self, preparation: Preparation) -> None:
        self._preparation = preparation

    def on_train_batch_start(self, *_: Any, **__: Any) -> None:
        """A step of training begins."""
        self._preparation.is_over = True

    def on_validation_batch_start(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """A step of validation begins: work, unless training is to follow."""
        self._preparation.is_over |= not trainer.sanity_checking

    def on_test_batch_start(self, *_: Any, **__: Any) -> None:
        """A step of testing begins."""
        self._preparation.is_over = True

    def on_predict_batch_start(self, *_: Any, **__: Any) -> None:
        """A step of prediction begins."""
        self._preparation.is_over = True


class EmbedLabCLI(LightningCLI):
    """fit, validate, test and predict."""

    command = "fit"
    preparation: Preparation
    _goes_on_if_it_can = False  # --ckpt_path auto: from a run that was killed before its first checkpoint, anew

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
        parser.add_lightning_class_args(BranchPoints, "branch")  # after the recorder: it saves what that has counted
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
        self._goes_on_if_it_can = config.get("ckpt_path") == "auto"
        origin = config.get("branch.origin")
        if self._goes_on_if_it_can:
            config.ckpt_path = str(last) if last.is_file() else origin
        elif origin is not None:
            raise ConfigError("branch.origin is where a run begins that has no checkpoint: add --ckpt_path auto.")
        elif config.get("ckpt_path") == "last":
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
        begins_anew = config.get("ckpt_path") is None and not self._goes_on_if_it_can
        if self.subcommand == "fit" and begins_anew and (output / "config.yaml").exists():
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
        kwargs["callbacks"] += [ClosingLines(), _HasBegun(self.preparation)]
        if self.subcommand == "predict":
            kwargs["callbacks"].append(EmbeddingWriter())
        try:
            return super().instantiate_trainer(**kwargs)
        except Exception as error:
            raise in_one_line(error, _option_in(str(error), config.trainer)) from error


def _option_in(message: str, options: Namespace) -> str:
    """The trainer's option that a message of Lightning is about, if it names one that is set, or its value."""
    given = {name: value for name, value in options.items() if isinstance(value, str | int | float) and value != "auto"}
    named = [name for name in given if re.search(rf"\b{name}\b", message)]
    named += [name for name, value in given.items() if isinstance(value, str) and value and value in message]
    return f"trainer.{named[0]}" if named else "trainer"


def train(arguments: Sequence[str]) -> None:
    """Runs a trainer's command, which the first argument names.

    Raises:
        EmbedLabError: What the user can mend, and whatever else goes wrong before the first step.
    """
    with Preparation() as preparation:
        registry.discover()  # so that a configuration can name a method by its class alone
        _train(arguments, preparation)


def _train(arguments: Sequence[str], begins: Preparation) -> None:
    class OneCommand(EmbedLabCLI):
        command = arguments[0]
        preparation = begins

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
