"""Where a search keeps what it has done: one process at a time may, and always by the same plan."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from embedlab.errors import ConfigError
from embedlab.files import cannot_write, locked_folder, remove_unfinished, write_whole
from embedlab.records import FILE
from embedlab.records.renamed import current_plan
from embedlab.records.stored import read_json
from embedlab.search.plan import changes

_MOST_CHANGES = 5  # of a plan, in one line


class SearchFolder:
    """The folder of a search.

    Args:
        path: of it; made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        if path.exists() and not path.is_dir():
            raise ConfigError(f"{path} is a file, and the search needs a folder. Choose another with --output.")
        self.path = path
        self.fit = path / "fit.yaml"
        self.probes = path / "probes"
        self.calibration = path / "calibration"
        self.trials = path / "trials"
        self.confirmation = path / "confirmation"
        self.report = path / "report"
        self.events = path / "tensorboard"
        self._plan = path / "plan.json"
        self._fixed: dict[str, Any] = {}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps every other search out.

        Raises:
            ConfigError: if there is one in the folder, or the folder is another thing's.
        """
        lock_file = self.path / "search.lock"
        try:
            if not lock_file.exists() and self.path.is_dir() and any(self.path.iterdir()):
                raise ConfigError(
                    f"{self.path} holds something that is no search. Choose another folder with --output."
                )
        except OSError as error:
            raise cannot_write(self.path, error) from error
        with locked_folder(self.path, owner="search"):
            remove_unfinished(self.path)
            yield

    def take(self, fixed: dict[str, Any], fit: dict[str, Any], *, accept_changes: bool) -> list[str]:
        """Compares a plan with the one before, and writes the runs' configuration down for the probes.

        Args:
            fixed: what of it may not change, by dotted names.
            fit: the configuration that all runs have in common.
            accept_changes: go on by another plan than that which the folder's runs were made by.

        Returns:
            How it differs from the one before.

        Raises:
            ConfigError: if it is another one, that is not accepted, and something has been trained by the one before.
            RecordError: if the one before cannot be read.
        """
        self._fixed = fixed
        differ: list[str] = []
        if self._plan.exists():
            differ = changes(current_plan(read_json(self._plan, "the plan of a search")), fixed)
        if differ and not accept_changes and self._has_trained:
            raise ConfigError(
                f"The search in {self.path} was begun by another plan: {_some(differ)}. Add --accept-changes to "
                "go on by the new one; what has been trained stays as it is. Or choose another --output."
            )
        text = yaml.safe_dump(fit, sort_keys=False)
        if not self.fit.exists() or self.fit.read_bytes() != text.encode():
            shutil.rmtree(self.probes, ignore_errors=True)  # what a few steps cost and take is another matter now
            write_whole(self.fit, text)
        return differ

    def bind(self) -> None:
        """Writes the plan down by which the folder's runs are made from now on, when nothing refuses it any more."""
        write_whole(self._plan, json.dumps(self._fixed, indent=1) + "\n")

    @property
    def num_trained(self) -> int:
        """Trials that have a record."""
        return len(list(self.trials.glob(f"*/{FILE}")))

    @property
    def _has_trained(self) -> bool:
        """More than probes, which a dry run makes too."""
        return any(folder.is_dir() and any(folder.iterdir()) for folder in (self.calibration, self.trials))

    def require_room(self, num_bytes: float) -> None:
        """Raises ConfigError unless there is that much room on the folder's disk."""
        free = shutil.disk_usage(self.path).free
        if num_bytes > free:
            raise ConfigError(
                f"The checkpoints of the search would take {num_bytes / 2**30:.3g} GiB, and {free / 2**30:.3g} GiB of "
                f"the disk of {self.path} are free. Make room, choose another --output, or set keep_checkpoints to "
                "false."
            )


def _some(lines: list[str]) -> str:
    more = f"; and {len(lines) - _MOST_CHANGES} more" if len(lines) > _MOST_CHANGES else ""
    return "; ".join(lines[:_MOST_CHANGES]) + more
