"""The commands fit, validate, test and predict, which create trainer, model and data from a configuration."""

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
from embedlab.pretraining.ladder import LADDER, ensure_rung, name_of_rung
from embedlab.records import FILE as RECORD
from embedlab.training.callbacks.branch_points import BranchPoints
from embedlab.training.callbacks.checkpoint import RunCheckpoint
from embedlab.training.callbacks.closing import ClosingLines
from embedlab.training.callbacks.comparison import ComparisonTable  # noqa: F401  found by name
from embedlab.training.callbacks.embedding_writer import UNTRAINED, EmbeddingWriter
from embedlab.training.callbacks.few_steps import FewSteps  # noqa: F401  found by name, in probes
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

_HELP_INSTEAD_OF_LIGHTNINGS = {
    "seed_everything": "Seed of all random numbers of the run: weights that a method adds, the split and the order of "
    "the data, and dropout. A whole number.",
    "ckpt_path": "Checkpoint to continue from: a path; last or best for this checkpoint of the run in --output; or "
    "auto for the newest whole checkpoint there, and a new run if there is none. By default, a new run begins.",
    "weights_only": "Whether to read checkpoints without running code that they contain. embedlab always does, so "
    "there is no need to set it.",
}


class _TrainingParser(MethodParser, LightningArgumentParser):
    """The parser of the commands that run a Lightning trainer."""

    def add_class_arguments(self, *args: Any, **kwargs: Any) -> list[str]:
        """Add the options of a class. No option reads a configuration file, because paths of data look the same."""
        added: list[str] = super().add_class_arguments(*args, **kwargs | {"sub_configs": False})
        return added

    def add_method_arguments(self, *args: Any, **kwargs: Any) -> list[str]:
        """Add the options of a method of the trainer, with help texts for what embedlab makes of them."""
        added: list[str] = super().add_method_arguments(*args, **kwargs)
        for action in self._actions:
            action.help = _HELP_INSTEAD_OF_LIGHTNINGS.get(action.dest, action.help)
        return added

    def noticed(self, name: str, node: Node) -> None:
        """Refuse values of trainer options that embedlab sets by another option, or that Lightning refuses only later.

        Args:
            name: Dotted name of the option.
            node: Value as the user wrote it.

        Raises:
            ConfigError: If the value cannot be used.
        """
        if isinstance(node, Scalar):
            refuse_trainer_option(name, node)


