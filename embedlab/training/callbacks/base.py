"""Base class of embedlab's callbacks: it returns the parts of a run by type, so that no callback has to check types."""

from __future__ import annotations

from lightning.pytorch import Callback, Trainer

from embedlab.data.datamodule import PairDataModule
from embedlab.training.meter import FlopMeter
from embedlab.training.module import EmbeddingModule


class RunCallback(Callback):
    """A callback of a run of ``EmbeddingModule`` on ``PairDataModule``."""

    @staticmethod
    def module(trainer: Trainer) -> EmbeddingModule:
        """Return the module that the trainer runs."""
        module = trainer.lightning_module
        assert isinstance(module, EmbeddingModule), f"embedlab's callbacks need EmbeddingModule, got {type(module)}"
        return module

    @staticmethod
    def data(trainer: Trainer) -> PairDataModule:
        """Return the data module that the trainer runs on."""
        data = trainer.datamodule  # type: ignore[attr-defined]  # Lightning attaches it
        assert isinstance(data, PairDataModule), f"embedlab's callbacks need PairDataModule, got {type(data)}"
        return data

    @staticmethod
    def meter(trainer: Trainer) -> FlopMeter:
        """Return the meter that counts the run's FLOPs."""
        return RunCallback.module(trainer).flop_meter
