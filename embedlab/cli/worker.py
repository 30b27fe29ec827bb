"""`embedlab worker`: trains one run after another in one process, so that a search waits once for what is imported.

A search starts it and writes a line of JSON for each run to its standard input; it answers each with a line of JSON.
What a run prints goes to the run's own log.
"""

from __future__ import annotations

import gc
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import torch

from embedlab.cli.training import train
from embedlab.errors import EmbedLabError

_SECONDS_TO_END = 300.0  # that a run whose search was killed has to finish its step and save it


def worker(arguments: Sequence[str]) -> None:
    """Serves runs until its input ends."""
    # What is started in the background of a shell has SIGINT ignored, and so have its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints between two runs is no answer
    runs = _Runs()
    _answer(answers, {"devices": torch.cuda.device_count()})
    while (run := runs.next()) is not None:
        begin = time.monotonic()
        error = _error_of(run)
        runs.ended()
        _answer(answers, {"error": error, "seconds": time.monotonic() - begin})
        if error == INTERRUPTED:
            return


INTERRUPTED = "interrupted"
"""The error of a run that was asked to stop, and saved what it had."""


class _Runs:
    """The lines of standard input. Where they end while a run is under way, nobody waits for it: it saves and ends."""

    def __init__(self) -> None:
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._changing = threading.Lock()
        self._is_busy = False
        self._has_ended = False
        # Not by sys.stdin: a data loader's process, which is forked, closes that, and would wait for the read to end.
        self._input = os.fdopen(os.dup(sys.stdin.fileno()))
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._input:
            self._lines.put(line)
        with self._changing:
            self._has_ended = True
            self._lines.put("")
            if self._is_busy:
                os.kill(os.getpid(), signal.SIGINT)

    def next(self) -> dict[str, Any] | None:
        """The next run; None if there is none any more."""
        try:
            line = self._lines.get()
        except KeyboardInterrupt:
            return None
        with self._changing:
            if self._has_ended:
                return None
            self._is_busy = True
        run: dict[str, Any] = json.loads(line)
        return run

    def ended(self) -> None:
        """The run is over: nobody has to be interrupted."""
        with self._changing:
            self._is_busy = False


def _error_of(run: dict[str, Any]) -> str | None:
    """Trains; what went wrong, or None."""
    folder = Path(run["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):  # of Linux: the peak of this process's memory is to be that of this run
        Path("/proc/self/clear_refs").write_text("5")
    with _printing_to(folder / "log"):
        try:
            # A run whose search was killed may still be saving its last step.
            train(["fit", *run["arguments"]], seconds_to_wait=_SECONDS_TO_END)
        except EmbedLabError as error:
            return f"{type(error).__name__}: {error}"
        except (KeyboardInterrupt, SystemExit):
            return INTERRUPTED
        except Exception as error:
            traceback.print_exc()
            return f"{type(error).__name__}: {error}"
        finally:
            gc.collect()  # a trainer and its model hold each other
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
    return None


@contextmanager
def _printing_to(log: Path) -> Iterator[None]:
    """Output of Python and of libraries, appended to a file."""
    with log.open("a", encoding="utf-8") as file:
        before = [os.dup(stream.fileno()) for stream in (sys.stdout, sys.stderr)]
        try:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
                os.dup2(file.fileno(), stream.fileno())
            yield
        finally:
            for stream, original in zip((sys.stdout, sys.stderr), before, strict=True):
                stream.flush()
                os.dup2(original, stream.fileno())
                os.close(original)


def _answer(answers: TextIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()
