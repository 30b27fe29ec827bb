"""The command `embedlab worker`, which trains many runs in one process, so that slow imports happen only once.

A search starts the worker and writes one line of JSON per run to the standard input of the worker. The worker answers
each line with one line of JSON on its standard output. The output of a run goes to the log file of the run.
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
from embedlab.errors import ConfigError, EmbedLabError

_SECONDS_TO_END = 300.0  # maximum time in which the run of a killed search finishes its step and saves it


def worker(arguments: Sequence[str]) -> None:
    """Train the runs that the standard input describes, until the input ends.

    Args:
        arguments: Name of the command and its options, of which there is only --help.

    Raises:
        ConfigError: If there is any other word on the command line.
    """
    if {"-h", "--help"} & set(arguments):
        print("usage: embedlab worker\n")
        print("Train runs that another program describes. `embedlab search` starts workers by itself.\n")
        print(__doc__.partition("\n\n")[2].strip())
        return
    if arguments[1:]:
        raise ConfigError(f"embedlab worker takes no options, got {arguments[1]!r}. Write the runs to its input.")
    # A process that a shell starts in the background ignores SIGINT, and so do its child processes.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # output of libraries must not mix with the answers
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
"""Value of "error" in the answer for a run that was interrupted and saved its state."""


class _Runs:
    """The runs that standard input describes, one per line, read by a thread.

    If the input ends during a run, the search is gone, so the run is interrupted: it saves its state and ends.
    """

    def __init__(self) -> None:
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._changing = threading.Lock()
        self._is_busy = False
        self._has_ended = False
        # A copy of stdin, because a forked process of a data loader closes sys.stdin and would wait for the read.
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
        """Wait for the next run and return it; None if the input has ended."""
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
        """Note that the current run has ended, so that the end of the input interrupts no run."""
        with self._changing:
            self._is_busy = False


def _error_of(run: dict[str, Any]) -> str | None:
    """Train a run and return the error message, or None if the run succeeded.

    Args:
        run: Description of the run: ``folder`` for the log, and ``arguments`` of ``embedlab fit``.
    """
    folder = Path(run["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):  # on Linux: resets the peak memory of the process, so that the peak belongs to this run
        Path("/proc/self/clear_refs").write_text("5")
    with _printing_to(folder / "log"):
        try:
            # Another process may still save the last step of this run, if its search was killed.
            train(["fit", *run["arguments"]], seconds_to_wait=_SECONDS_TO_END)
        except EmbedLabError as error:
            return f"{type(error).__name__}: {error}"
        except (KeyboardInterrupt, SystemExit):
            return INTERRUPTED
        except Exception as error:
            traceback.print_exc()
            return f"{type(error).__name__}: {error}"
        finally:
            gc.collect()  # a trainer and its model refer to each other
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
    return None


@contextmanager
def _printing_to(log: Path) -> Iterator[None]:
    """Append the output of Python and of libraries to a file, until the block ends.

    Args:
        log: Path of the file.
    """
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
