"""What a suite of backbones costs under each method, and what a budget buys, before anything is trained or loaded."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import PreTrainedModel

from embedlab import flop_observer, flop_profile, flops
from embedlab.backbone import BackboneConfig, backbone_without_weights, load_config, max_positions
from embedlab.data.cache import build_once, cache_folder
from embedlab.errors import ConfigError
from embedlab.flop_profile import observe
from embedlab.flops import FlopProfile
from embedlab.method import FineTuningMethod, prepare_backbone
from embedlab.replay import GraphBytes

_FORMAT = 1  # of the cache
_WIDTH = 150  # where there is no terminal that has one
_ADAM_MOMENTS = {"32bit": 8, "8bit": 2}  # bytes a trained parameter


@dataclass(frozen=True)
class Shape:
    """What of a run decides its cost, besides backbone and method.

    Attributes:
        max_length: tokens of a text, at most.
        tokens_per_chunk: padded tokens a forward pass, at most.
        optimizer_states: ``32bit`` or ``8bit``.
        query_tokens: of a mean pair's query.
        document_tokens: of its document.
    """

    max_length: int = 128
    tokens_per_chunk: int = 16384
    optimizer_states: str = "32bit"
    query_tokens: int = 14
    document_tokens: int = 64

    @property
    def pair(self) -> np.ndarray:
        """The lengths of a mean pair's texts."""
        return np.array([self.query_tokens, self.document_tokens])


