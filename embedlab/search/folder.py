"""The folder of a search: stores all results, admits one process at a time, and protects the plan from changes."""

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

_MOST_CHANGES = 5  # maximum number of changed settings named in an error message


class SearchFolder:
    """The folder of a search.

    Args:
        path: Path of the folder. The folder is created when it is locked, if it does not exist.

    Raises:
        ConfigError: If the path is a file.
    """

    def __init__(self, path: Path) -> None:
        if path.exists() and not path.is_dir():
            raise ConfigError(f"{path} is a file, but a search needs a folder. Choose a folder with --output.")
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
        """Lock the folder, so that no other search can use it, until the block ends.

        Raises:
            ConfigError: If another search uses the folder, or the folder contains files that do not belong to a search.
        """
        lock_file = self.path / "search.lock"
        try:
            if not lock_file.exists() and self.path.is_dir() and any(self.path.iterdir()):
                raise ConfigError(
                    f"{self.path} contains files that do not belong to a search. Choose another folder with --output."
                )
        except OSError as error:
            raise cannot_write(self.path, error) from error
        with locked_folder(self.path, owner="search"):
            remove_unfinished(self.path)
            yield

    def take(self, fixed: dict[str, Any], fit: dict[str, Any], *, accept_changes: bool) -> list[str]:
        """Compare a plan with the plan stored in the folder, and write the configuration that all runs share.

        Args:
            fixed: Settings of the plan that must not change, by dotted name.
            fit: Configuration that all runs share.
            accept_changes: Whether the plan may differ from the stored plan after trials or calibration runs have
                begun.

        Returns:
            One line for each setting that differs from the stored plan.

        Raises:
            ConfigError: If the plan differs from the stored plan, the difference is not accepted, and trials or
                calibration runs have begun.
            RecordError: If the stored plan cannot be read.
        """
        self._fixed = fixed
        differ: list[str] = []
        if self._plan.exists():
            differ = changes(current_plan(read_json(self._plan, "the plan of a search")), fixed)
        if differ and not accept_changes and self._has_trained:
            raise ConfigError(
                f"The search in {self.path} was started with another plan: {_some(differ)}. Add --accept-changes to "
                "continue with the new plan and keep all trained runs, or choose another folder with --output."
            )
        text = yaml.safe_dump(fit, sort_keys=False)
        if not self.fit.exists() or self.fit.read_bytes() != text.encode():
            shutil.rmtree(self.probes, ignore_errors=True)  # another configuration has other costs and speeds
            write_whole(self.fit, text)
        return differ

    def bind(self) -> None:
        """Write the plan given to ``take`` to the folder. Call this when all checks of the plan have passed."""
        write_whole(self._plan, json.dumps(self._fixed, indent=1) + "\n")

    @property
    def num_trained(self) -> int:
        """Number of trials that have a record."""
        return len(list(self.trials.glob(f"*/{FILE}")))

    @property
    def _has_trained(self) -> bool:
        """Whether trials or calibration runs have begun. Probes do not count, because a dry run makes probes, too."""
        return any(folder.is_dir() and any(folder.iterdir()) for folder in (self.calibration, self.trials))

    def require_room(self, num_bytes: float) -> None:
        """Check that the disk of the folder has enough free space.

        Args:
            num_bytes: Disk space needed, in bytes.

        Raises:
            ConfigError: If there is less free disk space than needed.
        """
        free = shutil.disk_usage(self.path).free
        if num_bytes > free:
            raise ConfigError(
                f"The checkpoints of the search would need {num_bytes / 2**30:.3g} GiB, but only "
                f"{free / 2**30:.3g} GiB are free on the disk of {self.path}. Free disk space, choose another folder "
                "with --output, or set keep_checkpoints to false."
            )


def _some(lines: list[str]) -> str:
    more = f"; and {len(lines) - _MOST_CHANGES} more" if len(lines) > _MOST_CHANGES else ""
    return "; ".join(lines[:_MOST_CHANGES]) + more
