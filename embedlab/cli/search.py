"""The command `embedlab search`, which trains a suite of backbones with several methods at rising budgets.

The search ends with a report, and can check its recommendation by training it.
"""

from __future__ import annotations

import math
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from embedlab.cli.console import console, line, say
from embedlab.cli.run_arguments import require_budgets, require_replicates
from embedlab.errors import ConfigError
from embedlab.files import cannot_write, require_folder
from embedlab.report.write import write_report
from embedlab.scaling.bootstrap import NUM_REPLICATES
from embedlab.scaling.recipe import Constraints
from embedlab.search.confirmation import confirmations
from embedlab.search.folder import SearchFolder
from embedlab.search.jobs import JobRunner
from embedlab.search.launchers.launcher import Launcher
from embedlab.search.launchers.local import LocalWorkers
from embedlab.search.launchers.processes import TrialProcesses  # noqa: F401  a configuration names it
from embedlab.search.plan import SearchPlan
from embedlab.search.policies.isoflop_grid import IsoFlopGrid
from embedlab.search.policies.policy import Policy
from embedlab.search.projection import Forecast, Projection
from embedlab.search.run import SearchRun, observations_of_search
from embedlab.search.space import Trial

_NEXT = math.inf  # value of --confirm for the next budget after the budgets of the search


def search_command(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    """Run `embedlab search`: train the trials of the search that have no results yet, and write the report.

    Args:
        parser: Empty parser, to which the options are added.
        arguments: Words of the command line after the name of the command.

    Raises:
        ConfigError: If an option is invalid, another search is in progress in the folder, or the folder holds a search
            with another plan.
    """
    _add_options(parser)
    _require_whole_fit(arguments)
    options = parser.parse_args(list(arguments))
    if options.confirm is not None and options.confirm != _NEXT:
        require_budgets("--confirm", [options.confirm])
    require_replicates(options.replicates)
    require_folder(Path(options.output))
    instances = parser.instantiate(options)
    plan = SearchPlan(**{name: instances[name] for name in SearchPlan.__dataclass_fields__})
    folder = SearchFolder(Path(options.output))
    # A process that a shell starts in the background ignores SIGINT; a scheduler stops processes with SIGTERM.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    plan.cooldown()  # raises an error if the trials cannot share a trunk
    with _one_line_where_nothing_can_be_written(folder.path), folder.locked():
        fixed = plan.fixed(options.policy.as_dict())
        differ = folder.take(fixed, plan.fit_config(), accept_changes=options.accept_changes)
        for line in differ:
            say(f"Changed: {line}")
        if folder.num_trained and any(line.startswith("fit.") for line in differ):
            say(
                f"The laws are fitted to {folder.num_trained} trials of the previous configuration together with the "
                "trials of the new configuration."
            )
        try:
            with instances.launcher() as launcher:
                run = SearchRun(plan, instances.policy, folder, JobRunner(launcher), say)
                if options.dry_run:
                    forecast = run.forecast()
                    _print_forecast(console(), forecast)
                    run.require_room(forecast.space, forecast.probes)
                else:
                    _run(run, folder, options.confirm, options.replicates)
        except KeyboardInterrupt:
            print("Stopped. The runs in progress are saved. Repeat the command to continue.", file=sys.stderr)
            sys.exit(130)


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--config", action="config", help="Path to a configuration file.")
    parser.add_argument("--output", default="runs/search", help="Folder of the search.")
    parser.add_class_arguments(SearchPlan)
    parser.add_subclass_arguments(
        Policy, "policy", help="Policy that chooses the trials to train next. `--policy.help NAME` describes a policy."
    )
    parser.add_argument(
        "--launcher",
        type=Callable[[], Launcher],
        help="How trials are run: LocalWorkers trains several at the same time, one on each GPU or share of the cores; "
        "TrialProcesses trains one after another, each on several devices.",
    )
    parser.set_defaults({"policy": {"class_path": IsoFlopGrid.__name__}, "launcher": LocalWorkers})
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="Print the estimated cost of the search, measured with a few training steps, and exit.",
    )
    parser.add_argument(
        "--accept_changes",
        action="store_true",
        help="Continue a search in the folder, although its plan or configuration has changed.",
    )
    parser.add_argument(
        "--confirm",
        nargs="?",
        type=float,
        const=_NEXT,
        metavar="FLOPS",
        help="After the search, train the recipe for this budget in FLOPs with laws fitted to smaller budgets only, "
        "and compare the prediction with the result. Without a value, the next budget after the search.",
    )
    parser.add_argument(
        "--replicates",
        type=int,
        default=NUM_REPLICATES,
        help="Number of bootstrap replicates in the report, which are fits to runs with random weights. The "
        "intervals of the parameters of laws, of best sizes and of crossovers come from them.",
    )


