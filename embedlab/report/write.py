"""Writes the report of a set of runs: the page, its figures as PNG files, and an event file for TensorBoard."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from embedlab.errors import ConfigError, RecordError
from embedlab.files import cannot_write, require_new, whole_file, write_whole
from embedlab.scaling.bootstrap import NUM_REPLICATES
from embedlab.scaling.method_laws import MethodLaw, Track, laws_of
from embedlab.scaling.observations import Observation, by_method
from embedlab.scaling.recipe import Constraints
from embedlab.scaling.shared_constant import share_irreducible_loss
from embedlab.search.confirmation import Confirmation

PAGE, PICTURES, EVENTS = "report.html", "figures", "tensorboard"


def write_report(
    folder: Path,
    source: str,
    observations: Sequence[Observation],
    constraints: Constraints,
    *,
    num_replicates: int = NUM_REPLICATES,
    share: bool = False,
    confirmations: Sequence[Confirmation] = (),
    track: Track = iter,
) -> Path:
    """Fit a law to the runs of each method, and write the page and its figures.

    Args:
        folder: Folder to write to, which is created if it does not exist.
        source: Name of the folder or table that holds the runs, for the reader.
        observations: All runs, including runs that are left out of the fits.
        constraints: Initial constraints of the recipe on the page.
        num_replicates: Number of bootstrap replicates.
        share: Whether all methods share one irreducible loss.
        confirmations: Recipes that were trained, with the predicted and the measured loss.
        track: Shows how many laws are fitted already; by default, nothing is shown.

    Returns:
        Path of the page.

    Raises:
        ConfigError: If the folder already holds a report, is not a folder, or cannot be written to.
    """
    # Imported here, because these imports take a second, which other commands should not wait for.
    from embedlab.report.events import event_file
    from embedlab.report.figure import colors
    from embedlab.report.figures import figures
    from embedlab.report.images import png
    from embedlab.report.page import page

    require_room(folder)
    try:
        runs: Mapping[str, Sequence[Observation]] = by_method(observations)
    except RecordError:  # all runs are left out; the table of runs shows the reasons
        runs = {}
    laws, refused = _laws(runs, num_replicates, track)
    if share and laws:
        laws = share_irreducible_loss(laws, num_replicates=num_replicates)
    drawn = figures(runs, laws)
    text = page(
        source=source,
        observations=observations,
        methods=list(runs),
        laws=laws,
        refused=refused,
        figures=drawn,
        constraints=constraints,
        confirmations=confirmations,
    )
    images = {figure.key: png(figure, colors(len(runs))) for figure in drawn}
    try:
        for key, image in images.items():
            with whole_file(folder / PICTURES / f"{key}.png") as file:
                file.write(image)
        name, events = event_file(images)
        with whole_file(folder / EVENTS / name) as file:
            file.write(events)
        write_whole(folder / PAGE, text)
    except OSError as error:
        for part in (PICTURES, EVENTS):  # an incomplete report would block the next report
            shutil.rmtree(folder / part, ignore_errors=True)
        raise cannot_write(folder, error) from error
    return folder / PAGE


def require_room(folder: Path) -> None:
    """Refuse a folder that already holds a report, or that cannot be created.

    Args:
        folder: Folder to write to.

    Raises:
        ConfigError: If the folder holds a part of a report, or cannot be created.
    """
    for name in (PAGE, PICTURES, EVENTS):
        require_new(folder / name)


def _laws(
    runs: Mapping[str, Sequence[Observation]], num_replicates: int, track: Track
) -> tuple[list[MethodLaw], dict[str, str]]:
    """Return the laws of all methods, and for each method without a law the reason.

    Unlike ``laws_of``, this function returns no laws instead of raising an error if no method has a law, because a
    report can still show the runs.

    Args:
        runs: Runs of each method, by the name of the method.
        num_replicates: Number of bootstrap replicates.
        track: Shows how many laws are fitted already.
    """
    if not runs:
        return [], {}
    try:
        return laws_of(runs, num_replicates=num_replicates, track=track)
    except ConfigError:
        return [], {method: _refusal(method, rows, num_replicates) for method, rows in runs.items()}


def _refusal(method: str, rows: Sequence[Observation], num_replicates: int) -> str:
    """Return the reason why a method has no law."""
    try:
        laws_of({method: rows}, num_replicates=num_replicates)
    except ConfigError as error:
        return str(error)
    raise AssertionError(f"{method} has a law alone and none among others")
