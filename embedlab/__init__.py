"""embedlab: compute-optimal training of text-embedding models from decoder-only language models.

Each public name is imported when it is first used, so that code without torch does not wait for the import of torch.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "embedlab.model.backbone": ["BackboneConfig"],
    "embedlab.data.datamodule": ["PairDataModule"],
    "embedlab.data.sources": ["PairSource"],
    "embedlab.model.encoder": ["Encoder"],
    "embedlab.errors": [
        "ConfigError",
        "DataError",
        "DivergenceError",
        "EmbedLabError",
        "PluginError",
        "RecordError",
        "TrainingError",
    ],
    "embedlab.flops.profile": ["observe"],
    "embedlab.flops": ["FlopProfile"],
    "embedlab.losses": ["AllPairsInfoNCE", "ContrastiveLoss", "InfoNCE", "SymmetricInfoNCE"],
    "embedlab.method": ["FineTuningMethod"],
    "embedlab.training.module": ["EmbeddingModule"],
    "embedlab.training.optimizer": ["OptimizerConfig"],
    "embedlab.training.schedule": ["Constant", "Schedule", "WarmupCosine", "WarmupStableDecay"],
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'embedlab' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(_HOME)
