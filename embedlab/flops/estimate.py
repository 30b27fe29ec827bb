"""Estimates what a backbone costs under each method and what a budget buys, before weights are loaded or trained."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from embedlab.errors import ConfigError
from embedlab.files import build_once, cache_folder
from embedlab.flops import FlopProfile
from embedlab.flops.memory import MemoryEstimate
from embedlab.flops.meta_device import GroupedProducts
from embedlab.flops.method_key import method_key
from embedlab.flops.profile import observe
from embedlab.method import FineTuningMethod, prepare_backbone
from embedlab.model.backbone import (
    BackboneConfig,
    attention_keeps_scores,
    backbone_without_weights,
    check_positions,
    load_config,
)


@dataclass(frozen=True)
class StepShape:
    """Settings of a run that decide its cost, apart from backbone and method.

    Attributes:
        max_length: Maximum number of tokens per text.
        tokens_per_chunk: Maximum number of tokens per forward pass, padding included.
        optimizer_states: Precision of the optimizer's states, ``32bit`` or ``8bit``.
        precision: Numerical precision, written as in Lightning's ``Trainer(precision=…)``.
        query_tokens: Mean number of tokens per query. The default is the mean of Ziarko et al. 2024,
            arXiv:2406.04165.
        document_tokens: Mean number of tokens per document. The default is the mean of Ziarko et al. 2024,
            arXiv:2406.04165.

    Raises:
        ConfigError: If a mean number of tokens is below 1 or above ``max_length``.
    """

    max_length: int = 128
    tokens_per_chunk: int = 16384
    optimizer_states: Literal["32bit", "8bit"] = "32bit"
    precision: str = "32-true"
    query_tokens: int = 14
    document_tokens: int = 64

    def __post_init__(self) -> None:
        for name, tokens in (("query_tokens", self.query_tokens), ("document_tokens", self.document_tokens)):
            if not 1 <= tokens <= self.max_length:
                raise ConfigError(
                    f"{name} must be a mean length between 1 and {self.max_length} tokens (data.max_length), got "
                    f"{tokens}. Choose a value in this range."
                )

    @property
    def pair(self) -> np.ndarray:
        """Number of tokens of the query and of the document in a pair of mean length, shape (2,)."""
        return np.array([self.query_tokens, self.document_tokens])


@dataclass(frozen=True)
class FlopRow:
    """Cost of training one backbone with one method.

    Attributes:
        backbone: Path of the backbone, or its id on the Hugging Face hub.
        method: Name of the fine-tuning method.
        profile: Cost of the prepared backbone. None if the method does not fit the backbone, or if the backbone does
            not run without weights.
        memory_bytes: Estimate of the minimum peak memory of training, in bytes. None if it cannot be estimated.
        refusal: Reason why there is no profile. Empty if there is one.
    """

    backbone: str
    method: str
    profile: FlopProfile | None
    memory_bytes: int | None
    refusal: str = ""

    def as_dict(self, shape: StepShape, budget: float | None) -> dict[str, Any]:
        """Return the row's numbers for output as JSON.

        ``flops_per_token`` and ``flops_per_token_by_the_paper`` exclude attention. ``flops_per_pair``, and the
        ``pairs`` and ``tokens`` that the budget buys, include attention.

        Args:
            shape: Settings of the run.
            budget: FLOPs to spend. None leaves out ``pairs`` and ``tokens``.
        """
        row: dict[str, Any] = {"backbone": self.backbone, "method": self.method}
        if self.profile is None:
            return row | {"refusal": self.refusal}
        per_pair = self.profile.algorithmic(shape.pair)
        row |= {
            "parameters": self.profile.parameters,
            "nonembedding_parameters": self.profile.nonembedding_parameters,
            "trainable_parameters": self.profile.trainable_parameters,
            "flops_per_token": self.profile.matrices.flops_per_token,
            "flops_per_token_by_the_paper": self.profile.paper_flops_per_token(),
            "flops_per_pair": per_pair,
            "memory_bytes": self.memory_bytes,
            "by_measurement": self.profile.by_measurement,
        }
        if budget is not None:
            pairs = int(budget / per_pair)
            row |= {"budget": budget, "pairs": pairs, "tokens": pairs * int(shape.pair.sum())}
        return row | {"profile": asdict(self.profile)}


def flop_rows(backbone: BackboneConfig, methods: Sequence[FineTuningMethod], shape: StepShape) -> Iterator[FlopRow]:
    """Yield a row for each method with the FLOPs per token and the memory of training a backbone with the method.

    The weights of the backbone are not loaded; its configuration is enough.

    Each row is kept in the cache, unless the backbone's or the method's code cannot be identified.

    Args:
        backbone: Backbone to estimate, and how it is loaded.
        methods: Fine-tuning methods, one row each.
        shape: Settings of the run.

    Raises:
        ConfigError: If the backbone does not exist, or if ``shape.max_length`` exceeds the backbone's positions.
        PluginError: If a layer computes in a way that cannot be observed.
    """
    check_positions(backbone, shape.max_length)
    for method in methods:
        key = _key(backbone, method, shape)
        if key is None:
            yield _row(backbone, method, shape)
            continue

        def build(folder: Path, method: FineTuningMethod = method) -> None:
            row = _row(backbone, method, shape)
            (folder / "row.json").write_text(json.dumps(asdict(row)), encoding="utf-8")

        folder = build_once(cache_folder() / "flops" / key, build)
        stored = json.loads((folder / "row.json").read_text(encoding="utf-8"))
        if stored["profile"] is not None:
            stored["profile"] = FlopProfile.from_dict(stored["profile"])
        yield replace(FlopRow(**stored), backbone=backbone.path)


def _key(backbone: BackboneConfig, method: FineTuningMethod, shape: StepShape) -> str | None:
    """Return a cache key made of everything that a row depends on. None if the dependencies cannot be determined."""
    if backbone.trust_remote_code:
        return None
    config = load_config(backbone).to_dict()
    return method_key(
        method,
        config={name: value for name, value in config.items() if name != "_name_or_path"},
        backbone=asdict(replace(backbone, path="")),
        shape=[shape.max_length, shape.tokens_per_chunk, shape.optimizer_states, shape.precision],
        versions={name: version(name) for name in ("torch", "transformers", "peft")},
    )


def _row(backbone: BackboneConfig, method: FineTuningMethod, shape: StepShape) -> FlopRow:
    name = type(method).__name__
    with torch.device("meta"):
        model = backbone_without_weights(backbone)
        parameters = list(model.parameters())
        try:
            prepared = prepare_backbone(method, model).train()
        except ConfigError as error:
            return FlopRow(backbone.path, name, None, None, str(error))
    memory = MemoryEstimate(
        prepared,
        model,
        max_length=shape.max_length,
        tokens_per_chunk=shape.tokens_per_chunk,
        precision=shape.precision,
        optimizer_states=shape.optimizer_states,
        gradient_checkpointing=backbone.gradient_checkpointing,
        keeps_scores=attention_keeps_scores(backbone, model),
    )
    with GroupedProducts():
        try:
            profile = observe(prepared, parameters, max_length=shape.max_length, during_longest=memory.watching())
        except RuntimeError as error:
            reason = (
                f"The model cannot run without weights ({error}). `embedlab fit` counts its FLOPs when a run starts."
            )
            return FlopRow(backbone.path, name, None, None, reason)
        if method.backbone_kwargs():  # such a method loads weights in its own format, whose size shapes do not tell
            return FlopRow(backbone.path, name, profile, None)
        return FlopRow(backbone.path, name, profile, memory.bytes())
