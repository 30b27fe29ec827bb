"""This machine, for trials that need several devices: each trial is a process of its own."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

from embedlab.errors import ConfigError
from embedlab.files import locked_folder
from embedlab.search.launchers.launcher import INTERRUPTED, Job, JobResult
from embedlab.search.launchers.threaded import SECONDS_TO_END, ThreadedLauncher

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class TrialProcesses(ThreadedLauncher):
    """One trial after another, each a process that trains on several devices.

    Args:
        devices: of a trial.
    """

    def __init__(self, devices: int) -> None:
        if devices < 1:
            raise ConfigError(f"devices must be at least 1, got {devices}.")
        self._devices = devices
        super().__init__(num_slots=1)
        self._process: subprocess.Popen[bytes] | None = None
        self._starting = threading.Lock()
        self._is_closed = False

    def _run(self, job: Job) -> JobResult:
        begin = time.monotonic()
        words = [sys.executable, "-m", "embedlab", "fit", *job.arguments]
        words += ["--trainer.devices", str(self._devices), "--trainer.strategy", "ddp"]
        try:
            _wait_for_end(job)
        except ConfigError:
            return JobResult(job, f"Another process is training in {job.folder}.", time.monotonic() - begin)
        with (job.folder / "log").open("ab") as log:
            with self._starting:
                if self._is_closed:
                    return JobResult(job, INTERRUPTED, 0.0)
                self._process = subprocess.Popen(
                    words, stdout=log, stderr=log, start_new_session=True, preexec_fn=_end_with_the_search
                )
            status = self._process.wait()
        error = None if status == 0 else f"The run ended with status {status}. {job.folder / 'log'} says why."
        return JobResult(job, error, time.monotonic() - begin)

    def _stop(self) -> None:
        with self._starting:
            self._is_closed = True
            process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGINT)
        try:
            process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its ranks, too


def _wait_for_end(job: Job) -> None:
    """Waits for a run whose search was killed to save its step; from then on the new run has the folder's lock itself.

    Raises:
        ConfigError: If it takes longer.
    """
    with locked_folder(job.folder, owner="run", seconds=SECONDS_TO_END):
        pass


def _end_with_the_search() -> None:
    """In the new process: has the kernel send it SIGTERM when the search is killed, so that it saves its step and ends.

    The kernel may send it once for each thread of the search that ends. A second SIGTERM changes nothing, where a
    second SIGINT would stop the run before it has saved its step.

    Where the kernel is not Linux's, the run goes on to its end.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