class _HasBegun(Callback):
    """A callback that notes the first step of work, because earlier exceptions are errors of the configuration.

    Args:
        preparation: Preparation of the run, which is marked as over at the first step.
    """

    def __init__(self, preparation: Preparation) -> None:
        self._preparation = preparation

    def on_train_batch_start(self, *_: Any, **__: Any) -> None:
        """Mark the preparation as over when a training step begins."""
        self._preparation.is_over = True

    def on_validation_batch_start(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Mark the preparation as over when a validation step begins, except in the evaluation before training."""
        self._preparation.is_over |= not trainer.sanity_checking

    def on_test_batch_start(self, *_: Any, **__: Any) -> None:
        """Mark the preparation as over when a test step begins."""
        self._preparation.is_over = True

    def on_predict_batch_start(self, *_: Any, **__: Any) -> None:
        """Mark the preparation as over when a prediction step begins."""
        self._preparation.is_over = True


class EmbedLabCLI(LightningCLI):
    """The command line of Lightning for fit, validate, test and predict, with the options of embedlab.

    Attributes:
        command: Name of the command to run.
        preparation: Preparation of the run, which ends with the first step of work.
        resources: Resources to keep until the command ends: the lock of the run's folder.
        seconds_to_wait: Maximum time to wait for another run in the folder to end, in seconds.
    """

    command = "fit"
    preparation: Preparation
    resources: ExitStack
    seconds_to_wait = 0.0
    _backbone_before: str | None = None  # folder of the backbone that the checkpoint was trained on

    @classmethod
    def subcommands(cls) -> dict[str, set[str]]:
        """Return only the command to run, because the parser of each command takes a quarter of a second to create."""
        return {cls.command: LightningCLI.subcommands()[cls.command]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of embedlab, and link options of the trainer, the model and the data that must be equal."""
        parser.add_argument(
            "--output",
            type=str,
            default="runs/fit",
            help="Folder for the checkpoints, logs and record of the run. It must not hold another run.",
        )
        parser.add_argument(
            "--budget",
            type=number_of_flops,
            help="Number of FLOPs to spend on training, instead of a number of epochs or steps.",
        )
        parser.add_argument(
            "--allow_repeat",
            "--allow-repeat",
            type=bool,
            nargs="?",
            const=True,
            default=False,
            help="Train until the FLOPs of --budget are spent, even if this takes more epochs than trainer.max_epochs.",
        )
        parser.add_argument(
            "--accept_changes",
            "--accept-changes",
            type=bool,
            nargs="?",
            const=True,
            default=False,
            help="Continue from a checkpoint, although options or data have changed. The result counts as a new run of "
            "the same family.",
        )
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.add_lightning_class_args(RunRecorder, "record")
        parser.add_lightning_class_args(BranchPoints, "branch")  # after the recorder, whose counts it saves
        parser.link_arguments("output", "trainer.default_root_dir")
        parser.link_arguments("model.backbone_config", "data.backbone", apply_on="instantiate")
        parser.link_arguments("seed_everything", "model.seed", compute_fn=int)
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        parser.set_defaults({"model.method": "FullFineTuning"})

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the options, lock the run's folder, and find the checkpoint to continue from.

        Args:
            parser: Parser of the command line.
            args: Words of the command line.

        Raises:
            ConfigError: If an option is invalid, the folder holds another run, or another run is in progress there.
            DataError: If the checkpoint is damaged or was not written by embedlab.
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
            saved = read_checkpoint(Path(config.ckpt_path))
            before = saved["run_config"]["model"].get("backbone")
            path = before.get("path") if isinstance(before, dict) else None
            self._backbone_before = path if isinstance(path, str) else None

    def _take(self, output: Path, *, is_new: bool) -> None:
        """Lock the run's folder and remove unfinished files. For a new run, the folder must not hold another run.

        Args:
            output: Folder of the run.
            is_new: Whether the run starts without a checkpoint.

        Raises:
            ConfigError: If another run is in the folder or in progress there, or the folder cannot be written to.
        """
        if is_new:
            _refuse_another_run(output)
        self.resources.enter_context(locked_folder(output, owner="run", seconds=self.seconds_to_wait))
        remove_unfinished(output)
        remove_unfinished(output / CHECKPOINTS)

    def _parse_ckpt_path(self) -> None:
        """Do nothing, in place of Lightning's code, so that a checkpoint cannot change which model is created."""

    def before_instantiate_classes(self) -> None:
        """Set the default number of epochs, and check the number of processes.

        Raises:
            ConfigError: If there are too many processes for the machine.
        """
        config = self.config[self.subcommand]
        trainer = config.trainer
        if trainer.max_epochs is None:
            trainer.max_epochs = 1 if trainer.max_steps == -1 else -1  # steps alone may take any number of epochs
        _refuse_many_processes(trainer.devices)

    def instantiate_classes(self) -> None:
        """Create trainer, model and data, and pre-train a missing rung of the ladder.

        The model is loaded from the folder of a rung, but configuration and record name the rung, because the folder
        is another one for another user, machine or Python.
        """
        backbone = self.config[self.subcommand].model.backbone
        name = name_of_rung(backbone.path)
        named = backbone.path if name is None else f"{LADDER}{name}"
        if named.startswith(LADDER):
            backbone.path = str(ensure_rung(named.removeprefix(LADDER), before=self._backbone_before))
        super().instantiate_classes()
        backbone.path = self.model.backbone_name = named

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Return a trainer with the callbacks of embedlab, which logs to the run's folder unless a logger is named.

        Args:
            kwargs: Further arguments of the trainer.

        Raises:
            EmbedLabError: If the trainer cannot be created with the options.
        """
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
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # the default of Lightning
            trainer.strategy.checkpoint_io = WholeCheckpointIO()
        return trainer


def _option_in(message: str, options: Namespace) -> str:
    """Return the trainer option that a message of Lightning is about, for example ``trainer.strategy``.

    Args:
        message: Message of Lightning.
        options: Options of the trainer.

    Returns:
        The first option that the message names, or else the first option whose value the message contains;
        ``trainer`` if there is no such option.
    """
    given = {name: value for name, value in options.items() if isinstance(value, str | int | float) and value != "auto"}
    found = {name: re.search(rf"\b{name}\b", message) for name in given}
    named = {name: match.start() for name, match in found.items() if match}
    if not named:
        values = {name: value for name, value in given.items() if isinstance(value, str) and value in message and value}
        named = {name: message.index(value) for name, value in values.items()}
    return f"trainer.{min(named, key=named.__getitem__)}" if named else "trainer"


def _refuse_many_processes(devices: object) -> None:
    """Refuse more processes than a machine without GPUs can run; with GPUs, Lightning checks the number.

    Args:
        devices: Value of ``trainer.devices``.

    Raises:
        ConfigError: If there are more than 4 processes per CPU core.
    """
    most = _PROCESSES_PER_CORE * (os.cpu_count() or 1)
    if isinstance(devices, str) and devices.isdigit():
        devices = int(devices)
    if isinstance(devices, int) and devices > most and not torch.cuda.is_available():
        raise ConfigError(
            f"trainer.devices is {devices}, which is the number of processes on CPUs. Expected at most {most}, because "
            f"this machine has {os.cpu_count()} cores. Lower trainer.devices."
        )


_PROCESSES_PER_CORE = 4  # more than one, so that users can test training with several ranks on a small machine


def is_first_process() -> bool:
    """Return whether this process is rank 0 of the run."""
    return not any(int(os.environ.get(name) or 0) for name in _RANKS)


_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")


def _checkpoint(wanted: str | None, folder: Path, origin: str | None) -> str | None:
    """Return the path of the checkpoint to continue from; None to start a new run.

    Args:
        wanted: Value of ``--ckpt_path``: a path, ``last`` or ``best`` for this checkpoint of the run, or ``auto`` for
            the newest undamaged checkpoint of the run, or else ``origin``. None for no checkpoint.
        folder: Folder with the checkpoints of the run.
        origin: Branch point from which a run without a checkpoint starts; None to start from the backbone.

    Raises:
        ConfigError: If ``origin`` is set without ``auto``, or the run has no checkpoint ``last`` or ``best``.
        DataError: If ``wanted`` is ``auto`` and all checkpoints of the run are damaged.
    """
    last = folder / LAST
    if wanted == "auto":
        for path in (last, folder / PREVIOUS):
            if not path.is_file():
                continue
            found = damage(path)
            if found is None:
                return str(path)
            print(f"The checkpoint {path} is damaged: {found}. The file stays unchanged.", file=sys.stderr)
        if last.is_file():
            require_whole(last)  # raises an error that names the other checkpoints
        return origin
    if origin is not None:
        raise ConfigError(
            "branch.origin is set, but it needs --ckpt_path auto. Add --ckpt_path auto, or leave branch.origin out."
        )
    if wanted in ("last", "best"):
        path = folder / f"{wanted}.ckpt"
        if not path.is_file():
            raise ConfigError(
                f"--ckpt_path is {wanted}, but there is no {path}. Name the run's folder with --output, or use "
                "--ckpt_path auto, which also starts a run without a checkpoint."
            )
        return str(path)
    return wanted


def _refuse_another_run(output: Path) -> None:
    """Refuse to start a new run in a folder that has checkpoints or a run record.

    A run that was killed before its first checkpoint left neither, so a new run may use its folder.

    Args:
        output: Folder of the run.

    Raises:
        ConfigError: If the folder has checkpoints or a run record.
    """
    results = [*newest_first(output / CHECKPOINTS), *(path for path in (output / RECORD,) if path.exists())]
    if results:
        raise ConfigError(
            f"The output folder {output} holds a run already: {results[0].name}. Continue the run with --ckpt_path "
            "auto, or choose another folder with --output."
        )


def train(arguments: Sequence[str], *, seconds_to_wait: float = 0.0) -> None:
    """Run fit, validate, test or predict.

    Args:
        arguments: Name of the command, and the words of the command line after the name.
        seconds_to_wait: Maximum time to wait for another run in the same output folder to end, in seconds.

    Raises:
        EmbedLabError: For an error that the user can fix, for any exception before the first batch is processed, and
            if another run is still in progress in the folder after the wait.
    """
    with Preparation() as preparation, ExitStack() as resources:
        registry.discover()  # so that a configuration can name a method by its class name without a module
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
            "use_distributed_sampler": False,  # the data module distributes batches over ranks
        },
    )
