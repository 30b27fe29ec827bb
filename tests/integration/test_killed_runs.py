"""Wherever a run is killed or stopped, it goes on to the bits, the record and the log of one that was not."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from embedlab.records import FILE
from helpers.runs import OwnProcess, fit, start_fit, start_ranks, write_config

OF_THE_PROCESS = {"run_id", "seconds", "peak_memory_bytes", "peak_flops_per_second"}
TIMES = ("tokens/s", "pairs/s", "flops/mfu", "flops/hfu")
OPTIONS = ["--trainer.max_epochs", "3", "--trainer.log_every_n_steps", "1"]


class Killed(BaseException):
    """Stands for the end of a process: nothing in it gets to know."""


class KillAt(Callback):
    """Ends the run where a hook is called for the n-th time."""

    hook = ""
    number = 0

    @classmethod
    def plan(cls, hook: str, number: int) -> list[str]:
        cls.hook, cls.number = hook, number
        return ["--trainer.callbacks+", f"{__name__}.{cls.__name__}"]

    def _called(self, hook: str) -> None:
        KillAt.number -= hook == KillAt.hook
        if hook == KillAt.hook and KillAt.number == 0:
            raise Killed

    def on_train_start(self, *_: Any) -> None:
        self._called("on_train_start")

    def on_train_batch_start(self, *_: Any) -> None:
        self._called("on_train_batch_start")

    def on_train_batch_end(self, *_: Any) -> None:
        self._called("on_train_batch_end")

    def on_validation_start(self, *_: Any) -> None:
        self._called("on_validation_start")

    def on_validation_end(self, *_: Any) -> None:
        self._called("on_validation_end")

    def on_train_epoch_end(self, *_: Any) -> None:
        self._called("on_train_epoch_end")

    def on_train_end(self, *_: Any) -> None:
        self._called("on_train_end")

    def on_fit_end(self, *_: Any) -> None:
        self._called("on_fit_end")


class SlowSteps(Callback):
    """Gives a signal that comes at a random moment a chance to come in every part of a run."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        Path(trainer.default_root_dir, "step").touch()
        time.sleep(0.02)

    def on_validation_batch_end(self, *_: Any) -> None:
        time.sleep(0.02)


def outcome_of(run: Path) -> dict[str, Any]:
    """What a finished run leaves, but for times: weights, optimizer, evaluation, records and logged values by step."""
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    records = [json.loads(path.read_text()) for path in sorted(run.rglob(FILE))]
    return {
        "step": saved["global_step"],
        "weights": {name: value.numpy().tobytes() for name, value in saved["state_dict"].items()},
        "optimizer": [
            {name: value.numpy().tobytes() for name, value in state.items()}
            for state in saved["optimizer_states"][0]["state"].values()
        ],
        "evaluation": saved["evaluation"],
        "records": [{name: value for name, value in one.items() if name not in OF_THE_PROCESS} for one in records],
        "logged": {
            name: sorted((event.step, 0.0 if name in TIMES else event.value) for event in events.Scalars(name))
            for name in events.Tags()["scalars"]
        },
    }


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("killed"), validation_fraction=0.3)


@pytest.fixture(scope="module")
def undisturbed(config: Path) -> dict[str, Any]:
    fit(config, *OPTIONS, "--output", str(config.parent / "undisturbed"))
    return outcome_of(config.parent / "undisturbed")


MOMENTS = [  # an epoch has 6 steps, and an evaluation comes before the first and after each
    ("on_train_start", 1),
    ("on_train_batch_start", 5),
    ("on_train_batch_end", 8),
    ("on_validation_start", 3),
    ("on_validation_end", 2),
    ("on_train_epoch_end", 1),
    ("on_validation_start", 4),
    ("on_validation_end", 4),
    ("on_train_end", 1),
    ("on_fit_end", 1),
]


@pytest.mark.parametrize("every", [1, 3], ids=lambda every: f"saved every {every}")
@pytest.mark.parametrize(("hook", "number"), MOMENTS)
def test_a_run_killed_at_any_moment_ends_as_if_it_had_not_been(
    tmp_path: Path, config: Path, undisturbed: dict[str, Any], hook: str, number: int, every: int
) -> None:
    command = [*OPTIONS, "--output", str(tmp_path / "run"), "--checkpoint.every_n_steps", str(every)]
    with pytest.raises(Killed):
        fit(config, *command, *KillAt.plan(hook, number))
    fit(config, *command, "--ckpt_path", "auto")
    assert outcome_of(tmp_path / "run") == undisturbed


