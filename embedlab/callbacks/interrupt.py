"""Ctrl-C without loss: the step that is under way is finished before anything stops."""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any


class Interrupt:
    """Remembers a first Ctrl-C; a second one stops at once."""

    def __init__(self) -> None:
        self.is_asked_for = False
        self._before: Any = None

    def watch(self) -> None:
        """From here on Ctrl-C only asks, where signals can be handled: in a process's main thread."""
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._ask)

    def release(self) -> None:
        """Ctrl-C does again what it did before."""
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None

    def _ask(self, *_: Any) -> None:
        self.is_asked_for = True
        self.release()
        print("Stopping after this step. Ctrl-C again stops at once and may lose it.", file=sys.stderr, flush=True)
