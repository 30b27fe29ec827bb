"""The embeddings of ``embedlab predict`` as one array on disk, in the order of the texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from embedlab.errors import ConfigError
from embedlab.module import EmbeddingModule


class EmbeddingWriter(BasePredictionWriter):
    """Writes ``embeddings.npy`` (texts, dim), float32, unit norm, into the output folder.

    Every rank writes its rows into the same memory-mapped file, so that memory does not limit the texts.
    """

    def __init__(self) -> None:
        super().__init__("batch")
        self._array: np.memmap[Any, np.dtype[np.float32]] | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes the file on rank zero, opens it on all.

        Raises:
            ConfigError: if the file is there.
        """
        assert isinstance(pl_module, EmbeddingModule) and pl_module.encoder is not None
        path = self.path(trainer)
        if trainer.strategy.broadcast(path.exists()):
            raise ConfigError(f"{path} exists. Choose another folder with --output, or move it away.")
        if trainer.is_global_zero:
            path.parent.mkdir(parents=True, exist_ok=True)
            shape = (trainer.datamodule.num_predicted_texts, pl_module.encoder.dimension())  # type: ignore[attr-defined]
            np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape).flush()
        trainer.strategy.barrier()
        self._array = np.lib.format.open_memmap(path, mode="r+")

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
        """Writes one chunk's embeddings to their rows."""
        assert self._array is not None
        rows_B, embeddings_BD = prediction
        self._array[rows_B.cpu().numpy()] = embeddings_BD.float().cpu().numpy()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Brings the file to disk and says where it is."""
        assert self._array is not None
        self._array.flush()
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            print(
                f"Wrote {self._array.shape[0]} embeddings of {self._array.shape[1]} dimensions to {self.path(trainer)}."
            )

    @staticmethod
    def path(trainer: Trainer) -> Path:
        """Where the array stands."""
        return Path(trainer.default_root_dir) / "embeddings.npy"
