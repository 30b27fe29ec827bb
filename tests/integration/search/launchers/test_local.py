"""Trials are trained one after another in processes that stay, and nothing of one reaches the next."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock, Timeout
from lightning.pytorch import Callback

from embedlab.errors import ConfigError
from embedlab.records import FILE
from embedlab.search.launchers.launcher import LOCK, Job, JobResult
from embedlab.search.launchers.local import LocalWorkers
from embedlab.search.launchers.processes import TrialProcesses
from helpers.runs import start_fit, write_config

SLOW = ["--trainer.callbacks+", "helpers.runs.StepFile", "--trainer.max_epochs", "200"]


@pytest.fixture(scope="module", autouse=True)
def helpers_are_found() -> Iterator[None]:
    """By the processes of workers, too, which are none of pytest's; and they are started as in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    return write_config(tmp_path, validation_fraction=0.2)


@pytest.fixture(scope="module")
def workers() -> Iterator[LocalWorkers]:
    with LocalWorkers(1) as launcher:
        yield launcher


def job(configuration: Path, name: str, *options: str) -> Job:
    folder = configuration.parent / name
    arguments = ("--config", str(configuration), "--output", str(folder), *options)
    return Job(name, arguments, folder)


def ended(launcher: LocalWorkers | TrialProcesses, *jobs: Job) -> list[JobResult]:
    for one in jobs:
        launcher.submit(one)
    return [launcher.wait() for _ in jobs]


def result(folder: Path) -> dict[str, Any]:
    """Of a record what does not depend on when and where the run was."""
    record: dict[str, Any] = json.loads((folder / FILE).read_text())
    return {name: record[name] for name in ("loss", "metrics", "flops_executed", "tokens", "learning_rate")}


def until(path: Path) -> None:
    for _ in range(1200):
        if path.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} did not come")


def test_a_trial_gives_what_it_gives_in_a_process_of_its_own(configuration: Path, workers: LocalWorkers) -> None:
    own = start_fit(configuration, "--output", str(configuration.parent / "own"))
    first, other, again = (job(configuration, name) for name in ("first", "other", "again"))
    other = job(configuration, "other", "--seed_everything", "2", "--model.method", "LoRA")
    outcomes = ended(workers, first, other, again)
    assert [(one.job.name, one.error) for one in outcomes] == [("first", None), ("other", None), ("again", None)]
    own.join(timeout=200)
    assert result(first.folder) == result(again.folder) == result(configuration.parent / "own")
    assert result(other.folder)["loss"] != result(first.folder)["loss"]
    assert "FullFineTuning trains" in (again.folder / "log").read_text()
    assert outcomes[2].seconds < 20, "it does not import torch again"


def test_a_trial_that_cannot_run_says_why_and_the_next_is_trained(configuration: Path, workers: LocalWorkers) -> None:
    bad = job(configuration, "bad", "--model.method", "LoRA", "--model.method.rank", "0")
    refused, trained = ended(workers, bad, job(configuration, "good"))
    assert refused.error is not None and "ConfigError: " in refused.error and "rank=0" in refused.error
    assert trained.error is None


class PrintsLate(Callback):
    """As a library's thread does, when the run is over."""

    def on_fit_end(self, *_: object) -> None:
        threading.Timer(1.0, os.write, (1, b"not an answer\n")).start()


def test_what_is_printed_between_two_runs_is_no_answer(configuration: Path, workers: LocalWorkers) -> None:
    one, two = job(configuration, "one", "--trainer.callbacks+", "test_local.PrintsLate"), job(configuration, "two")
    assert [outcome.error for outcome in ended(workers, one)] == [None]
    time.sleep(2)
    assert [outcome.error for outcome in ended(workers, two)] == [None]


def test_a_trial_may_load_its_data_in_processes_of_its_own(configuration: Path, workers: LocalWorkers) -> None:
    loading = job(configuration, "loading", "--data.num_workers", "1")
    (outcome,) = ended(workers, loading)
    assert outcome.error is None and (loading.folder / FILE).exists()


