"""This machine, for trials that need several devices: each trial is a process of its own."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TextIO

from embedlab.errors import ConfigError
from embedlab.search.launchers.launcher import INTERRUPTED, LOCK, Job, Outcome
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

    def _run(self, job: Job) -> Outcome:
        begin = time.monotonic()
        words = [sys.executable, "-m", "embedlab", "fit", *job.arguments]
        words += ["--trainer.devices", str(self._devices), "--trainer.strategy", "ddp"]
        job.folder.mkdir(parents=True, exist_ok=True)
        with (job.folder / "log").open("ab") as log, (job.folder / LOCK).open("w") as lock:
            if not _locks(lock):
                return Outcome(job, f"Another process is training in {job.folder}.", time.monotonic() - begin)
            with self._starting:
                if self._is_closed:
                    return Outcome(job, INTERRUPTED, 0.0)
                self._process = subprocess.Popen(
                    words,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    pass_fds=[lock.fileno()],  # locked until it has ended, whatever becomes of the search
                    preexec_fn=_end_with_the_search,
                )
            status = self._process.wait()
        error = None if status == 0 else f"The run ended with status {status}. {job.folder / 'log'} says why."
        return Outcome(job, error, time.monotonic() - begin)

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


def _locks(file: TextIO) -> bool:
    """Whether nobody else trains there, when one whose search was killed has had the time to save its step."""
    import fcntl  # not on Windows, where the rest of embedlab is to be imported

    deadline = time.monotonic() + SECONDS_TO_END
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        else:
            return True


def _end_with_the_search() -> None:
    """In the new process: has the kernel send it SIGINT when the search is killed, so that it saves its step and ends.

    Where the kernel is not Linux's, the run goes on to its end.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
