"""Where a planning command finds its runs: folders of records, or a table of somebody else's.

Every command that plans takes the same options for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from embedlab.errors import ConfigError
from embedlab.search.foreign_table import Columns, read_table
from embedlab.search.observations import Observation, of_records
from embedlab.search.records import Ledger
from embedlab.search.uncertainty import NUM_REPLICATES


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


def observations_of(options: Any) -> list[Observation]:
    """The runs that the parsed options name.

    Raises:
        ConfigError: if they name none, or both folders and a table.
        RecordError: if a record cannot be read.
    """
    if (options.runs is None) == (options.table is None):
        raise ConfigError(
            "Say where the runs are: --runs with folders that `embedlab fit` wrote, or --table with a file of others."
        )
    if options.table is not None:
        return read_table(Path(options.table), options.columns)
    ledger = Ledger([Path(folder) for folder in options.runs])
    return of_records(ledger.records(), [path.parent for path in ledger.paths()])
