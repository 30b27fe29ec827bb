"""Shows the result of a run beside the results that it has to beat, so that the reader can judge it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from embedlab.data.evaluation.bm25 import bm25_metrics
from embedlab.errors import ConfigError, DataError, TrainingError
from embedlab.files import cannot_write, write_whole
from embedlab.training.callbacks.base import RunCallback

METRICS = ("mrr@10", "ndcg@10", "recall@1", "recall@10")
BEFORE, CONTROL, AFTER, BM25 = "backbone before training", "same training from random weights", "after training", "BM25"


class ComparisonTable(RunCallback):
    """Print retrieval metrics of BM25 and of the model before and after training, and write them to ``results.json``.

    The file is in the run's folder.

    Args:
        bm25: Whether to add a row for BM25 on the run's queries and documents.
        random_weights: Whether to add a row for a control: after this run, the backbone's architecture is trained in
            the same way, but from random weights. The row shows what pre-training is worth, and doubles the cost of
            training.
    """

    def __init__(self, *, bm25: bool = True, random_weights: bool = False) -> None:
        self.bm25 = bm25
        self.random_weights = random_weights
        self.before: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the results of the evaluation before training, which a resumed run cannot repeat."""
        return {"before": self.before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the results of the evaluation before training.

        Raises:
            DataError: If the checkpoint holds anything other than names and numbers.
        """
        before = state_dict.get("before")
        if not isinstance(before, dict) or not all(isinstance(value, int | float) for value in before.values()):
            raise DataError(
                f"The checkpoint's results before training are {before!r:.100}. Expected a mapping from names to "
                "numbers."
            )
        self.before = before

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check, before training starts, that the comparison can be made at the end of the run.

        Raises:
            ConfigError: If a run of several processes is to train a control.
        """
        self.module(trainer).is_shown_in_table = True
        if self.random_weights and trainer.world_size > 1:
            raise ConfigError(
                f"ComparisonTable's random_weights trains its control in one process, but this run has "
                f"{trainer.world_size}. Train the control as a separate run with --model.backbone.random_weights true."
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the results of the evaluation before training."""
        module = self.module(trainer)
        if trainer.sanity_checking and not self.before:
            self.before = dict(module.evaluation)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the tables, and write the results.

        Raises:
            ConfigError: If the results cannot be written.
            TrainingError: If the training of the control fails.
        """
        module = self.module(trainer)
        if not trainer.is_global_zero:
            return
        rows = {BEFORE: self.before}
        if self.random_weights:
            rows[CONTROL] = self._train_control(trainer)
        rows[AFTER] = module.evaluation
        tasks = {task.name: task.retrieval for task in module.tasks if task.retrieval is not None}
        if self.bm25:
            rows[BM25] = {
                f"validation/{task}/{name}": value
                for task, sets in tasks.items()
                for name, value in bm25_metrics(sets.query_strings(), sets.document_strings(), sets.relevance).items()
            }
        for task, sets in tasks.items():
            table = Table(
                title=f"{task}: {len(sets.query_strings())} queries, {len(sets.document_strings())} documents"
            )
            table.add_column("")
            for name in METRICS:
                table.add_column(name.replace("mrr", "MRR").replace("ndcg", "nDCG"), justify="right")
            for row, values in rows.items():
                cells = (values.get(f"validation/{task}/{name}") for name in METRICS)
                table.add_row(row, *("–" if value is None else f"{value:.3f}" for value in cells))
            Console().print(table)
        path = Path(trainer.default_root_dir) / "results.json"
        try:
            write_whole(path, json.dumps(rows, indent=2) + "\n")
        except OSError as error:
            raise cannot_write(path, error) from error

    def _train_control(self, trainer: Trainer) -> dict[str, float]:
        """Train the control in a separate process with this run's configuration, and return its evaluation."""
        run = Path(trainer.default_root_dir)
        output = run / "random-weights"
        command = [sys.executable, "-m", "embedlab", "fit", "--config", str(run / "config.yaml")]
        command += ["--output", str(output), "--model.backbone.random_weights", "true", "--trainer.callbacks", "null"]
        command += ["--ckpt_path", "null"]
        print(f"Training the control from random weights in {output}.", flush=True)
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise TrainingError(f"Training the control from random weights failed:\n{result.stderr.strip()}")
        saved = torch.load(output / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)
        evaluation: dict[str, float] = saved["evaluation"]
        return evaluation
