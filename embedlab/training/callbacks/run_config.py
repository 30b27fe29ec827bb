"""Stores the configuration of a run beside its results: in its folder, in its checkpoints and in TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

from embedlab.files import cannot_write, write_whole
from embedlab.model.backbone import absolute_path
from embedlab.records.nested import flattened
from embedlab.training.callbacks.base import RunCallback


class RunConfig(RunCallback, SaveConfigCallback):
    """Write ``config.yaml`` into the run's folder, and log hyperparameters and the whole file to TensorBoard."""

    _path: Path | None = None
    _text = ""  # of the file
    _before: str | None = None  # previous text of the file, if the run resumes
    _took_a_step = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the configuration, after other callbacks have had their chance to refuse it."""
        for logger in trainer.loggers:
            values = flattened(yaml.safe_load(self._text), separator="/")
            logger.log_hyperparams({name: _loggable(value) for name, value in values.items()})
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("config", f"```yaml\n{self._text}\n```")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the module the configuration for its checkpoints and, for a fit, write ``config.yaml``.

        Raises:
            ConfigError: If the file cannot be written.
        """
        module = self.module(trainer)
        self.config = self.config.clone()
        backbone = self.config.model.backbone
        backbone.path = absolute_path(backbone.path)  # so that a run can be resumed from any folder
        if stage == "fit":
            self.config.ckpt_path = None
        self._text = self.parser.dump(self.config, skip_none=False)
        config = yaml.safe_load(self._text)
        model = config["model"] | {"seed": module.seed}  # linked to seed_everything, so not in the dump
        # A checkpoint belongs to the very weights that it was trained on, which a rung's name does not tell.
        model["backbone"]["path"] = absolute_path(module.backbone_config.path)
        module.run_config = {"model": model, "data": config["data"]}
        if stage == "fit":  # an evaluation leaves the run's configuration as it is
            if not trainer.is_global_zero:
                return
            path = Path(trainer.default_root_dir) / self.config_filename
            try:
                self._before = path.read_text(encoding="utf-8") if path.exists() else None
                write_whole(path, self._text)
            except OSError as error:
                raise cannot_write(path, error) from error
            self._path = path

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        """Note that a step was taken, after which ``config.yaml`` stays in the folder whatever happens."""
        self._took_a_step = True

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the previous ``config.yaml`` if no step was taken, so that a corrected command can use the folder."""
        if self._path is None or self._took_a_step or not trainer.is_global_zero:
            return
        if self._before is None:
            self._path.unlink(missing_ok=True)
        else:
            write_whole(self._path, self._before)


def _loggable(value: Any) -> Any:
    """Return a value in a form that TensorBoard accepts: a list becomes text."""
    return str(value) if isinstance(value, list) else value