@dataclass(frozen=True)
class FlopRow:
    """One backbone under one method.

    Attributes:
        backbone: path or id.
        method: name.
        profile: its cost; None if the method does not fit the backbone.
        memory_bytes: an estimate of the least peak memory of training: weights, their gradients, the optimiser's
            moments, and twice the graph of one full chunk.
        refusal: why the method does not fit.
    """

    backbone: str
    method: str
    profile: FlopProfile | None
    memory_bytes: int
    refusal: str = ""

    def as_dict(self, shape: Shape, budget: float | None) -> dict[str, Any]:
        """The row's numbers for JSON.

        ``flops_per_token`` and ``flops_per_token_by_the_paper`` leave attention out, ``flops_per_pair`` and what a
        budget buys do not.
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


def flop_rows(backbone: BackboneConfig, methods: Sequence[FineTuningMethod], shape: Shape) -> Iterator[FlopRow]:
    """A row for each method, from the backbone's configuration alone, kept in the cache.

    Raises:
        ConfigError: if there is no such backbone, or its texts would be longer than it has positions for.
        PluginError: if a layer computes in a way that cannot be seen.
    """
    config = load_config(backbone)
    positions = max_positions(config)
    if positions is not None and shape.max_length > positions:
        raise ConfigError(
            f"data.max_length is {shape.max_length}, and '{backbone.path}' has positions for {positions} tokens. "
            f"Set data.max_length to {positions} or less."
        )
    for method in methods:

        def build(folder: Path, method: FineTuningMethod = method) -> None:
            row = _row(backbone, method, shape)
            (folder / "row.json").write_text(json.dumps(asdict(row)), encoding="utf-8")

        folder = build_once(cache_folder() / "flops" / _key(config.to_dict(), backbone, method, shape), build)
        stored = json.loads((folder / "row.json").read_text(encoding="utf-8"))
        if stored["profile"] is not None:
            stored["profile"] = FlopProfile.from_dict(stored["profile"])
        yield replace(FlopRow(**stored), backbone=backbone.path)


def print_rows(rows: Sequence[FlopRow], shape: Shape, budget: float | None) -> None:
    """The rows as a table, and below it what its numbers mean."""
    table = Table("backbone", "method")
    columns = ["parameters", "non-embedding", "trainable", "FLOPs/token", "FLOPs/pair", "memory"]
    if budget is not None:
        columns += [f"pairs for {budget:g}", "tokens"]
    for name in columns:
        table.add_column(name, justify="right")
    previous = None
    for row in rows:
        if previous not in (None, row.backbone):
            table.add_section()
        previous = row.backbone
        name = Path(row.backbone).name
        if row.profile is None:
            table.add_row(name, row.method, *["–"] * len(columns))
            continue
        values = row.as_dict(shape, budget)
        cells = [values["parameters"], values["nonembedding_parameters"], values["trainable_parameters"]]
        cells += [values["flops_per_token"], values["flops_per_pair"]]
        written = [*map(_short, cells), f"{row.memory_bytes / 2**30:.2f} GiB"]
        if budget is not None:
            written += [_short(values["pairs"]), _short(values["tokens"])]
        table.add_row(name, row.method, *written)
    console = Console() if sys.stdout.isatty() else Console(width=_WIDTH)
    console.print(table)
    console.print(
        f"A pair has {shape.query_tokens} + {shape.document_tokens} tokens. FLOPs/token leave attention out, "
        "FLOPs/pair do not. Memory is an estimate of the least that training in float32 peaks at, with chunks of "
        f"{shape.tokens_per_chunk:,} tokens (data.tokens_per_chunk).",
        highlight=False,
    )
    for row in rows:
        if row.refusal:
            console.print(f"{Path(row.backbone).name}: {row.refusal}", highlight=False, markup=False)
        if row.profile is not None and row.profile.by_measurement:
            console.print(
                f"{Path(row.backbone).name} has no softmax attention: counted by measurement at some lengths."
            )


def _short(value: float) -> str:
    for power, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= power:
            return f"{value / power:.3g} {letter}"
    return f"{value:g}"


def _row(backbone: BackboneConfig, method: FineTuningMethod, shape: Shape) -> FlopRow:
    name = type(method).__name__
    with torch.device("meta"):
        model = backbone_without_weights(backbone)
        parameters = list(model.parameters())
        try:
            prepared = prepare_backbone(method, model).train()
        except ConfigError as error:
            return FlopRow(backbone.path, name, None, 0, str(error))
    length = _unmistakable(shape.max_length, prepared)

    def counts(tensor: Tensor) -> bool:  # fused attention keeps no scores
        return backbone.attention == "eager" or tensor.ndim < 3 or tensor.shape[-2:] != (length, length)

    one_text = GraphBytes(list(prepared.parameters()), counts)
    profile = observe(prepared, parameters, max_length=length, during_longest=one_text)
    graph = round(one_text.bytes * max(1.0, shape.tokens_per_chunk / length))
    weights = sum(p.numel() * p.element_size() for p in prepared.parameters())
    trained = [p for p in prepared.parameters() if p.requires_grad]
    gradients = sum(p.numel() * p.element_size() for p in trained)
    moments = _ADAM_MOMENTS[shape.optimizer_states] * sum(p.numel() for p in trained)
    return FlopRow(backbone.path, name, profile, weights + gradients + moments + 2 * graph)


def _unmistakable(length: int, model: nn.Module) -> int:
    """The next length that is no size of anything else, so that a matrix of scores is known by its shape."""
    config = next(module.config for module in model.modules() if isinstance(module, PreTrainedModel))
    sizes = {size for parameter in model.parameters() for size in parameter.shape}
    sizes |= {value for value in config.get_text_config().to_dict().values() if isinstance(value, int)}
    sizes.add(config.get_text_config().hidden_size // config.get_text_config().num_attention_heads)
    while length in sizes:
        length += 1
    return length


def _key(config: Mapping[str, Any], backbone: BackboneConfig, method: FineTuningMethod, shape: Shape) -> str:
    """All that a row depends on."""
    kind = type(method)
    parts = {
        "format": _FORMAT,
        "config": {name: value for name, value in config.items() if name != "_name_or_path"},
        "backbone": asdict(replace(backbone, path="")),
        "method": [kind.__qualname__, inspect.getsource(inspect.getmodule(kind) or kind), vars(method)],
        "code": [inspect.getsource(module) for module in (flops, flop_observer, flop_profile)],
        "shape": [shape.max_length, shape.tokens_per_chunk, shape.optimizer_states],
        "versions": {name: version(name) for name in ("embedlab", "torch", "transformers", "peft")},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=repr).encode()).hexdigest()[:32]