@pytest.mark.parametrize(
    "moments",
    [
        [("on_train_batch_start", 7), ("on_train_batch_start", 3), ("on_train_batch_start", 4)],
        [("on_validation_start", 2), ("on_train_start", 1), ("on_validation_end", 1), ("on_train_batch_end", 2)],
        [("on_validation_start", 4), ("on_train_end", 1), ("on_fit_end", 1)],
    ],
    ids=["between steps", "around evaluations", "at the end"],
)
def test_a_run_killed_again_and_again_ends_as_if_it_had_not_been(
    tmp_path: Path, config: Path, undisturbed: dict[str, Any], moments: list[tuple[str, int]]
) -> None:
    command = [*OPTIONS, "--output", str(tmp_path / "run"), "--checkpoint.every_n_steps", "2", "--ckpt_path", "auto"]
    for hook, number in moments:
        with pytest.raises(Killed):
            fit(config, *command, *KillAt.plan(hook, number))
    for _ in range(2):  # the second time nothing is left to do, and nothing changes
        fit(config, *command)
        assert outcome_of(tmp_path / "run") == undisturbed


# Real processes and signals


def random_moments(number: int, seed: int, longest: float) -> Iterator[float]:
    generator = random.Random(seed)
    return (generator.uniform(0, longest) for _ in range(number))


def wait_for(path: Path, processes: Sequence[OwnProcess]) -> None:
    while not path.exists():
        assert all(process.is_alive() for process in processes), processes[0].printed()
        time.sleep(0.005)


def end_at(processes: Sequence[OwnProcess], sent: signal.Signals, step: Path, seconds: float) -> None:
    """Sends a signal to all, the last rank first, some time after the first step; within a minute they have ended."""
    wait_for(step, processes)
    time.sleep(seconds)
    for process in reversed(processes):
        assert process.pid is not None
        if process.is_alive():
            os.kill(process.pid, sent)
    for process in processes:
        process.join(timeout=60)
        assert not process.is_alive(), "it does not end"


def gone_on_with(config: Path, run: Path, sent: signal.Signals, ranks: int, seconds: Iterator[float]) -> dict[str, Any]:
    """Starts and ends a run until it has come to its end by itself; what it leaves."""
    options = [*OPTIONS, "--output", str(run), "--checkpoint.every_n_steps", "4", "--ckpt_path", "auto"]
    options += ["--trainer.callbacks+", f"{__name__}.SlowSteps"]
    if ranks == 2:
        options += ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    for after in seconds:
        (run / "step").unlink(missing_ok=True)
        if ranks == 2:
            processes = start_ranks([["fit", "--config", str(config), *options]], config.parent)
        else:
            processes = [start_fit(config, *options)]
        end_at(processes, sent, run / "step", after)
        if (run / FILE).exists():
            break
    (run / "step").unlink(missing_ok=True)
    if ranks == 2:
        processes = start_ranks([["fit", "--config", str(config), *options]], config.parent)
        printed = [process.printed() for process in processes]
        assert [process.exitcode for process in processes] == [0, 0], printed
    else:
        fit(config, *options)
    return outcome_of(run)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL], ids=lambda sent: sent.name)
def test_two_ranks_ended_by_a_signal_end_as_if_they_had_not_been(
    tmp_path: Path, two_ranks: dict[str, Any], config_of_two: Path, sent: signal.Signals
) -> None:
    moments = random_moments(1, seed=0, longest=0.5)
    assert gone_on_with(config_of_two, tmp_path / "run", sent, 2, moments) == two_ranks


@pytest.fixture(scope="module")
def config_of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("two"), validation_fraction=0.3, batch_size=6)


@pytest.fixture(scope="module")
def two_ranks(config_of_two: Path) -> dict[str, Any]:
    run = config_of_two.parent / "undisturbed"
    return gone_on_with(config_of_two, run, signal.SIGTERM, 2, iter(()))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("ranks", [1, 2], ids=["one process", "two ranks"])
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL], ids=lambda sent: sent.name)
def test_twenty_ends_at_random_moments_change_nothing(
    tmp_path: Path,
    request: pytest.FixtureRequest,
    sent: signal.Signals,
    ranks: int,
) -> None:
    config = request.getfixturevalue("config" if ranks == 1 else "config_of_two")
    expected = request.getfixturevalue("undisturbed" if ranks == 1 else "two_ranks")
    moments = list(random_moments(20, seed=ranks, longest=1.0))
    number = 0
    while moments:
        seconds = iter([moments.pop() for _ in range(min(3, len(moments)))])  # some kills a run
        run = tmp_path / f"run-{number}"
        assert gone_on_with(config, run, sent, ranks, seconds) == expected
        number += 1
