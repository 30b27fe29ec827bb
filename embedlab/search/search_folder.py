"""Where a search keeps what it has done: one process at a time may, and always by the same plan."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from embedlab.errors import ConfigError, RecordError
from embedlab.search.plan import changes
from embedlab.search.records import FILE


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
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be made: {error}. Choose another with --output.") from error
        lock_file = self.path / "search.lock"
        if not lock_file.exists() and any(self.path.iterdir()):
            raise ConfigError(f"{self.path} holds something that is no search. Choose another folder with --output.")
        lock = FileLock(lock_file)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise ConfigError(
                f"Another search is running in {self.path}. Wait for it, stop it, or choose another --output."
            ) from error
        try:
            yield
        finally:
            lock.release()

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
            try:
                before = json.loads(self._plan.read_text(encoding="utf-8"))
            except ValueError as error:
                raise RecordError(f"{self._plan} cannot be read as the plan of a search: {error}.") from error
            if not isinstance(before, dict):
                raise RecordError(f"{self._plan} cannot be read as the plan of a search: it holds {before!r}.")
            differ = changes(before, fixed)
        if differ and not accept_changes and self._has_trained:
            raise ConfigError(
                f"The search in {self.path} was begun by another plan: {'; '.join(differ)}. Add --accept-changes to "
                "go on by the new one; what has been trained stays as it is. Or choose another --output."
            )
        text = yaml.safe_dump(fit, sort_keys=False)
        if not self.fit.exists() or self.fit.read_text(encoding="utf-8") != text:
            shutil.rmtree(self.probes, ignore_errors=True)  # what a few steps cost and take is another matter now
            _write(self.fit, text)
        return differ

    def bind(self) -> None:
        """Writes the plan down by which the folder's runs are made from now on, when nothing refuses it any more."""
        _write(self._plan, json.dumps(self._fixed, indent=1) + "\n")

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


def _write(path: Path, text: str) -> None:
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
