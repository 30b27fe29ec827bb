"""Launcher on the local machine with one persistent process per device, which trains one trial after another."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any

from embedlab.errors import ConfigError, TrainingError
from embedlab.search.launchers.launcher import Job, JobResult
from embedlab.search.launchers.threaded import SECONDS_TO_END, ThreadedLauncher


class LocalWorkers(ThreadedLauncher):
    """Trains trials in persistent worker processes. Each worker uses one GPU, or a share of the cores without GPUs.

    Args:
        num_workers: Number of worker processes. By default, one worker per GPU, or one worker without GPUs. With more
            workers than GPUs, several workers share a GPU.

    Raises:
        ConfigError: If the number of workers is below 1.
        TrainingError: If a worker process does not start.
    """

    def __init__(self, num_workers: int | None = None) -> None:
        if num_workers is not None and num_workers < 1:
            raise ConfigError(
                f"num_workers must be at least 1, got {num_workers}. Leave it out for one worker per GPU."
            )
        first = _Worker({})
        devices = first.num_devices
        count = num_workers or max(1, devices)
        environments: list[dict[str, str]] = [
            {"CUDA_VISIBLE_DEVICES": str(n % devices)} if devices else {} for n in range(count)
        ]
        if not devices and count > 1 and "OMP_NUM_THREADS" not in os.environ:
            threads = str(max(1, len(os.sched_getaffinity(0)) // count))
            environments = [{"OMP_NUM_THREADS": threads}] * count
        if environments == [{}]:
            workers = [first]
        else:
            first.stop()
            workers = [_Worker(environment) for environment in environments]
        self._workers = workers
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in workers:
            self._idle.put(worker)
        super().__init__(count)

    def _run(self, job: Job) -> JobResult:
        worker = self._idle.get()
        try:
            return worker.run(job)
        finally:
            self._idle.put(worker)

    def _stop(self) -> None:
        for worker in self._workers:
            worker.ask_to_stop()
        for worker in self._workers:
            worker.stop()


class _Worker:
    """A process of ``embedlab worker``. If the process dies, the next job starts a new process."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment
        self._is_closed = False
        self._start()

    def _start(self) -> None:
        # In a session of its own, the worker gets no Ctrl-C: only the search does, and then asks its workers to stop.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "embedlab", "worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | self._environment,
            start_new_session=True,
        )
        ready = self._answer()
        if ready is None:
            raise TrainingError(
                f"A worker ended with status {self._process.wait()} before its first trial. Run "
                "`embedlab worker` to see the reason."
            )
        self.num_devices: int = ready["devices"]

    def _answer(self) -> dict[str, Any] | None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer: dict[str, Any] | None = json.loads(line) if line else None
        return answer

    def run(self, job: Job) -> JobResult:
        """Train one job, and return its result when it has ended."""
        begin = time.monotonic()
        if self._process.poll() is not None and not self._is_closed:
            self._start()
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps({"arguments": job.arguments, "folder": str(job.folder)}) + "\n")
            self._process.stdin.flush()
            answer = self._answer()
        except BrokenPipeError:  # the process died in the meantime
            answer = None
        except ValueError:  # the pipe was closed in the meantime, or the answer is not valid JSON
            answer = None
            if not self._is_closed:
                self._process.kill()
        if answer is not None:
            return JobResult(job, answer["error"], time.monotonic() - begin)
        status = self._process.wait()
        killed = ", which usually means that the machine ran out of memory" if status == -signal.SIGKILL else ""
        return JobResult(job, f"The worker ended with status {status}{killed}.", time.monotonic() - begin)

    def ask_to_stop(self) -> None:
        """Close the input of the process, so that it ends after the current step of its run."""
        self._is_closed = True
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # the process has died
            self._process.stdin.close()

    def stop(self) -> None:
        """Ask the process to stop, wait until it has stopped, and kill it if this takes too long."""
        self.ask_to_stop()
        try:
            self._process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
