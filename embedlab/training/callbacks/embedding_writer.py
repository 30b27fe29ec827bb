"""Writes the embeddings of ``embedlab predict`` to disk as one array, in the order of the texts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from embedlab.errors import ConfigError
from embedlab.files import UNFINISHED, cannot_write, sync_folder
from embedlab.training.callbacks.base import RunCallback

UNTRAINED = (
    "`embedlab predict` has no checkpoint, so it would encode with the backbone as it was before training. Add "
    "--ckpt_path last with the run's --output, or --ckpt_path with the path of a checkpoint."
)


class EmbeddingWriter(RunCallback, BasePredictionWriter):
    """Write ``embeddings.npy`` into the output folder: shape (texts, dim), float32, rows of unit norm.

    Every rank writes its rows into one memory-mapped file, so that memory does not limit the number of texts. The file
    gets its final name when all rows are written.
    """

    def __init__(self) -> None:
        super().__init__("batch")
        self._array: np.memmap[Any, np.dtype[np.float32]] | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Create the file on rank zero, and open it on all ranks.

        Raises:
            ConfigError: If the model is not trained, or the file exists already or cannot be written.
        """
        module = self.module(trainer)
        assert module.encoder is not None
        if not module.is_trained:
            raise ConfigError(UNTRAINED)
        path, unfinished = self.path(trainer), self._unfinished(trainer)
        if trainer.strategy.broadcast(path.exists()):
            raise ConfigError(f"{path} exists already. Choose another folder with --output, or move the file away.")
        dimension = module.encoder.dimension()
        failure: ConfigError | None = None
        if trainer.is_global_zero:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                shape = (self.data(trainer).num_predicted_texts, dimension)
                np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.float32, shape=shape).flush()
                _reserve(unfinished)
            except OSError as error:
                unfinished.unlink(missing_ok=True)
                failure = cannot_write(path, error)
        failure = trainer.strategy.broadcast(failure)
        if failure is not None:
            raise failure
        self._array = np.lib.format.open_memmap(unfinished, mode="r+")

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: tuple[Tensor, Tensor],
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write the embeddings of one chunk to their rows."""
        assert self._array is not None
        rows_B, embeddings_BD = prediction
        self._array[rows_B.cpu().numpy()] = embeddings_BD.float().cpu().numpy()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Flush the file to the disk, give it its final name, and print its path."""
        assert self._array is not None
        self._array.flush()
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            path = self.path(trainer)
            self._unfinished(trainer).replace(path)
            sync_folder(path.parent)
            print(
                f"Wrote {self._array.shape[0]} embeddings of {self._array.shape[1]} dimensions to {self.path(trainer)}."
            )

    def _unfinished(self, trainer: Trainer) -> Path:
        path = self.path(trainer)
        return path.with_name(path.name + UNFINISHED)

    @staticmethod
    def path(trainer: Trainer) -> Path:
        """Return the path of the array's file."""
        return Path(trainer.default_root_dir) / "embeddings.npy"


def _reserve(path: Path) -> None:
    """Reserve the disk space of a sparse file, because on a full disk a write to mapped memory kills the process.

    Raises:
        OSError: If the disk is too full.
    """
    with path.open("r+b") as file, suppress(AttributeError):  # not every system has posix_fallocate
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
