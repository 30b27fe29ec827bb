"""The command `embedlab report`, which shows the results of runs as a web page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from embedlab.cli.console import say, track
from embedlab.cli.run_arguments import (
    add_fitting,
    add_runs,
    loss_of,
    observations_of,
    require_replicates,
    require_source,
)
from embedlab.errors import RecordError
from embedlab.report.write import require_room, write_report
from embedlab.scaling.observations import with_best_learning_rates
from embedlab.scaling.recipe import Constraints


def report_command(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    """Run `embedlab report`: write the page, the figures as PNG files, and an event file for TensorBoard.

    Args:
        parser: Empty parser, to which the options are added.
        arguments: Words of the command line after the name of the command.

    Raises:
        ConfigError: If an option is invalid, or the folder for the output cannot be used.
        RecordError: If there is no run to report.
    """
    add_runs(parser)
    parser.add_class_arguments(Constraints)
    parser.add_argument("--output", metavar="FOLDER", required=True, help="Folder for the page and its figures.")
    add_fitting(parser)
    options = parser.instantiate(parser.parse_args(list(arguments)))
    constraints = Constraints(**{name: options[name] for name in Constraints.__dataclass_fields__})
    require_source(options)
    require_replicates(options.replicates)
    folder = Path(options.output)
    require_room(folder)
    observations = with_best_learning_rates(observations_of(options))
    if not observations:
        raise RecordError(
            "There is no run to report. Name folders that contain runs with --runs, or a table with rows with --table."
        )
    source = options.table or ", ".join(options.runs)
    if (loss := loss_of(options)) != "loss":
        source += f" (losses are {loss})"
    shared = options.share_irreducible_loss
    page = write_report(
        folder, source, observations, constraints, num_replicates=options.replicates, share=shared, track=track
    )
    say(page)
