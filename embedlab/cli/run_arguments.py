"""Options that all planning commands share: the source of the runs, and how laws are fitted to the runs.

Runs come from folders of run records, or from a table of runs that were trained elsewhere.
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
from embedlab.scaling.observations import Observation, is_loss, of_ledger
from embedlab.scaling.table_cells import conditions_of
from embedlab.scaling.tables import Columns, LossIs, read_table, require_columns

MOST_FLOPS = 1e36
"""Maximum budget in FLOPs that an option accepts: about 1e9 times the largest training run so far."""

_MOST_REPLICATES = 100_000


def add_runs(parser: ArgumentParser) -> None:
    """Add the options that name the source of the runs: ``--config``, ``--runs``, ``--table`` and ``--columns``.

    Args:
        parser: Parser of the command.
    """
    parser.add_argument("--config", action="config", help="Path to a configuration file.")
    parser.add_argument(
        "--runs", nargs="+", metavar="FOLDER", help="Folders that contain runs of `embedlab fit`, at any depth."
    )
    parser.add_argument(
        "--metric",
        metavar="NAME",
        help="Metric of the runs that takes the place of the held-out loss, for example validation/arxiv/ndcg@10. Of a "
        "metric from 0 to 1, for which higher is better, laws are fitted to 1 minus the metric, and this number is "
        "predicted.",
    )
    parser.add_argument(
        "--table",
        metavar="FILE",
        help="CSV, TSV or Parquet file of runs that were trained elsewhere, one run a row, instead of --runs. "
        "--columns names the columns with the model size, the tokens or FLOPs, and the loss.",
    )
    parser.add_class_arguments(Columns, "columns")
    parser.add_argument(
        "--where",
        metavar="CONDITION",
        help="Condition that the rows of the table must meet: a comparison of a column with a value, or several with "
        '`and` between them, for example "outlier == 0". Other rows are left out.',
    )
    parser.add_argument(
        "--loss_is",
        type=LossIs,
        default="loss",
        help="What the column of losses holds: losses, or accuracies from 0 to 1, of which 1 minus the accuracy is the "
        "loss that laws are fitted to.",
    )


def add_fitting(parser: ArgumentParser) -> None:
    """Add the options of the fit of laws: ``--replicates`` and ``--share_irreducible_loss``.

    Args:
        parser: Parser of the command.
    """
    parser.add_argument(
        "--replicates",
        type=int,
        default=NUM_REPLICATES,
        help="Number of bootstrap replicates, which are fits to runs with random weights. The intervals of the "
        "parameters of laws, of best sizes and of crossovers come from them; those of losses come from the errors on "
        "held-out budgets.",
    )
    parser.add_argument(
        "--share_irreducible_loss",
        action="store_true",
        help="Fit one irreducible loss E for the laws of all methods. Use this option if the losses of all methods "
        "would approach the same value with ever larger models and more data.",
    )


def require_replicates(replicates: int) -> None:
    """Check the number of bootstrap replicates.

    Args:
        replicates: Number of bootstrap replicates.

    Raises:
        ConfigError: If the number is below 1, or so large that the replicates may not fit in memory.
    """
    if not 1 <= replicates <= _MOST_REPLICATES:
        raise ConfigError(
            f"--replicates is {plain_text(replicates, longest=20)}. Expected a whole number from 1 to "
            f"{_MOST_REPLICATES}, for example {NUM_REPLICATES}."
        )


def require_budgets(option: str, budgets: Iterable[float]) -> None:
    """Check budgets in FLOPs, before any run is read.

    Args:
        option: Name of the option, for messages.
        budgets: Budgets in FLOPs.

    Raises:
        ConfigError: If a budget is below 1, above ``MOST_FLOPS`` or not finite, or if a budget is given twice.
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


def loss_of(options: Any) -> str:
    """Return what the losses of the runs are, in words: ``loss``, a metric, or 1 minus a metric.

    Args:
        options: Parsed options of ``add_runs``.
    """
    if options.metric is None:
        return "loss" if options.loss_is == "loss" else "1 - accuracy"
    return str(options.metric) if is_loss(options.metric) else f"1 - {options.metric}"


def observations_of(options: Any) -> list[Observation]:
    """Return the runs that the parsed options name.

    Args:
        options: Parsed options of ``add_runs``.

    Raises:
        ConfigError: If the options name neither folders nor a table, or both.
        RecordError: If no run can be used.
    """
    require_source(options)
    if options.table is not None:
        return read_table(Path(options.table), options.columns, where=options.where, loss_is=options.loss_is)
    return of_ledger(Ledger([Path(folder) for folder in options.runs]), options.metric)


def require_source(options: Any) -> None:
    """Check the options that name the source of the runs, before any run is read.

    Args:
        options: Parsed options of ``add_runs``.

    Raises:
        ConfigError: If the options name neither folders nor a table, or both, or if the factor of a column is invalid.
        RecordError: If the options name no column with the amount of data of a run.
    """
    if (options.runs is None) == (options.table is None):
        raise ConfigError(
            "Expected either --runs or --table. Name folders with runs of `embedlab fit` with --runs, or a file with "
            "runs that were trained elsewhere with --table."
        )
    if options.table is not None and options.metric is not None:
        raise ConfigError(
            "--metric is for --runs. Of a table, name the column with --columns.loss, and for accuracies add --loss_is "
            "accuracy."
        )
    if options.table is not None:
        require_columns(options.columns)
        conditions_of(options.where)
    elif options.where is not None or options.loss_is != "loss":
        raise ConfigError("--where and --loss_is are for --table. Leave them out with --runs.")
