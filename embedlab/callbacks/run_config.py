"""The configuration of a run beside its results: in its folder, in its checkpoints and in TensorBoard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

from embedlab.module import EmbeddingModule


class RunConfig(SaveConfigCallback):
    """Writes ``config.yaml`` into the run's folder, and hyperparameters and the whole text to TensorBoard."""

    _written: Path | None = None

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called by Lightning once, on rank zero, before the first step."""
        text = self.parser.dump(self.config, skip_none=False)
        for logger in trainer.loggers:
            logger.log_hyperparams(dict(_flat(yaml.safe_load(text))))
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("config", f"```yaml\n{text}\n```")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives the module what its checkpoints say about how to build it again."""
        assert isinstance(pl_module, EmbeddingModule)
        config = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        model = config["model"] | {"seed": pl_module.seed}  # linked to seed_everything, so not in the dump
        pl_module.run_config = {"model": model, "data": config["data"]}
        if stage == "fit":  # measuring a run leaves its configuration as it is
            self.config = self.config.clone()
            self.config.ckpt_path = None
            super().setup(trainer, pl_module, stage)
            assert trainer.log_dir is not None
            self._written = Path(trainer.log_dir) / self.config_filename

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Gives the folder free again if not one step was taken: corrected, the same command can use it."""
        if self._written is not None and trainer.global_step == 0 and trainer.is_global_zero:
            self._written.unlink(missing_ok=True)


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}/")
        elif isinstance(value, list):
            yield f"{prefix}{key}", str(value)
        else:
            yield f"{prefix}{key}", value
