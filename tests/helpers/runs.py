"""Small real runs of the command line, for the tests that need one."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from embedlab.cli.commands import main
from embedlab.testing.backbones import save_tiny_backbone

WORDS = [a + b for a in ("ba", "co", "di", "fu", "ge") for b in ("la", "mi", "no", "ru", "ta", "ve")]


def write_pairs(path: Path, num_pairs: int = 60, *, seed: int = 0) -> Path:
    """Pairs whose documents hold the words of their queries among others, all texts different."""
    generator = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for number in range(num_pairs):
            words = generator.sample(WORDS, 4)
            others = generator.choices(WORDS, k=generator.randint(2, 12))
            row = {
                "query": " ".join(words),
                "positive": " ".join([*others, *words, str(number)]),
                "key": number // 2,
            }
            file.write(json.dumps(row) + "\n")
    return path


def write_config(
    folder: Path,
    *,
    family: str = "gpt_neox",
    dropout: float = 0.0,
    method: object = "FullFineTuning",
    loss: object = "SymmetricInfoNCE",
    schedule: object = None,
    num_layers: int = 2,
    **data: object,
) -> Path:
    """A configuration of 12 steps an epoch of 5 pairs a step, on a tiny backbone, without validation."""
    backbone = save_tiny_backbone(folder / "backbone", family, dropout=dropout, num_hidden_layers=num_layers)
    config = {
        "output": str(folder / "run"),
        "seed_everything": 1,
        "model": {
            "backbone": {"path": str(backbone)},
            "method": method,
            "loss": loss,
            "optimizer": {"learning_rate": 1e-2},
            "schedule": schedule,
        },
        "data": {
            "train": [{"path": str(write_pairs(folder / "pairs.jsonl"))}],
            "batch_size": 5,
            "max_length": 32,
            "tokens_per_chunk": 64,
            "num_workers": 0,
            "cache": str(folder / "cache"),
            **data,
        },
        "trainer": {
            "max_epochs": 2,
            "accelerator": "cpu",
            "devices": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def fit(config: Path, *options: str) -> None:
    """``embedlab fit`` in this process."""
    main(["fit", "--config", str(config), *options])


class OwnProcess(multiprocessing.context.ForkServerProcess):
    """``embedlab`` in a process of its own, forked from one that has loaded its modules: that takes seconds.

    Args:
        commands: the arguments of each, one after the other.
        log: the file that all it prints goes into.
        environment: variables to set.
        first: called in the process before them.
    """

    def __init__(
        self,
        commands: Sequence[Sequence[str]],
        log: Path,
        environment: Mapping[str, str] | None = None,
        first: Callable[[], None] | None = None,
    ) -> None:
        super().__init__()
        self._commands = commands
        self._log = log
        self._environment = environment or {}
        self._first = first

    def run(self) -> None:
        """The commands, in the new process."""
        with self._log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.environ.update(self._environment)
        if self._first is not None:
            self._first()
        for command in self._commands:
            main(command)

    def printed(self) -> str:
        """All it has printed until it ended."""
        self.join(timeout=200)
        return self._log.read_text()


multiprocessing.set_forkserver_preload(["embedlab.cli.training", "peft"])


def start_fit(config: Path, *options: str, **settings: Any) -> OwnProcess:
    """``embedlab fit`` in a process of its own."""
    process = OwnProcess([["fit", "--config", str(config), *options]], config.parent / "printed", **settings)
    process.start()
    return process


def start_ranks(commands: Sequence[Sequence[str]], folder: Path) -> list[OwnProcess]:
    """Two processes that each run the commands, in an environment as torchrun makes it."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = str(listener.getsockname()[1])
    environment = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    environment |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    processes = []
    for rank in ("0", "1"):
        of_rank = environment | {"RANK": rank, "LOCAL_RANK": rank}
        processes.append(OwnProcess(commands, folder / f"printed by {rank}", of_rank))
        processes[-1].start()
    return processes


class SteppedTime(Callback):
    """A clock by which a training step takes 10 seconds and an evaluation 1000."""

    now = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        SteppedTime.now += 10

    def on_validation_start(self, *_: Any) -> None:
        SteppedTime.now += 1000


class StepFile(Callback):
    """Writes a file when the first step is taken, and makes the steps after it long enough to be interrupted."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        Path(trainer.default_root_dir, "step").touch()
        time.sleep(0.05)


class CountingReductions(DDPStrategy):
    """DDP that writes a line into a file for every bucket of gradients it reduces; Lightning has hooks on GPUs only."""

    def __init__(self, *, file: str, **options: Any) -> None:
        super().__init__(**options)
        self.file = file

    def configure_ddp(self) -> None:
        super().configure_ddp()
        assert isinstance(self.model, DistributedDataParallel)
        self.model.register_comm_hook(Path(self.file), _counted_reduction)


def _counted_reduction(path, bucket):  # type: ignore[no-untyped-def]  # torch wants classes here, not their names
    with path.open("a") as file:
        file.write("reduced\n")
    return allreduce_hook(None, bucket)


def trained_weights(run: Path) -> dict[str, torch.Tensor]:
    """What a run's last checkpoint holds of the model."""
    state: dict[str, torch.Tensor] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return state


def scalars(run: Path) -> dict[str, list[float]]:
    """What a run has logged, by name."""
    events = EventAccumulator(str(run))
    events.Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def assert_same_bits(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    """Same names, same bits."""
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def error_of(capsys: object, arguments: Sequence[str]) -> str:
    """Runs a command that must fail with exit status 2, and returns what it printed on standard error."""
    try:
        main(list(arguments))
    except SystemExit as stop:
        assert stop.code == 2
    else:
        raise AssertionError(f"embedlab {' '.join(arguments)} succeeded")
    captured: str = capsys.readouterr().err  # type: ignore[attr-defined]
    _, found, printed = captured.rpartition("embedlab: ")
    assert found, captured
    assert "Traceback" not in printed and "usage:" not in printed
    return printed
