"""Where a planning command finds its runs: folders of records, or a table of somebody else's.

Every command that plans takes the same options for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from embedlab.errors import ConfigError, plain_text
from embedlab.records import Ledger
from embedlab.scaling.bootstrap import NUM_REPLICATES
from embedlab.scaling.observations import Observation, of_ledger
from embedlab.scaling.tables import Columns, read_table, require_columns

MOST_FLOPS = 1e36
"""Largest budget that is understood: a trillion times that of the largest run there has been."""

_MOST_REPLICATES = 100_000


def add_runs(parser: ArgumentParser) -> None:
    """Adds the options that say where the runs are."""
    parser.add_argument("--config", action="config", help="Path to a configuration file.")
    parser.add_argument("--runs", nargs="+", metavar="FOLDER", help="Folders of runs that `embedlab fit` wrote.")
    parser.add_argument("--table", metavar="FILE", help="In their place, a CSV or TSV file of somebody else's runs.")
    parser.add_class_arguments(Columns, "columns")


def add_fitting(parser: ArgumentParser) -> None:
    """Adds the options that say how laws are fitted to them."""
    parser.add_argument("--replicates", type=int, default=NUM_REPLICATES, help="Of the bootstrap.")
    parser.add_argument(
        "--share_irreducible_loss",
        action="store_true",
        help="One E for the laws of all methods: what no method learns is a matter of the data.",
    )


def require_replicates(replicates: int) -> None:
    """Refuse a number of bootstrap replicates that gives no interval.

    Raises:
        ConfigError: If it is below 1, or beyond what memory holds.
    """
    if not 1 <= replicates <= _MOST_REPLICATES:
        raise ConfigError(
            f"--replicates is {plain_text(replicates, longest=20)}. Expected a whole number from 1 to "
            f"{_MOST_REPLICATES}, for example {NUM_REPLICATES}."
        )


def require_budgets(option: str, budgets: Iterable[float]) -> None:
    """Refuse budgets that are no numbers of FLOPs, before anything is read.

    Raises:
        ConfigError: If one is not above 0, not finite, or no budget that anybody has; or two are written alike.
    """
    written: set[str] = set()
    for budget in budgets:
        if not (math.isfinite(budget) and 1 <= budget <= MOST_FLOPS):
            raise ConfigError(
                f"{option} is {budget:g}. Expected a number of FLOPs from 1 to {MOST_FLOPS:g}, for example 1e18."
            )
        if f"{budget:g}" in written:
            raise ConfigError(f"{option} has {budget:g} twice. Name each budget once.")
        written.add(f"{budget:g}")


def observations_of(options: Any) -> list[Observation]:
    """The runs that the parsed options name.

    Raises:
        ConfigError: if they name none, or both folders and a table.
        RecordError: if none can be used.
    """
    require_source(options)
    if options.table is not None:
        return read_table(Path(options.table), options.columns)
    return of_ledger(Ledger([Path(folder) for folder in options.runs]))


def require_source(options: Any) -> None:
    """Refuse options that do not say where the runs are, before any are read.

    Raises:
        ConfigError: If they name neither folders nor a table, or both, or a column with a factor that is none.
        RecordError: If no column of a table says how much data a run saw.
    """
    if (options.runs is None) == (options.table is None):
        raise ConfigError(
            "Say where the runs are: --runs with folders that `embedlab fit` wrote, or --table with a file of others."
        )
    if options.table is not None:
        require_columns(options.columns)
