"""Small real searches, for the tests that need one."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, ClassVar

import psutil
import yaml

from embedlab.cli.commands import main
from embedlab.cli.training import train
from embedlab.errors import EmbedLabError
from embedlab.records import FILE, Ledger
from embedlab.search.launchers.launcher import Job, JobResult, Launcher
from embedlab.testing.backbones import save_tiny_backbone
from helpers.runs import OwnProcess, write_pairs

TINY = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
IN_THIS_PROCESS = ("--launcher", "helpers.searches.InThisProcess")
_VARY = {"run_id", "parent_run_id", "seconds", "peak_memory_bytes", "device", "peak_flops_per_second"}
_VARY |= {"versions", "git_revision"}


def write_search(folder: Path, *, fit: dict[str, dict[str, Any]] | None = None, **values: Any) -> Path:
    """The configuration of a search of two backbones, one of which has no biases.

    Args:
        folder: for all of it.
        fit: more of the configuration that all runs have in common.
        values: more of the search's.
    """
    small = save_tiny_backbone(folder / "small", "gpt_neox", **TINY)
    large = save_tiny_backbone(folder / "large", "llama", num_hidden_layers=2)
    data = {
        "train": [{"path": str(write_pairs(folder / "pairs.jsonl"))}],
        "batch_size": 4,
        "max_length": 32,
        "num_workers": 0,
        "validation_fraction": 0.2,
        "cache": str(folder / "cache"),
    }
    trainer = {"max_epochs": 100, "accelerator": "cpu", "devices": 1, "num_sanity_val_steps": 0, "logger": False}
    common = {"data": data, "trainer": trainer | {"enable_progress_bar": False}}
    for part, more in (fit or {}).items():
        common[part] = common.get(part, {}) | more
    config = {
        "output": str(folder / "search"),
        "suite": [str(small), str(large)],
        "methods": ["FullFineTuning"],
        "budgets": [1e8],
        "min_steps": 2,
        "calibration": {"enabled": False},
        "fit": common,
        **values,
    }
    path = folder / "search.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


class InThisProcess(Launcher):
    """Trains where the search is, so that nothing is imported again.

    Attributes:
        trained: names of all jobs, in order.
    """

    trained: ClassVar[list[str]] = []

    def __init__(self) -> None:
        self._waiting: deque[Job] = deque()

    @property
    def num_slots(self) -> int:
        return 1

    def submit(self, job: Job) -> None:
        self._waiting.append(job)

    def wait(self) -> JobResult:
        job = self._waiting.popleft()
        self.trained.append(job.name)
        job.folder.mkdir(parents=True, exist_ok=True)
        begin, error = time.monotonic(), None
        with (job.folder / "log").open("a") as log, redirect_stdout(log), redirect_stderr(log):
            try:
                train(["fit", *job.arguments])
            except Exception as failure:
                kind = type(failure).__name__
                error = f"{kind}: {failure}"
                if not isinstance(failure, EmbedLabError):
                    print(error)
        return JobResult(job, error, time.monotonic() - begin)

    def close(self) -> None:
        self._waiting.clear()


@contextmanager
def own_signals() -> Iterator[None]:
    """A search sets handlers, which are none of the tests' that follow."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def search(config: Path, *options: str) -> list[str]:
    """``embedlab search`` in this process; the names of what it trained."""
    InThisProcess.trained.clear()
    with own_signals():
        main(["search", "--config", str(config), *IN_THIS_PROCESS, *options])
    return list(InThisProcess.trained)


class SearchProcess:
    """``embedlab search`` in a process of its own, with all that it starts.

    Args:
        config: of the search.
        options: more of the command line.
    """

    def __init__(self, config: Path, *options: str) -> None:
        self._log = config.parent / "printed"
        command = ["search", "--config", str(config), *options]
        environment = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self._process = OwnProcess([command], self._log, environment, first=os.setsid)
        self._process.start()

    @property
    def is_alive(self) -> bool:
        return self._process.is_alive()

    def started(self) -> list[psutil.Process]:
        """The processes that it has started."""
        try:
            found: list[psutil.Process] = psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return found

    def send(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self, *, workers: bool) -> None:
        """As a machine without memory left does: the search, or all that it has started too."""
        started = self.started() if workers else []
        self._process.kill()
        for process in started:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self._process.join()

    def status(self, timeout: float = 840) -> int:
        """Of its end."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self.kill(workers=True)
            raise TimeoutError(f"The search did not end in {timeout} s: {self.printed()}")
        return self._process.exitcode

    def printed(self) -> str:
        return self._log.read_text()


def until(is_so: Callable[[], Any], process: SearchProcess | None = None, *, seconds: float = 120) -> None:
    """Waits for something, as long as the process is there that is to bring it about."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it did not come"
        assert process is None or process.is_alive or is_so(), process.printed()
        time.sleep(0.02)


def ledger(folder: Path) -> dict[str, dict[str, Any]]:
    """The record of each trial, without what depends on when and where it was trained, by the name of its folder."""
    found: dict[str, dict[str, Any]] = {}
    for path in Ledger([folder / "trials"]).paths():
        record = json.loads(path.read_text())
        found[str(path.parent.relative_to(folder / "trials"))] = {
            name: value for name, value in record.items() if name not in _VARY
        }
    return found


def written(folder: Path) -> dict[Path, int]:
    """When each record below a folder was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob(FILE)}