def _run(run: SearchRun, folder: SearchFolder, confirm: float | None, replicates: int) -> None:
    """Train the trials, write the report and, if that is asked for, train the recipe for a further budget.

    Args:
        run: The search.
        folder: Folder of the search.
        confirm: Budget of the recipe in FLOPs, ``_NEXT`` for the next budget of the search, or None for no recipe.
        replicates: Number of bootstrap replicates.

    Raises:
        SystemExit: With status 1 if trials failed.
    """
    run.run()
    _write_report(folder, num_replicates=replicates)
    if confirm is not None:
        say(run.confirm(None if confirm == _NEXT else confirm, num_replicates=replicates))
        _write_report(folder, num_replicates=replicates)
    if run.num_failed:
        sys.exit(1)


@contextmanager
def _one_line_where_nothing_can_be_written(folder: Path) -> Iterator[None]:
    """Convert any OSError in the block, for example on a full disk, into a ConfigError of one line.

    Args:
        folder: Folder of the search, for errors that name no file.

    Raises:
        ConfigError: If the block raises an OSError.
    """
    try:
        yield
    except OSError as error:
        raise cannot_write(Path(error.filename or folder), error) from error


def _require_whole_fit(arguments: Sequence[str]) -> None:
    """Refuse options that change a part of ``fit``, because the parser would replace the whole of ``fit`` by the part.

    Args:
        arguments: Words of the command line.

    Raises:
        ConfigError: If a word sets a part of ``fit``.
    """
    for word in arguments:
        if word.startswith("--fit."):
            name = word.partition("=")[0]
            raise ConfigError(f"{name} cannot be set on the command line. Change fit in the configuration file.")


def _write_report(folder: SearchFolder, *, num_replicates: int = NUM_REPLICATES) -> None:
    """Write the report of all trials, which replaces any previous report.

    Args:
        folder: Folder of the search.
        num_replicates: Number of bootstrap replicates.

    Raises:
        ConfigError: If no trial has a record.
    """
    observations = observations_of_search(folder)
    if not observations:
        raise ConfigError(
            f"No trial in {folder.trials} has a run record, so there is nothing to report. Read the logs of the trials "
            "in this folder for the reason."
        )
    shutil.rmtree(folder.report, ignore_errors=True)
    made = confirmations(folder.confirmation)
    source = str(folder.trials)
    path = write_report(
        folder.report, source, observations, Constraints(), num_replicates=num_replicates, confirmations=made
    )
    say(path)


def _print_forecast(screen: Console, forecast: Forecast) -> None:
    """Print the estimated FLOPs, hours, memory and disk space of a search.

    Args:
        screen: Console to print on.
        forecast: Plan of the search with the measurements of its probes.
    """
    plan, space, probes, total = forecast.plan, forecast.space, forecast.probes, forecast.total_flops
    calibrations = forecast.calibrations
    projection = Projection(probes, forecast.num_slots, space)
    table = Table("budget", title="Estimated cost of the search, from a few steps of each backbone and method")
    for name in ("runs", "FLOPs", "hours"):
        table.add_column(name, justify="right")

    def row(name: str, trials: Sequence[Trial]) -> None:
        flops = sum(map(projection.flops, trials))
        table.add_row(name, str(len(trials)), f"{flops:.3g}", f"{projection.seconds(trials) / 3600:.3g}")

    if calibrations:
        row("calibration (minimum)", calibrations)
    for budget in sorted({trial.budget for trial in space.trials}):
        row(f"{budget:g}", [trial for trial in space.trials if trial.budget == budget])
    table.add_section()
    row("all", [*calibrations, *space.trials])
    screen.print(table)
    price = space.price(space.trials)
    if total < price:
        line(screen, f"The policy may spend {total:.3g} FLOPs, {total / price:.0%} of the FLOPs of all trials.")
    known = {one: found.memory_bytes for one, found in probes.items() if found.memory_bytes is not None}
    if known:
        most = max(known, key=lambda one: known[one])
        line(screen, f"Maximum peak memory: {known[most] / 2**30:.2f} GiB, for {most}.")
    disk = projection.disk(space.trials, keep_checkpoints=plan.keep_checkpoints)
    line(screen, f"Disk space for checkpoints: {disk / 2**30:.2f} GiB.")
