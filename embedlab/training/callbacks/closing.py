"""Prints what to know when a run has ended: its quality on held-out texts, its checkpoint and how to export it."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer

from embedlab.training.callbacks.base import RunCallback

_SHOWN = ("loss", "mrr@10", "recall@10", "spearman")


class ClosingLines(RunCallback):
    """Print a line per evaluation set, unless a table shows the results, and the command that exports the model."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the lines, after the last checkpoint has been written."""
        module = self.module(trainer)
        if not trainer.is_global_zero:
            return
        if not module.is_shown_in_table:
            for task in module.tasks:
                found = {name: module.evaluation.get(f"validation/{task.name}/{name}") for name in _SHOWN}
                values = [f"{name} {value:.3f}" for name, value in found.items() if value is not None]
                if values:
                    print(f"{task.name}: {'  '.join(values)}")
        last = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
        if last.exists():
            print(f"Trained checkpoint: {last}. Export it with: embedlab export --checkpoint {last} --output MODEL")
