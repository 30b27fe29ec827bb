"""Writes a report of runs: the page, its figures as PNG files, and an event file for TensorBoard."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from embedlab.errors import ConfigError, RecordError
from embedlab.files import cannot_write, require_new, whole_file, write_whole
from embedlab.scaling.bootstrap import NUM_REPLICATES
from embedlab.scaling.method_laws import MethodLaw, laws_of
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
) -> Path:
    """Fits what can be fitted, and writes the page and its figures.

    Args:
        folder: for them.
        source: where the runs are from, for the reader.
        observations: the runs, those that are left out, too.
        constraints: that the page's recipe begins with.
        num_replicates: of the bootstrap.
        share: one irreducible loss for all methods.
        confirmations: predictions that were made, and what came of them.

    Returns:
        The page's path.

    Raises:
        ConfigError: if the folder holds a report, is none, or cannot be written to.
    """
    # These take a second to import, which no other command should wait for.
    from embedlab.report.events import event_file
    from embedlab.report.figure import colors
    from embedlab.report.figures import figures
    from embedlab.report.images import png
    from embedlab.report.page import page

    require_room(folder)
    try:
        runs: Mapping[str, Sequence[Observation]] = by_method(observations)
    except RecordError:  # all are left out: their reasons are in the table of records
        runs = {}
    laws, refused = _laws(runs, num_replicates)
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
        for part in (PICTURES, EVENTS):  # half a report would be in the way of the next
            shutil.rmtree(folder / part, ignore_errors=True)
        raise cannot_write(folder, error) from error
    return folder / PAGE


def require_room(folder: Path) -> None:
    """Refuse a folder that holds a report, or that no report can be written to.

    Raises:
        ConfigError: If a part of a report is there already, or the folder cannot be made.
    """
    for name in (PAGE, PICTURES, EVENTS):
        require_new(folder / name)


def _laws(runs: Mapping[str, Sequence[Observation]], num_replicates: int) -> tuple[list[MethodLaw], dict[str, str]]:
    """Like ``laws_of``, but that there is none is no error: there are still runs to look at."""
    if not runs:
        return [], {}
    try:
        return laws_of(runs, num_replicates=num_replicates)
    except ConfigError:
        return [], {method: _refusal(method, rows, num_replicates) for method, rows in runs.items()}


def _refusal(method: str, rows: Sequence[Observation], num_replicates: int) -> str:
    try:
        laws_of({method: rows}, num_replicates=num_replicates)
    except ConfigError as error:
        return str(error)
    raise AssertionError(f"{method} has a law alone and none among others")
