"""fit, validate, test and predict: the trainer, the model and the data of one configuration."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from embedlab.cli.config_file import Node, Scalar
from embedlab.cli.methods import MethodParser
from embedlab.cli.trainer_options import refuse_trainer_option
from embedlab.data.datamodule import PairDataModule
from embedlab.errors import ConfigError, Preparation, in_one_line
from embedlab.files import locked_folder, remove_unfinished
from embedlab.method import registry
from embedlab.pretraining.ladder import LADDER, ensure_rung
from embedlab.records import FILE as RECORD
from embedlab.training.callbacks.branch_points import BranchPoints
from embedlab.training.callbacks.checkpoint import RunCheckpoint
from embedlab.training.callbacks.closing import ClosingLines
from embedlab.training.callbacks.comparison import ComparisonTable  # noqa: F401  configurations name it without its module
from embedlab.training.callbacks.embedding_writer import UNTRAINED, EmbeddingWriter
from embedlab.training.callbacks.few_steps import FewSteps  # noqa: F401  a search's probes name it
from embedlab.training.callbacks.flop_budget import FlopBudget, number_of_flops
from embedlab.training.callbacks.flop_counter import FlopCounter
from embedlab.training.callbacks.owed_evaluation import OwedEvaluation
from embedlab.training.callbacks.progress import ProgressLines
from embedlab.training.callbacks.run_config import RunConfig
from embedlab.training.callbacks.run_log import RunLog, RunLogger
from embedlab.training.callbacks.run_record import RunRecorder
from embedlab.training.callbacks.same_run import SameRun
from embedlab.training.callbacks.throughput import Throughput
from embedlab.training.checkpoint_file import (
    CHECKPOINTS,
    LAST,
    PREVIOUS,
    WholeCheckpointIO,
    damage,
    newest_first,
    read_checkpoint,
    require_whole,
)
from embedlab.training.module import EmbeddingModule
from embedlab.training.whole_data import refuse_parts_of_data


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
    resources: ExitStack  # what is kept as long as the command runs: the lock of the run's folder
    seconds_to_wait = 0.0  # for another run in the folder to end

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
        parser.add_argument(
            "--accept_changes",
            "--accept-changes",
            type=bool,
            nargs="?",
            const=True,
            default=False,
            help="Go on from a checkpoint with other options or data, as another run of its family.",
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
        """Locks the run's folder, and finds the checkpoint to go on from.

        Raises:
            ConfigError: If the folder holds another run, or one is under way in it.
            DataError: If the checkpoint is damaged, or none of embedlab's.
        """
        super().parse_arguments(parser, args)
        config = self.config[self.config.subcommand]
        output = Path(config.output)
        if self.config.subcommand == "fit" and is_first_process():
            self._take(output, is_new=config.get("ckpt_path") is None)
        config.ckpt_path = _checkpoint(config.get("ckpt_path"), output / CHECKPOINTS, config.get("branch.origin"))
        if config.ckpt_path is None and self.config.subcommand == "predict":
            raise ConfigError(UNTRAINED)
        if config.ckpt_path is not None:
            require_whole(Path(config.ckpt_path))
            read_checkpoint(Path(config.ckpt_path))

    def _take(self, output: Path, *, is_new: bool) -> None:
        """Keeps other processes out of a run's folder, which for a new run must hold no other."""
        if is_new:
            _refuse_another_run(output)
        self.resources.enter_context(locked_folder(output, owner="run", seconds=self.seconds_to_wait))
        remove_unfinished(output)
        remove_unfinished(output / CHECKPOINTS)

    def _parse_ckpt_path(self) -> None:
        """Does nothing: what a checkpoint says of its model never changes what is loaded or run."""

    def before_instantiate_classes(self) -> None:
        """Bounds the run, and makes the ladder's rung."""
        config = self.config[self.subcommand]
        trainer = config.trainer
        if trainer.max_epochs is None:
            trainer.max_epochs = 1 if trainer.max_steps == -1 else -1  # steps alone may take any number of epochs
        _refuse_many_processes(trainer.devices)
        path = config.model.backbone.path
        if path.startswith(LADDER):
            config.model.backbone.path = str(ensure_rung(path.removeprefix(LADDER)))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A trainer that logs to TensorBoard in the run's folder unless the user names another logger."""
        config = self.config_init[self.subcommand]
        if config.trainer.logger in (None, True):
            kwargs["logger"] = RunLogger(Path(config.output))
        callbacks = config.trainer.callbacks or []
        kwargs["callbacks"] = [
            SameRun(accept_changes=config.accept_changes),
            *(callbacks if isinstance(callbacks, list) else [callbacks]),
            Throughput(),
        ]
        if not any(isinstance(callback, FlopCounter) for callback in kwargs["callbacks"]):
            kwargs["callbacks"].append(FlopCounter())
        if config.budget is not None:
            kwargs["callbacks"].append(FlopBudget(config.budget, allow_repeat=config.allow_repeat))
        own_bar = any(isinstance(callback, ProgressBar) for callback in kwargs["callbacks"])
        if config.trainer.enable_progress_bar is not False and not own_bar:
            kwargs["callbacks"].append(RichProgressBar() if sys.stdout.isatty() else ProgressLines())
        kwargs["callbacks"] += [RunLog(), OwedEvaluation(), ClosingLines(), _HasBegun(self.preparation)]
        if self.subcommand == "predict":
            kwargs["callbacks"].append(EmbeddingWriter())
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except Exception as error:
            raise in_one_line(error, _option_in(str(error), config.trainer)) from error
        refuse_parts_of_data(trainer)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # the user has named no other
            trainer.strategy.checkpoint_io = WholeCheckpointIO()
        return trainer


