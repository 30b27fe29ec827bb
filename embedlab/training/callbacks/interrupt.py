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

    def watch(self) -> None:
        """Only remember signals from here on, where they can be handled: in a process's main thread."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            before = signal.getsignal(number)
            if number == getattr(signal, "SIGHUP", None) and before == signal.SIG_IGN:
                continue  # nohup asks to outlive the terminal
            self._before[number] = before
            signal.signal(number, self._remember)

    def release(self) -> None:
        """Handle the signals as before."""
        while self._before:
            number, before = self._before.popitem()
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
        if self._received:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self._received = number
        again = " Ctrl-C again stops at once and may lose it." if number == signal.SIGINT else ""
        # Not by print: the signal may have come in the middle of one, which cannot be entered twice.
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"Stopping after this step.{again}\n".encode())


def keep_off(trainer: Trainer) -> None:
    """Let Lightning install no handler of signals.

    Its own lets a rank wait inside the handler for the others, which may never come, and on SLURM saves in the middle
    of a step.
    """
    trainer._signal_connector.register_signal_handlers = _nothing  # type: ignore[method-assign]


def _nothing() -> None:
    """Stands for what is not to be done."""
