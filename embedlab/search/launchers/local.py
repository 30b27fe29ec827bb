"""This machine: a process for each device, which stays and trains one trial after another."""

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
    """Persistent workers, each with a GPU of its own, or with its share of the cores where there is none.

    Args:
        num_workers: by default one for each GPU, and a single one where there is none.
    """

    def __init__(self, num_workers: int | None = None) -> None:
        if num_workers is not None and num_workers < 1:
            raise ConfigError(f"num_workers must be at least 1, got {num_workers}. Leave it out for one for each GPU.")
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
    """A process of ``embedlab worker``, started anew if it dies."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment
        self._is_closed = False
        self._start()

    def _start(self) -> None:
        # A session of its own: Ctrl-C reaches the search alone, which then asks its workers.
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
                f"A worker ended with status {self._process.wait()} before its first trial. `embedlab worker` says why."
            )
        self.num_devices: int = ready["devices"]

    def _answer(self) -> dict[str, Any] | None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer: dict[str, Any] | None = json.loads(line) if line else None
        return answer

    def run(self, job: Job) -> JobResult:
        """Trains one job."""
        begin = time.monotonic()
        if self._process.poll() is not None and not self._is_closed:
            self._start()
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps({"arguments": job.arguments, "folder": str(job.folder)}) + "\n")
            self._process.stdin.flush()
            answer = self._answer()
        except BrokenPipeError:  # it died meanwhile
            answer = None
        except ValueError:  # it was closed meanwhile, or what it says cannot be understood
            answer = None
            if not self._is_closed:
                self._process.kill()
        if answer is not None:
            return JobResult(job, answer["error"], time.monotonic() - begin)
        status = self._process.wait()
        killed = ", which is what a machine without memory left does" if status == -signal.SIGKILL else ""
        return JobResult(job, f"The worker ended with status {status}{killed}.", time.monotonic() - begin)

    def ask_to_stop(self) -> None:
        """Has the run end after its step, and the process after the run, as where the search is killed."""
        self._is_closed = True
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has died
            self._process.stdin.close()

    def stop(self) -> None:
        """Asks the process to stop, waits until it has, and ends it if it takes too long."""
        self.ask_to_stop()
        try:
            self._process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
