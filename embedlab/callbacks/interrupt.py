"""Signals that ask a run to end, remembered until all of its processes have finished the step that is under way."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

import torch
from lightning.pytorch import Trainer

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))
"""Ctrl-C; what schedulers and shutdowns send; a terminal that is closed; SLURM's warning before a job's end."""


class Interrupt:
    """Remember the first signal that asks for the end of a run.

    A second Ctrl-C stops at once. Whatever handled the signals before handles them again after ``release``.
    """

    def __init__(self) -> None:
        self._received = 0
        self._before: dict[int, Any] = {}
        self._is_watching = False

    def watch(self) -> None:
        """Only remember signals from here on, where they can be handled: in a process's main thread.

        Called again, it takes the place of whatever has installed itself since.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        self._is_watching = True
        for number in SIGNALS:
            now = signal.getsignal(number)
            if now == self._remember or (number == getattr(signal, "SIGHUP", None) and now == signal.SIG_IGN):
                continue  # nohup asks to outlive the terminal
            self._before.setdefault(number, now)
            signal.signal(number, self._remember)

    def release(self) -> None:
        """Handle the signals as before."""
        self._is_watching = False
        for number, before in self._before.items():
            if signal.getsignal(number) == self._remember:
                signal.signal(number, before if before is not None else signal.SIG_DFL)

    def agreed(self, trainer: Trainer) -> int:
        """Return the number of the signal that any of the run's processes has received, or 0.

        All processes have to ask at the same point, and all get the same answer.
        """
        if trainer.world_size == 1:
            return self._received
        own = torch.tensor(self._received, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(own, reduce_op="max"))

    def _remember(self, number: int, _: Any) -> None:
        if not self._is_watching:  # Lightning puts back what it found when it began
            before = self._before.get(number)
            signal.signal(number, before if before is not None else signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if self._received:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self._received = number
        again = " Ctrl-C again stops at once and may lose it." if number == signal.SIGINT else ""
        # Not by print: the signal may have come in the middle of one, which cannot be entered twice.
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"Stopping after this step.{again}\n".encode())


def leave_to_the_system() -> None:
    """Let SIGTERM end the process at once, as where nothing handles it: there is nothing to save.

    Lightning's own handler lets one rank wait for the others, which may never come.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