def _option_in(message: str, options: Namespace) -> str:
    """The trainer's option that a message of Lightning names first, or whose value it names, of those that are set."""
    given = {name: value for name, value in options.items() if isinstance(value, str | int | float) and value != "auto"}
    found = {name: re.search(rf"\b{name}\b", message) for name in given}
    named = {name: match.start() for name, match in found.items() if match}
    if not named:
        values = {name: value for name, value in given.items() if isinstance(value, str) and value in message and value}
        named = {name: message.index(value) for name, value in values.items()}
    return f"trainer.{min(named, key=named.__getitem__)}" if named else "trainer"


def _refuse_many_processes(devices: object) -> None:
    """Refuses more processes than a machine without GPUs can hold; of GPUs Lightning knows the number."""
    most = _PROCESSES_PER_CORE * (os.cpu_count() or 1)
    if isinstance(devices, str) and devices.isdigit():
        devices = int(devices)
    if isinstance(devices, int) and devices > most and not torch.cuda.is_available():
        raise ConfigError(
            f"trainer.devices is {devices}, which on CPUs is the number of processes. This machine has "
            f"{os.cpu_count()} cores: set it to {most} or less."
        )


_PROCESSES_PER_CORE = 4  # to try out what several ranks do


def is_first_process() -> bool:
    """Whether this process is the first of a run's ranks, on the first of its machines."""
    return not any(int(os.environ.get(name) or 0) for name in _RANKS)


_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")


def _checkpoint(wanted: str | None, folder: Path, origin: str | None) -> str | None:
    """The checkpoint to go on from; None to begin anew.

    Args:
        wanted: A path; ``last`` for the run's own; ``auto`` for the run's own that is whole, else ``origin``.
        folder: The run's folder of checkpoints.
        origin: Branch point from which a run without a checkpoint begins.
    """
    last = folder / LAST
    if wanted == "auto":
        for path in (last, folder / PREVIOUS):
            if not path.is_file():
                continue
            found = damage(path)
            if found is None:
                return str(path)
            print(f"The checkpoint {path} is damaged: {found}. It is left as it is.", file=sys.stderr)
        if last.is_file():
            require_whole(last)  # says what there is to go on from
        return origin
    if origin is not None:
        raise ConfigError("branch.origin is where a run begins that has no checkpoint: add --ckpt_path auto.")
    if wanted in ("last", "best"):
        path = folder / f"{wanted}.ckpt"
        if not path.is_file():
            raise ConfigError(
                f"--ckpt_path {wanted}: there is no {path}. Give the run's folder with --output, or use --ckpt_path "
                "auto, which begins a run that has no checkpoint yet."
            )
        return str(path)
    return wanted


def _refuse_another_run(output: Path) -> None:
    """Refuses to begin in a folder with results; one that was killed before its first checkpoint has none."""
    results = [*newest_first(output / CHECKPOINTS), *(path for path in (output / RECORD,) if path.exists())]
    if results:
        raise ConfigError(
            f"The output folder {output} holds a run already: {results[0].name}. Go on with it by --ckpt_path auto, or "
            "choose another with --output."
        )


def train(arguments: Sequence[str], *, seconds_to_wait: float = 0.0) -> None:
    """Runs a trainer's command, which the first argument names.

    Args:
        arguments: The command and its options.
        seconds_to_wait: How long to wait for another run in the folder to end before it is an error.

    Raises:
        EmbedLabError: What the user can mend, and whatever else goes wrong before the first step.
    """
    with Preparation() as preparation, ExitStack() as resources:
        registry.discover()  # so that a configuration can name a method by its class alone
        _train(arguments, preparation, resources, seconds_to_wait)


def _train(arguments: Sequence[str], begins: Preparation, kept: ExitStack, seconds: float) -> None:
    class OneCommand(EmbedLabCLI):
        command = arguments[0]
        preparation = begins
        resources = kept
        seconds_to_wait = seconds

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
