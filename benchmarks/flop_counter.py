"""What counting FLOPs costs a training step, on the smallest rung, where a step is shortest.

    python benchmarks/flop_counter.py

Trains the quickstart's model and data from ../shared/ladder/r0. Every second step is not counted: the two kinds
alternate in one run, and their medians are compared. Beside that, the time inside the counting itself is taken, which
no noise of the machine hides: the account, the executed count and the callback with its logging.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from embedlab.callbacks.flop_counter import FlopCounter
from embedlab.cli import main as embedlab
from embedlab.flop_execution import ExecutionCost
from embedlab.module import EmbeddingModule

RESULTS = Path(__file__).parent / "results"
STEPS = 301
WARM_UP = 20


class EverySecondStep(Callback):
    """Turns the counter off in odd steps, and times both kinds."""

    seconds: dict[bool, list[float]]
    counting: dict[int, float]

    def __init__(self) -> None:
        EverySecondStep.seconds = {True: [], False: []}
        EverySecondStep.counting = defaultdict(float)
        self._profile: Any = None
        self._since = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._profile = pl_module.flop_profile
        self._since = time.perf_counter()
        timed(EmbeddingModule, "_count", trainer)
        timed(ExecutionCost, "of", trainer)
        timed(FlopCounter, "on_train_batch_end", trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        now = time.perf_counter()
        if trainer.global_step > WARM_UP:
            EverySecondStep.seconds[trainer.global_step % 2 == 1].append(now - self._since)  # of the step before
        self._since = now
        pl_module.flop_profile = self._profile if trainer.global_step % 2 == 0 else None


def timed(owner: type, name: str, trainer: Trainer) -> None:
    """Adds up the time inside a function by step."""
    function: Callable[..., Any] = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        start, step = time.perf_counter(), trainer.fit_loop.epoch_loop.total_batch_idx
        try:
            return function(*args, **kwargs)
        finally:
            EverySecondStep.counting[step] += time.perf_counter() - start

    setattr(owner, name, wrapped)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        options = ["--output", folder, "--model.backbone.path", "../shared/ladder/r0", "--trainer.max_epochs", "null"]
        options += ["--trainer.max_steps", str(STEPS), "--data.validation_fraction", "0", "--trainer.callbacks", "null"]
        options += ["--trainer.callbacks+", f"{__name__}.EverySecondStep", "--trainer.accelerator", "cpu"]
        embedlab(["fit", "--config", "configs/quickstart.yaml", *options])
    counted, plain = (statistics.median(EverySecondStep.seconds[kind]) for kind in (True, False))
    inside = statistics.mean([s for step, s in EverySecondStep.counting.items() if step > WARM_UP and step % 2 == 0])
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "versions": {name: version(name) for name in ("embedlab", "torch", "transformers", "lightning")},
        "command": "python benchmarks/flop_counter.py",
        "steps": {"counted": len(EverySecondStep.seconds[True]), "not counted": len(EverySecondStep.seconds[False])},
        "seconds_a_step": {"counted": counted, "not counted": plain},
        "ratio": counted / plain,
        "seconds_inside_the_counting": inside,
        "share_inside_the_counting": inside / plain,
    }
    (RESULTS / "flop_counter.json").write_text(json.dumps(result, indent=2) + "\n")
    print(
        f"A step takes {1e3 * counted:.1f} ms counted and {1e3 * plain:.1f} ms not (ratio {counted / plain:.4f}); "
        f"{1e3 * inside:.2f} ms of it, {inside / plain:.2%}, are inside the counting."
    )


if __name__ == "__main__":
    main()