class TakesMemory(Callback):
    """For a moment."""

    def on_train_start(self, *_: object) -> None:
        bytearray(2**29)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets a process's peak")
def test_the_peak_of_memory_is_that_of_the_run(configuration: Path, workers: LocalWorkers) -> None:
    large, small = (
        job(configuration, "large", "--trainer.callbacks+", "test_local.TakesMemory"),
        job(configuration, "s"),
    )
    ended(workers, large)
    ended(workers, small)
    peaks = [json.loads((one.folder / FILE).read_text())["peak_memory_bytes"] for one in (large, small)]
    assert peaks[0] > peaks[1] + 2**28


def test_a_worker_that_dies_is_started_anew(configuration: Path, workers: LocalWorkers) -> None:
    killed = job(configuration, "killed", *SLOW)
    workers.submit(killed)
    until(killed.folder / "step")
    workers._workers[0]._process.kill()
    outcome = workers.wait()
    assert outcome.error == ("The worker ended with status -9, which usually means that the machine ran out of memory.")
    (trained,) = ended(workers, job(configuration, "next"))
    assert trained.error is None


def test_a_closed_launcher_leaves_a_checkpoint_to_go_on_from(configuration: Path) -> None:
    with LocalWorkers(1) as launcher:
        stopped, waiting = job(configuration, "stopped", *SLOW), job(configuration, "waiting")
        launcher.submit(stopped)
        launcher.submit(waiting)
        until(stopped.folder / "step")
    assert (stopped.folder / "checkpoints" / "last.ckpt").exists() and not (stopped.folder / FILE).exists()
    assert not waiting.folder.exists()


@pytest.mark.parametrize("launcher", ["LocalWorkers(1)", "TrialProcesses(1)"])
def test_a_run_whose_search_is_killed_saves_its_step_and_ends(configuration: Path, launcher: str) -> None:
    slow = job(configuration, "slow", *SLOW)
    program = f"""
import threading
import time
from pathlib import Path
from embedlab.search.launchers.launcher import Job
from embedlab.search.launchers.local import LocalWorkers
from embedlab.search.launchers.processes import TrialProcesses
launcher = {launcher}
for _ in range(20):  # the kernel may tell of the end of each
    threading.Thread(target=time.sleep, args=(300,)).start()
launcher.submit(Job("slow", {slow.arguments!r}, Path({str(slow.folder)!r})))
time.sleep(300)
"""
    search = subprocess.Popen([sys.executable, "-c", program])
    until(slow.folder / "step")
    with pytest.raises(Timeout), FileLock(slow.folder / LOCK, timeout=0):
        pass
    search.kill()
    search.wait()
    with FileLock(slow.folder / LOCK, timeout=60):  # it has ended
        assert (slow.folder / "checkpoints" / "last.ckpt").exists() and not (slow.folder / FILE).exists()


def test_what_somebody_else_trains_is_not_trained(configuration: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedlab.search.launchers.processes.SECONDS_TO_END", 0.2)
    one = job(configuration, "one")
    one.folder.mkdir()
    with TrialProcesses(1) as launcher, FileLock(one.folder / LOCK):
        (outcome,) = ended(launcher, one)
    assert outcome.error == f"Another process is training in {one.folder}."
    assert not (one.folder / "config.yaml").exists()


def test_a_trial_on_several_devices_is_a_process_of_its_own(configuration: Path) -> None:
    with TrialProcesses(2) as launcher:
        two = job(configuration, "two", "--data.batch_size", "4")
        bad = job(configuration, "bad", "--data.batch_size", "0")
        trained, refused = ended(launcher, two, bad)
    assert trained.error is None and json.loads((two.folder / FILE).read_text())["device"] == "cpu x 2"
    assert refused.error is not None and f"See the reason in {bad.folder / 'log'}." in refused.error
    assert "ConfigError" in (bad.folder / "log").read_text()


def test_no_workers_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_workers must be at least 1, got 0"):
        LocalWorkers(0)
    with pytest.raises(ConfigError, match="devices must be at least 1, got 0"):
        TrialProcesses(0)
