"""Remembers signals that ask a run to end, until all of its processes have finished the current step."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

import torch
from lightning.pytorch import Trainer

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))
"""Signals of Ctrl-C, of schedulers and shutdowns, of a closed terminal, and of SLURM's warning before a job's end."""


class Interrupt:
    """Remember the first signal that asks a run to end.

    A further Ctrl-C stops the run at once. After ``release``, the previous handlers handle the signals again.
    """

    def __init__(self) -> None:
        self._received = 0
        self._before: dict[int, Any] = {}

    def watch(self) -> None:
        """Remember signals from here on. In any but the main thread, where Python cannot handle signals, do nothing."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            before = signal.getsignal(number)
            if number == getattr(signal, "SIGHUP", None) and before == signal.SIG_IGN:
                continue  # nohup asks that the process outlives its terminal
            self._before[number] = before
            signal.signal(number, self._remember)

    def release(self) -> None:
        """Give the signals back to their previous handlers."""
        while self._before:
            number, before = self._before.popitem()
            if signal.getsignal(number) == self._remember:
                signal.signal(number, before if before is not None else signal.SIG_DFL)

    def agreed(self, trainer: Trainer) -> int:
        """Return the largest number of a signal that a process of the run has received, or 0 if there was no signal.

        All processes have to call this at the same point, and all get the same result.
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
        again = " Another Ctrl-C stops at once and may lose the step." if number == signal.SIGINT else ""
        # os.write, because the signal may have interrupted a print, and print cannot be entered twice.
        said = f"Stopping after the step, or the part of an evaluation, that is in progress.{again}\n"
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, said.encode())


def keep_off(trainer: Trainer) -> None:
    """Prevent Lightning from installing handlers of signals.

    Inside Lightning's own handler, a rank waits for the other ranks, which may never come. On SLURM, that handler saves
    a checkpoint in the middle of a step.
    """
    trainer._signal_connector.register_signal_handlers = _nothing  # type: ignore[method-assign]


def _nothing() -> None:
    """Do nothing, in place of Lightning's function."""
