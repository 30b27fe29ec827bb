"""Defines which options identify a run, so that a resumed run cannot silently become another run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer

from embedlab.data.datamodule import PairDataModule
from embedlab.training.module import EmbeddingModule

SCHEDULE = "model.schedule"
"""Name of the only option of an identity in which a branch may differ from its trunk."""

Identity = Mapping[str, str | int | float | None]
"""Names and values of options, or of results of options (for example a fingerprint of the data)."""


def identity_of(trainer: Trainer, module: EmbeddingModule) -> Identity:
    """Return everything that the steps of a run depend on, except the length of the run.

    The division of a batch over chunks, ranks and data workers is left out, because it does not change the result. The
    weights of the backbone are left out too, because the module refuses a checkpoint that was trained on other weights.
    """
    data: PairDataModule = trainer.datamodule  # type: ignore[attr-defined]
    backbone, optimizer = module.backbone_config, module.optimizer_config
    method = module.run_config.get("model", {}).get("method", {}).get("init_args", {})
    return {
        "data.train": data.sources_fingerprint(),
        "data.validation_fraction": data.validation_fraction,
        "data.test_fraction": data.test_fraction,
        "data.candidates": data.candidates,
        "data.batch_size": data.batch_size,
        "data.max_length": data.max_length,
        "seed_everything": module.seed,
        "model.backbone.dtype": backbone.dtype,
        "model.backbone.attention_direction": backbone.attention_direction,
        "model.pooling": module.pooling,
        "model.method": type(module.method).__name__,
        "options of model.method": json.dumps(method, sort_keys=True, default=str),
        "model.loss": f"{type(module.loss).__name__}({module.loss.extra_repr()})",
        "model.optimizer.learning_rate": module.learning_rate,
        "model.optimizer.weight_decay": optimizer.weight_decay,
        "model.optimizer.decay_vectors": optimizer.decay_vectors,
        "model.optimizer.betas": str(tuple(optimizer.betas)),
        "model.optimizer.eps": optimizer.eps,
        "model.optimizer.clip": optimizer.clip,
        "model.optimizer.states": optimizer.states,
        "trainer.precision": str(trainer.precision),
        SCHEDULE: f"{type(module.schedule).__name__}({_arguments(module.schedule)})",
    }


def differences(before: Identity, now: Identity) -> list[str]:
    """Return a line for each option in which two runs differ. Options that ``before`` lacks are skipped.

    >>> differences({"data.batch_size": 16, "data.train": "5d41"}, {"data.batch_size": 32, "data.train": "7d79"})
    ['data.batch_size was 16 and is 32', 'data.train has other pairs, prompts or weights of sources']
    """
    found = []
    for name, value in now.items():
        if name not in before or before[name] == value:
            continue
        if name in _FINGERPRINTS:
            found.append(f"{name} {_FINGERPRINTS[name]}")
        else:
            found.append(f"{name} was {before[name]} and is {value}")
    return found


_FINGERPRINTS = {
    "data.train": "has other pairs, prompts or weights of sources",
}


def _arguments(value: Any) -> str:
    return ", ".join(f"{name}={argument!r}" for name, argument in sorted(vars(value).items()))
