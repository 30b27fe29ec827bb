"""What counting FLOPs costs a training step, on the smallest rung, where a step is shortest: on one rank and on two.

    OMP_NUM_THREADS=1 python benchmarks/flop_counter.py

Trains the quickstart's model and data from ../shared/ladder/r0. Blocks of ``log_every_n_steps`` steps alternate, one
counted and one not, so that each counted block holds one step that logs the counts; the medians of the blocks are
compared. Beside that, the time inside the counting itself is taken, which no noise of the machine hides: the account,
with its sum over ranks, the executed count and the callback with its logging.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from embedlab.cli.commands import main as embedlab
from embedlab.training.callbacks.flop_counter import FlopCounter
from embedlab.training.meter import FlopMeter

RESULTS = Path(__file__).parent / "results"
BLOCK = 10  # steps: the default of trainer.log_every_n_steps
BLOCKS = 26  # the first two warm caches up


class EverySecondBlock(Callback):
    """Turns the counting off in every second block, and times both kinds."""

    seconds: dict[bool, list[float]]
    counting: list[float]

    def __init__(self) -> None:
        EverySecondBlock.seconds = {True: [], False: []}
        EverySecondBlock.counting = [0.0] * BLOCKS
        self._profile: Any = None
        self._execution: Any = None
        self._since = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        meter = pl_module.flop_meter
        self._profile, self._execution = meter.profile, meter._execution
        timed(FlopMeter, "executed", trainer)
        timed(FlopMeter, "count", trainer)
        timed(FlopCounter, "on_train_batch_end", trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step % BLOCK:
            return
        now, block = time.perf_counter(), trainer.global_step // BLOCK
        if block > 2:
            EverySecondBlock.seconds[counts(block - 1)].append(now - self._since)
        self._since = now
        pl_module.flop_meter.profile = self._profile if counts(block) else None
        pl_module.flop_meter._execution = self._execution if counts(block) else None


def counts(block: int) -> bool:
    return block % 2 == 0


def timed(owner: type, name: str, trainer: Trainer) -> None:
    """Adds up the time inside a function by block."""
    function: Callable[..., Any] = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        start, step = time.perf_counter(), trainer.fit_loop.epoch_loop.total_batch_idx
        try:
            return function(*args, **kwargs)
        finally:
            EverySecondBlock.counting[min(step // BLOCK, BLOCKS - 1)] += time.perf_counter() - start

    setattr(owner, name, wrapped)


def measure(ranks: int, result: Path) -> None:
    """One run on so many ranks; Lightning starts this script again for the second, with the same arguments."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--output", folder, "--model.backbone.path", "../shared/ladder/r0", "--trainer.max_epochs", "null"]
        options += ["--trainer.max_steps", str(BLOCKS * BLOCK + 1), "--data.validation_fraction", "0"]
        options += ["--trainer.callbacks", "null", "--trainer.callbacks+", f"{__name__}.EverySecondBlock"]
        options += ["--trainer.accelerator", "cpu", "--trainer.devices", str(ranks)]
        options += ["--trainer.log_every_n_steps", str(BLOCK)]
        options += ["--trainer.strategy", "ddp"] if ranks > 1 else []
        embedlab(["fit", "--config", "configs/quickstart.yaml", *options])
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return
    counted, plain = (statistics.median(EverySecondBlock.seconds[kind]) / BLOCK for kind in (True, False))
    inside = statistics.median(
        s / BLOCK for block, s in enumerate(EverySecondBlock.counting) if block >= 2 and counts(block)
    )
    values = {
        "ranks": ranks,
        "blocks": {"counted": len(EverySecondBlock.seconds[True]), "not counted": len(EverySecondBlock.seconds[False])},
        "seconds_a_step": {"counted": counted, "not counted": plain},
        "ratio": counted / plain,
        "seconds_inside_the_counting": inside,
        "share_inside_the_counting": inside / plain,
    }
    result.write_text(json.dumps(values))
    print(
        f"{ranks} rank{'s' * (ranks > 1)}: a step takes {1e3 * counted:.1f} ms counted and {1e3 * plain:.1f} ms not "
        f"(ratio {counted / plain:.4f}); {1e3 * inside:.2f} ms of it, {inside / plain:.2%}, are inside the counting."
    )


def main() -> None:
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for ranks in (1, 2):
            path = Path(folder) / f"{ranks}.json"
            subprocess.run([sys.executable, __file__, str(ranks), str(path)], check=True)
            runs.append(json.loads(path.read_text()))
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "versions": {name: version(name) for name in ("embedlab", "torch", "transformers", "lightning")},
        "command": "OMP_NUM_THREADS=1 python benchmarks/flop_counter.py",
        "steps_a_block": BLOCK,
        "runs": runs,
    }
    (RESULTS / "flop_counter.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(int(sys.argv[1]), Path(sys.argv[2]))
    else:
        main()
