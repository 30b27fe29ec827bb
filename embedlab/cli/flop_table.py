"""Prints the training cost of each backbone and method as a table for `embedlab flops`, and explains the numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.table import Table

from embedlab.cli.console import console
from embedlab.flops.estimate import FlopRow, StepShape
from embedlab.model.backbone import BackboneConfig


def print_rows(rows: Sequence[FlopRow], backbone: BackboneConfig, shape: StepShape, budget: float | None) -> None:
    """Print the rows as a table, followed by an explanation of the numbers.

    Args:
        rows: Rows to print, ordered so that the rows of one backbone are adjacent.
        backbone: Settings that all backbones are loaded with.
        shape: Settings of the run.
        budget: FLOPs to spend. None leaves out the columns for pairs and tokens.
    """
    table = Table("backbone", "method")
    columns = ["parameters", "non-embedding", "trainable", "FLOPs/token", "FLOPs/pair", "memory"]
    if budget is not None:
        columns += [f"pairs for {budget:g} FLOPs", "tokens"]
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
        memory = "–" if row.memory_bytes is None else f"{row.memory_bytes / 2**30:.2f} GiB"
        written = [*map(_short, cells), memory]
        if budget is not None:
            written += [_short(values["pairs"]), _short(values["tokens"])]
        table.add_row(name, row.method, *written)
    screen = console()
    screen.print(table)
    checkpointing = ", gradient checkpointing" if backbone.gradient_checkpointing else ""
    screen.print(
        f"A pair has {shape.query_tokens} + {shape.document_tokens} tokens (query + document). FLOPs/token exclude "
        "attention, FLOPs/pair include it. Memory is an estimate of the minimum peak during training, with chunks of "
        f"{shape.tokens_per_chunk:,} tokens (data.tokens_per_chunk), weights loaded in {backbone.dtype}, "
        f"trainer.precision {shape.precision}{checkpointing}.",
        highlight=False,
    )
    for line in dict.fromkeys(line for row in rows for line in _remarks(row)):
        screen.print(line, highlight=False, markup=False)


def _remarks(row: FlopRow) -> Iterator[str]:
    name = Path(row.backbone).name
    if row.profile is None:
        yield f"{name}: {row.refusal}"
        return
    if row.memory_bytes is None:
        yield f"{row.method} loads weights in its own format (backbone_kwargs), so its memory is not estimated."
    if row.profile.remark is not None:
        yield f"{name}: {row.profile.remark}"


def _short(value: float) -> str:
    for power, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= power:
            return f"{value / power:.3g} {letter}"
    return f"{value:g}"
