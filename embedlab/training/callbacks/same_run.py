"""Compares a run with the checkpoint from which it resumes, so that all checks of a resumed run are in one place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from embedlab.errors import ConfigError
from embedlab.training.callbacks.base import RunCallback
from embedlab.training.callbacks.branch_points import MARK
from embedlab.training.run_identity import SCHEDULE, differences, identity_of

_IDENTITY = "identity"  # key in a checkpoint: the identity of its run
_MOST_CHANGES = 50  # maximum number of changes that are kept, because each --accept_changes adds some


class SameRun(RunCallback):
    """Refuse to resume from a checkpoint with another configuration or other data.

    Args:
        accept_changes: Whether to resume in spite of changes. The run is then another run of the checkpoint's family:
            it has its own identifier, and its record lists the changes.
    """

    def __init__(self, *, accept_changes: bool = False) -> None:
        self.accept_changes = accept_changes
        self.changes: list[str] = []  # accepted so far, in this run and in the runs it resumed from
        self._before: Mapping[str, Any] | None = None
        self._step: int | None = None  # step of the checkpoint, which the trainer does not know when a fit starts
        self._is_branch = False

    def state_dict(self) -> dict[str, Any]:
        """Return the options and data that changed since the first run of the family, for the checkpoint."""
        return {"changes": self.changes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the changes of earlier runs of the family."""
        changes = state_dict.get("changes")
        self.changes = [str(one) for one in changes][:_MOST_CHANGES] if isinstance(changes, list) else []

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the identity of the run in the checkpoint."""
        module = self.module(trainer)
        checkpoint[_IDENTITY] = dict(identity_of(trainer, module))

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the identity of the checkpoint's run."""
        before = checkpoint.get(_IDENTITY)
        self._before = before if isinstance(before, Mapping) else None
        self._step = checkpoint["global_step"]
        self._is_branch = bool(checkpoint.get(MARK))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the run with the checkpoint's run.

        Raises:
            ConfigError: If the run differs from the checkpoint's and changes are not accepted.
        """
        module = self.module(trainer)
        module.accepted_changes = self.changes
        if self._step is None:
            return
        if self._before is None:
            if trainer.is_global_zero:
                print(
                    "The checkpoint comes from an older embedlab and does not say how its run was configured. Whether "
                    "this run has the same data and options cannot be checked."
                )
            return
        now = identity_of(trainer, module)
        if self._is_branch:
            now = {name: value for name, value in now.items() if name != SCHEDULE}
        found = differences(self._before, now)
        if not found:
            return
        if not self.accept_changes:
            raise ConfigError(
                f"The checkpoint belongs to another run: {'; '.join(found)}. Use the config.yaml in the checkpoint's "
                "run folder, or add --accept_changes to resume as another run of its family."
            )
        self.changes = [*self.changes, *(f"{change} from step {self._step} on" for change in found)]
        self.changes = self.changes[-_MOST_CHANGES:]
        module.accepted_changes, module.is_another_run = self.changes, True
        if trainer.is_global_zero:
            print(f"Resuming as another run of the checkpoint's family: {'; '.join(found)}.")
