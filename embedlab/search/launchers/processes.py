"""Launcher on the local machine for trials that need several devices: each trial runs in a process of its own."""

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
    """Trains one trial after another, each in a process that uses several devices.

    Args:
        devices: Number of devices per trial.

    Raises:
        ConfigError: If the number of devices is below 1.
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
        error = None if status == 0 else f"The run ended with status {status}. See the reason in {job.folder / 'log'}."
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
            os.killpg(process.pid, signal.SIGKILL)  # the whole process group, so that the other ranks end, too


def _wait_for_end(job: Job) -> None:
    """Wait until no process of an earlier, killed search trains in the job's folder.

    The new run then takes the lock of the folder itself.

    Raises:
        ConfigError: If the process does not end within ``SECONDS_TO_END`` seconds.
    """
    with locked_folder(job.folder, owner="run", seconds=SECONDS_TO_END):
        pass


def _end_with_the_search() -> None:
    """Make the kernel send SIGTERM to this process when the search is killed. Call this in the new process.

    The run then saves a checkpoint after its current step and ends. The kernel may send a signal for each thread of the
    search that ends, so the signal is SIGTERM: a second SIGTERM changes nothing, but a second SIGINT would stop the run
    before it has saved its step.

    On systems other than Linux, the run continues to its end.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
