"""Runs that somebody else made, from a table whose columns have whatever names they have."""

from __future__ import annotations

import csv
import gzip
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO

import numpy as np

from embedlab.errors import RecordError, suggestion
from embedlab.search.observations import Observation

AMOUNTS = "columns"
"""For ``Columns.tokens``: the columns whose names are numbers, whose cells are losses."""

_FEWEST_PARAMETERS = 1e4  # of a language model, its tables left out
_FEWEST_TOKENS = 1e4  # of a training run


UNNAMED = "all runs"
"""The method of the runs of a table that names none."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which column of a table holds what. A name may be followed by a factor: ``N_millions*1e6``.

    Attributes:
        parameters: N.
        loss: on held-out data.
        tokens: D; ``columns`` for a table with an amount of data in the name of each column and losses below. Where
            there is none, it is FLOPs / 6 N.
        flops: of training; 6 N D where there is none.
        method: what to compare.
        backbone: name of the model.
        unique_tokens: how many of the tokens are different.
        family: of runs that have noise in common.
    """

    parameters: str = "parameters"
    loss: str = "loss"
    tokens: str | None = None
    flops: str | None = None
    method: str | None = None
    backbone: str | None = None
    unique_tokens: str | None = None
    family: str | None = None


def read_table(path: Path, columns: Columns) -> list[Observation]:
    """One observation a row of a CSV or TSV file, gzipped or not; what cannot be fitted is left out with its reason.

    Raises:
        RecordError: if the file cannot be read, lacks a column, or its N or D is in another unit.
    """
    if columns.tokens is None and columns.flops is None:
        raise RecordError(
            "A table of runs needs an amount of data: name its column of tokens (columns.tokens) or of FLOPs "
            "(columns.flops)."
        )
    try:
        with _open(path) as file:
            reader = csv.DictReader(file, delimiter="\t" if ".tsv" in path.suffixes else ",")
            names = list(reader.fieldnames or ())
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RecordError(f"{path} cannot be read as a table: {error}.") from error
    amounts = _amounts(names) if columns.tokens is not None and _name(columns.tokens) == AMOUNTS else {}
    for field in fields(columns):
        value = getattr(columns, field.name)
        named = None if value is None else _name(value)
        if named is None or named in names or (amounts and field.name in ("tokens", "loss")):
            continue
        raise RecordError(
            f"{path} has no column '{named}' (columns.{field.name}). It has {', '.join(names) or 'none: it is empty'}."
            + suggestion(named, names)
        )
    found = []
    for number, row in enumerate(rows, start=2):  # as an editor shows it
        if amounts:
            for amount, name in amounts.items():
                tokens = amount * _factor(columns.tokens or "")
                found.append(_observation(f"{path.name}:{number}:{name}", row, columns, tokens, row[name]))
        else:
            found.append(_observation(f"{path.name}:{number}", row, columns, None, row[_name(columns.loss)]))
    _require_unit(path, columns.parameters, "parameters", [row.parameters for row in found], _FEWEST_PARAMETERS)
    if columns.tokens is not None and not amounts:
        _require_unit(path, columns.tokens, "tokens", [row.tokens for row in found], _FEWEST_TOKENS)
    return found


def _require_unit(path: Path, column: str, field: str, values: list[float], fewest: float) -> None:
    """That a column counts ones, not millions of them."""
    finite = [value for value in values if math.isfinite(value)]
    if finite and np.median(finite) < fewest:
        raise RecordError(
            f"Column '{column}' of {path} has a median of {np.median(finite):g}, which is no number of {field}. Where "
            f"it is in millions, say --columns.{field} '{_name(column)}*1e6'."
        )


def _open(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", newline="")
    return path.open(encoding="utf-8", newline="")


def _name(column: str) -> str:
    return column.partition("*")[0]


def _factor(column: str) -> float:
    _, star, factor = column.partition("*")
    try:
        return float(factor) if star else 1.0
    except ValueError as error:
        raise RecordError(f"'{column}' is no column and factor. Expected for instance 'N_millions*1e6'.") from error


def _amounts(names: list[str]) -> dict[float, str]:
    found = {}
    for name in names:
        try:
            found[float(name)] = name
        except ValueError:
            continue
    if not found:
        raise RecordError(
            f"columns.tokens is '{AMOUNTS}', and no column of the table is named by a number: {', '.join(names)}."
        )
    return found


def _observation(
    name: str, row: Mapping[str, str], columns: Columns, tokens: float | None, loss_text: str
) -> Observation:
    """A row's numbers, and why it is left out if one of them is none."""
    wrong: list[str] = []

    def number(what: str, column: str, text: str | None = None) -> float:
        text = row[_name(column)] if text is None else text
        try:
            value = float(text) * _factor(column)
        except (TypeError, ValueError):
            value = math.nan
        if not (math.isfinite(value) and value > 0):
            wrong.append(f"its {what} is {text!r}")
        return value

    parameters = number("parameters", columns.parameters)
    loss = number("loss", "" if tokens is not None else columns.loss, loss_text)
    flops = None if columns.flops is None else number("flops", columns.flops)
    if tokens is not None:
        if not tokens > 0:
            wrong.append("it saw no data")
    elif columns.tokens is not None:
        tokens = number("tokens", columns.tokens)
    else:
        tokens = (flops or math.nan) / (6 * parameters) if parameters else math.nan
    text = {field: row[_name(value)] for field, value in vars(columns).items() if value and _name(value) in row}
    unique = tokens if columns.unique_tokens is None else number("unique tokens", columns.unique_tokens)
    return Observation(
        name=name,
        method=text.get("method", UNNAMED),
        backbone=text.get("backbone", f"{parameters:.3g} parameters"),
        parameters=parameters,
        tokens=tokens,
        loss=loss,
        flops=6 * parameters * tokens if flops is None else flops,
        unique_tokens=unique,
        family=text.get("family", name),
        left_out="; ".join(wrong) or None,
    )
