"""`embedlab search`: trains a suite of backbones by several methods at rising budgets, and says what to train next."""

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

_NEXT = math.inf  # the budget that follows those of the search


def search_command(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    """`embedlab search`: the whole sweep, again and again until it is done."""
    parser.add_argument("--config", action="config", help="Path to a configuration file.")
    parser.add_argument("--output", default="runs/search", help="The search's folder.")
    parser.add_class_arguments(SearchPlan)
    parser.add_subclass_arguments(Policy, "policy", help="What to train next.")
    parser.add_argument("--launcher", type=Callable[[], Launcher], help="Where it is trained.")
    parser.set_defaults({"policy": {"class_path": IsoFlopGrid.__name__}, "launcher": LocalWorkers})
    parser.add_argument("--dry_run", action="store_true", help="Say what the search will take, and end.")
    parser.add_argument("--accept_changes", action="store_true", help="Go on by another plan than that begun with.")
    parser.add_argument(
        "--confirm",
        nargs="?",
        type=float,
        const=_NEXT,
        metavar="FLOPS",
        help="Then train the recipe for a budget that its laws are not fitted to; by default the one that would be "
        "next.",
    )
    parser.add_argument("--replicates", type=int, default=NUM_REPLICATES, help="Of the bootstrap in the report.")
    _require_whole_fit(arguments)
    options = parser.parse_args(list(arguments))
    if options.confirm is not None and options.confirm != _NEXT:
        require_budgets("--confirm", [options.confirm])
    require_replicates(options.replicates)
    require_folder(Path(options.output))
    instances = parser.instantiate(options)
    plan = SearchPlan(**{name: instances[name] for name in SearchPlan.__dataclass_fields__})
    folder = SearchFolder(Path(options.output))
    # What is started in the background of a shell has SIGINT ignored; a scheduler sends SIGTERM.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    plan.cooldown()  # refuses a trunk that cannot be shared
    with _one_line_where_nothing_can_be_written(folder.path), folder.locked():
        fixed = plan.fixed(options.policy.as_dict())
        differ = folder.take(fixed, plan.fit_config(), accept_changes=options.accept_changes)
        for line in differ:
            say(f"Changed: {line}")
        if folder.num_trained and any(line.startswith("fit.") for line in differ):
            say(f"The laws count {folder.num_trained} trials of the configuration before with those of the new one.")
        try:
            with instances.launcher() as launcher:
                run = SearchRun(plan, instances.policy, folder, JobRunner(launcher), say)
                if options.dry_run:
                    forecast = run.forecast()
                    _print_forecast(console(), forecast)
                    run.require_room(forecast.space, forecast.probes)
                    return
                run.run()
                _write_report(folder, num_replicates=options.replicates)
                if options.confirm is not None:
                    budget = None if options.confirm == _NEXT else options.confirm
                    say(run.confirm(budget, num_replicates=options.replicates))
                    _write_report(folder, num_replicates=options.replicates)
                if run.num_failed:
                    sys.exit(1)
        except KeyboardInterrupt:
            print("Stopped. What was under way is saved; the same command goes on.", file=sys.stderr)
            sys.exit(130)


@contextmanager
def _one_line_where_nothing_can_be_written(folder: Path) -> Iterator[None]:
    """A full disk, or a folder without permission, wherever in the search's folder that shows."""
    try:
        yield
    except OSError as error:
        raise cannot_write(Path(error.filename or folder), error) from error


def _require_whole_fit(arguments: Sequence[str]) -> None:
    """Refuses to change a part of what all runs have in common: the parser would put it in place of the whole."""
    for word in arguments:
        if word.startswith("--fit."):
            name = word.partition("=")[0]
            raise ConfigError(f"{name} cannot be given on the command line. Change fit in the configuration file.")


def _write_report(folder: SearchFolder, *, num_replicates: int = NUM_REPLICATES) -> None:
    """The report of all trials, in place of the one before."""
    observations = observations_of_search(folder)
    if not observations:
        raise ConfigError(f"No trial in {folder.trials} has left a record, so there is nothing to report.")
    shutil.rmtree(folder.report, ignore_errors=True)
    made = confirmations(folder.confirmation)
    source = str(folder.trials)
    path = write_report(
        folder.report, source, observations, Constraints(), num_replicates=num_replicates, confirmations=made
    )
    say(path)


def _print_forecast(screen: Console, forecast: Forecast) -> None:
    """Print what a search will take."""
    plan, space, probes, total = forecast.plan, forecast.space, forecast.probes, forecast.total_flops
    calibrations = forecast.calibrations
    projection = Projection(probes, forecast.num_slots, space)
    table = Table("budget", title="What the search takes, projected from a few steps of each combination")
    for name in ("runs", "FLOPs", "hours"):
        table.add_column(name, justify="right")

    def row(name: str, trials: Sequence[Trial]) -> None:
        flops = sum(map(projection.flops, trials))
        table.add_row(name, str(len(trials)), f"{flops:.3g}", f"{projection.seconds(trials) / 3600:.3g}")

    if calibrations:
        row("calibration, at least", calibrations)
    for budget in sorted({trial.budget for trial in space.trials}):
        row(f"{budget:g}", [trial for trial in space.trials if trial.budget == budget])
    table.add_section()
    row("all", [*calibrations, *space.trials])
    screen.print(table)
    price = space.price(space.trials)
    if total < price:
        line(screen, f"The policy may spend {total:.3g} FLOPs, {total / price:.0%} of all trials.")
    known = {one: found.memory_bytes for one, found in probes.items() if found.memory_bytes is not None}
    if known:
        most = max(known, key=lambda one: known[one])
        line(screen, f"Peak memory: {known[most] / 2**30:.2f} GiB, of {most}.")
    disk = projection.disk(space.trials, keep_checkpoints=plan.keep_checkpoints)
    line(screen, f"Disk: {disk / 2**30:.2f} GiB of checkpoints.")
